"""What masked secure aggregation costs owners and server, as ratios to AES itself, in one process.

T_aes is the time of AES-128 in counter mode over the bytes of the vector, in the same process. All times are CPU time,
all threads together, per million parameters. Roles are the library's own; messages pass as bytes, without Ray. Keys,
and the server's part in them, are made ahead while owners train; both are shown apart from masks and sums.

    .venv/bin/python scripts/bench/masked.py                     # 10 and 100 owners; under a minute
    .venv/bin/python scripts/bench/masked.py --owners 1000       # some minutes
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedray.environment import environment
from fedray.protection.fixed_point import PIECE, FixedPoint
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.owner import MaskedSealer
from fedray.protection.masked.server import MaskedProtection
from fedray.values import Assignment, RoundPlan, Sealed, Update, Work

RUN = bytes(range(16))


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds per million parameters, and bytes per owner."""

    owners: int
    neighbours: int
    threshold: int
    bits: int
    dropped: int
    aes_ms: float
    owner_masks_ms: float
    owner_keys_ms: float
    server_ahead_ms: float
    server_ms: float
    payload_ratio: float
    bytes_per_neighbour: float

    @property
    def owner_bound_ms(self) -> float:
        return 1.4 * (self.neighbours + 1) * self.aes_ms + 2

    @property
    def server_bound_ms(self) -> float:
        return 1.4 * self.owners * self.aes_ms + 0.2 * self.owners


class Federation:
    """Owners and server of one federation in this process, with what each spends."""

    def __init__(self, n_owners: int, n_values: int, precision: float, clip: float, folder: Path) -> None:
        self.fixed_point = FixedPoint(n_values, n_owners, clip, precision)
        names = [f"owner-{number}" for number in range(n_owners)]
        self.sealers = {name: self._sealer(name, folder) for name in names}
        self.protection = MaskedProtection(Rules(), self.fixed_point, 1, RUN, {})
        self.owner_s = 0.0
        self.gone: set[str] = set()

    def _sealer(self, name: str, folder: Path) -> MaskedSealer:
        journal = Journal(folder / f"{name}.json")
        return MaskedSealer(name, Identity(), Trust({}), Rules(), self.fixed_point, 0, journal)

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        started = time.process_time()
        answers = {name: self.sealers[name].answer(one) for name, one in messages.items() if name not in self.gone}
        self.owner_s += time.process_time() - started
        return answers


def aes_ms(n_bytes: int) -> float:
    """CPU time of AES-128-CTR over so many bytes, in cache-sized pieces; the median of nine."""
    zeros, out = bytes(4 * PIECE), np.empty(4 * PIECE, dtype=np.uint8)

    def once() -> float:
        stream = Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16))).encryptor()
        started = time.process_time()
        for at in range(0, n_bytes, len(zeros)):
            n = min(len(zeros), n_bytes - at)
            stream.update_into(memoryview(zeros)[:n], out.data[:n])
        return 1e3 * (time.process_time() - started)

    return median(once() for _ in range(9))


def measured(n_owners: int, n_values: int, dropouts: float, precision: float, clip: float) -> Cost:
    """One round: keys, masks of every owner that stays, sum, unmasking."""
    millions = n_values / 1e6
    delta = np.random.default_rng(0).normal(0, clip / 8, n_values).clip(-clip, clip).astype(np.float32)
    plan = RoundPlan(1, Work(1, "epochs"), 0.0, True, "uniform")
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(n_owners, n_values, precision, clip, Path(folder))
        started = time.process_time()
        combiner = federation.protection.combiner(1, list(federation.sealers), federation.ask)
        ahead_s = time.process_time() - started - federation.owner_s
        server_s, keys_s, federation.owner_s = 0.0, federation.owner_s, 0.0
        n_dropped = int(dropouts * n_owners)
        federation.gone = set(list(federation.sealers)[:n_dropped])
        seals = []
        for name, sealer in federation.sealers.items():
            if name in federation.gone:
                continue
            started = time.process_time()
            briefing = combiner.briefing(name)
            server_s += time.process_time() - started
            assignment = Assignment(name, plan, plan.work, None, 1, briefing)
            terms = assignment.terms(delta)
            started = time.process_time()
            payload, proof = sealer.seal(Update(delta, 1, 1, True), assignment, terms)
            seals.append(time.process_time() - started)
            started = time.process_time()
            combiner.add(Sealed(name, 1, payload, 1, True, 0.0, None, terms, proof))
            server_s += time.process_time() - started
        started = time.process_time()
        total = combiner.open()
        server_s += time.process_time() - started - federation.owner_s
        keys_s += federation.owner_s
    assert np.abs(total.mean - delta).max() <= federation.fixed_point.step
    record = combiner.record()
    return Cost(
        owners=n_owners,
        neighbours=record.neighbours,
        threshold=record.threshold,
        bits=8 * payload.itemsize,
        dropped=n_dropped,
        aes_ms=aes_ms(payload.nbytes) / millions,
        owner_masks_ms=1e3 * median(seals) / millions,
        owner_keys_ms=1e3 * keys_s / n_owners / millions,
        server_ahead_ms=1e3 * ahead_s / millions,
        server_ms=1e3 * server_s / millions,
        payload_ratio=payload.nbytes / delta.nbytes,
        bytes_per_neighbour=record.bytes_up / n_owners / record.neighbours,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/masked.json"))
    asked = parser.parse_args()

    print(
        " owners   k   t bits dropped | T_aes | owner masks (bound) + keys | server ahead + sum (bound) ratio"
        " | bytes  B/neighbour"
    )
    costs = []
    for n_owners in asked.owners:
        narrow = [(2e-4, 0.25)] if n_owners == 10 else []
        for precision, clip in [(1e-5, 8.0 if n_owners < 1000 else 4.0), *narrow]:
            for dropouts in (0.0, 0.1, 0.3):
                repeats = asked.repeats if n_owners < 1000 else 1
                tried = [measured(n_owners, asked.values, dropouts, precision, clip) for _ in range(repeats)]
                cost = sorted(tried, key=lambda one: one.server_ms)[len(tried) // 2]
                costs.append(cost)
                print(
                    f"{cost.owners:7d} {cost.neighbours:3d} {cost.threshold:3d} {cost.bits:4d} {cost.dropped:7d} | "
                    f"{cost.aes_ms:5.2f} | {cost.owner_masks_ms:6.1f} ({cost.owner_bound_ms:6.1f}) + "
                    f"{cost.owner_keys_ms:5.1f}     | {cost.server_ahead_ms:6.1f} + {cost.server_ms:8.1f} "
                    f"({cost.server_bound_ms:6.1f}) "
                    f"{cost.server_ms / cost.server_bound_ms:5.2f} | {cost.payload_ratio:5.3f}x "
                    f"{cost.bytes_per_neighbour:6.0f}",
                    flush=True,
                )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(
        json.dumps({"environment": environment(), "costs": [asdict(cost) for cost in costs]}, indent=1)
    )


if __name__ == "__main__":
    main()
