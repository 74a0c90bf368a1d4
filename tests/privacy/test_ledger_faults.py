"""The ledger under real faults: processes killed at any moment, and many that share one budget.

A process that has loaded nothing but the ledger forks children and kills them: cheap, and as abrupt as it gets.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from scipy.optimize import brentq
from scipy.stats import norm

from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, verify

DELTA, N_KILLS = 1e-5, 200

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from fedray.privacy.events import Gaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_entries import Release
from fedray.privacy.ledger_file import LedgerFile

folder, n_kills = Path(sys.argv[1]), int(sys.argv[2])

def work(begun):
    ledger = Ledger(LedgerFile(folder / "ledger"), "ann")
    released = os.open(folder / "released", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_SYNC, 0o600)
    os.write(begun, b"opened")
    for round in range(1, 1_000_000):
        noise, count = random.choice([40.0, 50.0]), random.randint(1, 3)
        seq = ledger.charge(Release(str(os.getpid()), "killed", round, "train", "example", Gaussian(noise), count))
        done = random.randint(0, count)
        os.write(released, f"{seq} {noise} {done}\\n".encode())
        if round == 1:
            os.write(begun, b"released")
        ledger.settle(seq, done)

random.seed(0)
for kill in range(n_kills):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        random.seed()
        try:
            work(writing)
        finally:
            os._exit(1)
    os.close(writing)
    for _ in range(1 + kill % 2):
        os.read(reading, 8)
    time.sleep(random.expovariate(1 / 0.003))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status == signal.SIGKILL, "a child must not end by itself"
    os.close(reading)
"""

SHARED = """
import os, sys
from pathlib import Path
from fedray.errors import BudgetExhausted
from fedray.privacy.events import Gaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_entries import Release
from fedray.privacy.ledger_file import LedgerFile

def work(run):
    ledger = Ledger(LedgerFile(Path(sys.argv[1])), "ann")
    for round in range(1, 1_000):
        seq = ledger.charge(Release(run, "shared", round, "train", "example", Gaussian(20.0), 2))
        if round % 2:
            ledger.settle(seq, 1)

children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        try:
            work(str(number))
        except BudgetExhausted:
            os._exit(9)
        finally:
            os._exit(1)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [9] * 4
"""


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def recounted(path: Path) -> dict[int, dict[str, Any]]:
    """All charges by number, counts as settled, read by hand."""
    charges: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        entry = line["entry"]
        if entry["kind"] == "charge":
            charges[line["seq"]] = {"noise": entry["event"]["noise_multiplier"], "charged": entry["count"], **entry}
        elif entry["kind"] == "settle":
            charges[entry["seq"]]["count"] = entry["count"]
    return charges


def exact_epsilon(counts: Counter[float]) -> float:
    """Of Gaussian mechanisms (Balle and Wang 2018, Theorem 8)."""
    mu = math.sqrt(sum(count / noise**2 for noise, count in counts.items()))

    def excess(epsilon: float) -> float:
        lower = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - lower - DELTA)

    return float(brentq(excess, 0, 100))


def test_a_process_killed_at_any_moment_never_released_what_is_not_on_record(tmp_path: Path) -> None:
    run(KILLED, tmp_path, N_KILLS)
    charges = recounted(tmp_path / "ledger")
    released = [line.split() for line in (tmp_path / "released").read_text().splitlines()]
    numbers = [int(seq) for seq, _, _ in released]
    assert len(set(numbers)) == len(numbers) >= N_KILLS // 2
    assert set(numbers) <= set(charges)
    for seq, noise, done in released:
        charge = charges[int(seq)]
        assert charge["noise"] == float(noise)
        assert charge["count"] in (int(done), charge["charged"])
    for seq in set(charges) - set(numbers):
        assert charges[seq]["count"] == charges[seq]["charged"]
    counts: Counter[float] = Counter()
    for charge in charges.values():
        counts[charge["noise"]] += charge["count"]
    ledger = Ledger(LedgerFile(tmp_path / "ledger"), "ann")
    assert set(ledger.charges("example") or ()) == {Charge(Gaussian(noise), n) for noise, n in counts.items()}
    exact = exact_epsilon(counts)
    assert exact <= ledger.spent("example", DELTA).epsilon <= 1.01 * exact
    lines = (tmp_path / "ledger").read_text().splitlines()
    assert verify(tmp_path / "ledger").n_entries == len(lines)


def test_processes_that_share_a_budget_do_not_overspend_it_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    epsilon = spent([Charge(Gaussian(20.0), 101)], DELTA).epsilon
    Ledger(LedgerFile(path), "ann").set_budget("example", epsilon, DELTA)
    run(SHARED, path)
    assert sum(charge["count"] for charge in recounted(path).values()) in (100, 101)
    ledger = Ledger(LedgerFile(path), "ann")
    assert ledger.spent("example", DELTA).epsilon <= epsilon
    assert verify(path).owners == ("ann",)
