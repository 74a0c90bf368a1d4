"""What private set intersection costs, both parties together, in one process; and whether it is exact.

Two parties hold ``n`` ids each, 37 % of them in common, in random order. CPU time is that of all threads and of both
parties. The wall clock counts for little where other work runs on the machine, so that it stands beside the CPU time,
as a share of it for each number of threads: with two threads, one half is perfect.

    .venv/bin/python scripts/bench/psi.py                     # 10,000 and 100,000 ids; 2 minutes on a core
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fedray.environment import environment
from fedray.psi import Answerer, Asker, CountingAnswerer, CountingAsker

OVERLAP = 0.37


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one run."""

    ids: int
    kind: str
    threads: int
    cpu_s: float
    wall_s: float
    request_bytes: int
    offer_bytes: int
    answer_bytes: int
    is_exact: bool

    @property
    def wall_ratio(self) -> float:
        """Wall time by what CPU time over threads would be: 1 is perfect."""
        return self.wall_s / (self.cpu_s / self.threads)


def sets(n: int) -> tuple[list[str], list[str]]:
    """Two sets of ``n`` ids in random order."""
    random = np.random.default_rng(n)
    n_common = round(OVERLAP * n)
    mine, theirs = np.arange(n), np.arange(n - n_common, 2 * n - n_common)
    return [f"id-{one}" for one in random.permutation(mine)], [f"id-{one}" for one in random.permutation(theirs)]


def measured(n: int, kind: str, threads: int) -> Cost:
    """One run between two parties that take turns, each with all threads."""
    mine, theirs = sets(n)
    key = os.urandom(32)
    asking, answering = (Asker, Answerer) if kind == "rows" else (CountingAsker, CountingAnswerer)
    with ThreadPoolExecutor(threads) as pool:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        asker = asking(mine, key, shards=4 * threads, mapper=pool.map)
        answerer = answering(theirs, key, shards=4 * threads, mapper=pool.map)
        request, offer = asker.request(), answerer.offer()
        answer = answerer.answer(request)
        found = asker.matches(offer, answer) if isinstance(asker, Asker) else asker.count(offer, answer)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    held = set(theirs)
    rows = [row for row, one in enumerate(mine) if one in held]
    is_exact = found == len(rows) if isinstance(found, int) else found.tolist() == rows
    return Cost(n, kind, threads, cpu_s, wall_s, len(request), len(offer), len(answer), is_exact)


def row(cost: Cost) -> str:
    sizes = " ".join(f"{size / 1e6:7.2f}" for size in (cost.request_bytes, cost.offer_bytes, cost.answer_bytes))
    times = f"{cost.cpu_s:5.1f}  {cost.wall_s:6.1f}  {cost.wall_ratio:22.2f}"
    return f"{cost.ids:7d} {cost.kind:>5s} {cost.threads:7d} | {times} | {sizes} | {'yes' if cost.is_exact else 'NO'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kinds", choices=["rows", "count"], nargs="*", default=["rows"])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/psi.json"))
    asked = parser.parse_args()

    print("    ids  kind threads | CPU s  wall s  wall / (CPU / threads) | request   offer  answer MB | exact")
    costs = []
    for n in asked.ids:
        for kind in asked.kinds:
            for threads in asked.threads:
                cost = measured(n, kind, threads)
                costs.append(cost)
                print(row(cost), flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(
        json.dumps({"environment": environment(), "costs": [asdict(cost) for cost in costs]}, indent=1)
    )


if __name__ == "__main__":
    main()
