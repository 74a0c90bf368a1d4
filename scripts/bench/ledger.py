"""What keeping a ledger costs for each release: its charge on disk before, its settlement after.

One owner with a file of its own that survives a loss of power, and a simulation whose owners share a file that
survives a killed process; with and without a budget. The floor is the same bytes appended, and flushed where the
ledger flushes, with nothing read, hashed or decided. Reopening is the time to read and check the whole file again.

    .venv/bin/python scripts/bench/ledger.py            # a minute; prints and writes runs/bench/ledger.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fedray.environment import environment
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, SampledGaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_entries import Release
from fedray.privacy.ledger_file import Durability, LedgerFile

DELTA, STEPS = 1e-5, 10
EVENT = SampledGaussian(0.01, 1.0)


@dataclass(frozen=True)
class Cost:
    """Times in milliseconds for each release, but for ``reopen_s``."""

    durability: Durability
    has_budget: bool
    owners: int
    rounds: int
    first_ms: float
    later_ms: float
    floor_ms: float
    bytes_per_release: float
    reopen_s: float


def measured(path: Path, durability: Durability, owners: int, rounds: int, has_budget: bool) -> Cost:
    """Every owner charges and settles a release in every round."""
    file = LedgerFile(path, durability)
    ledgers = [Ledger(file, f"owner-{number}") for number in range(owners)]
    if has_budget:
        epsilon = 1.02 * spent([Charge(EVENT, STEPS * rounds)], DELTA).epsilon
        for ledger in ledgers:
            ledger.set_budget("example", epsilon, DELTA)
    seconds = [_round(ledgers, round) for round in range(1, rounds + 1)]
    started = time.perf_counter()
    LedgerFile(path, durability)
    reopen_s = time.perf_counter() - started
    tenth = max(1, rounds // 10)
    per_release = 1e3 / owners / tenth
    return Cost(
        durability,
        has_budget,
        owners,
        rounds,
        per_release * sum(seconds[:tenth]),
        per_release * sum(seconds[-tenth:]),
        floor_ms(path, durability),
        path.stat().st_size / owners / rounds,
        reopen_s,
    )


def _round(ledgers: list[Ledger], round: int) -> float:
    started = time.perf_counter()
    for ledger in ledgers:
        seq = ledger.charge(Release("run", "bench", round, "train", "example", EVENT, STEPS))
        ledger.settle(seq, STEPS - 1)
    return time.perf_counter() - started


def floor_ms(path: Path, durability: Durability, n_releases: int = 200) -> float:
    """Two lines appended, and flushed where the ledger would."""
    lines = path.read_bytes().splitlines(keepends=True)[-2:]
    file = os.open(path.with_suffix(".floor"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    started = time.perf_counter()
    for _ in range(n_releases):
        for line in lines:
            os.write(file, line)
            if durability == "power":
                os.fsync(file)
    seconds = time.perf_counter() - started
    os.close(file)
    return 1e3 * seconds / n_releases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="whose device is measured")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ledger.json"))
    asked = parser.parse_args()

    asked.folder.mkdir(parents=True, exist_ok=True)
    print("durability budget owners rounds | first ms  last ms (floor) a release | bytes | reopen s")
    costs = []
    durabilities: list[tuple[Durability, int]] = [("power", 1), ("process", asked.owners)]
    for durability, owners in durabilities:
        for has_budget in (False, True):
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                cost = measured(Path(folder) / "ledger.jsonl", durability, owners, asked.rounds, has_budget)
            costs.append(cost)
            print(
                f"{cost.durability:>10} {'yes' if cost.has_budget else 'no':>6} {cost.owners:6d} {cost.rounds:6d} | "
                f"{cost.first_ms:8.3f} {cost.later_ms:8.3f} ({cost.floor_ms:5.3f})           | "
                f"{cost.bytes_per_release:5.0f} | {cost.reopen_s:8.2f}",
                flush=True,
            )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(
        json.dumps({"environment": environment(), "costs": [asdict(cost) for cost in costs]}, indent=1)
    )


if __name__ == "__main__":
    main()
