"""Whether memory grows over a thousand rounds, and in which process.

    .venv/bin/python scripts/bench/long_run.py                  # a thousand rounds: some minutes
    .venv/bin/python scripts/bench/long_run.py --rounds 300     # less

A tiny federation runs by ``fedray.run`` on Ray: 200 owners of 20 made-up images of 8 x 8 in pools, 20 of them a round,
logistic regression, updates in the clear, 20 owners' held-out rows evaluated every ten rounds. After every round the
resident memory (RSS, and PSS) of each of its processes is read from /proc. Reported are each process's means over the
first hundred rounds, less the first twenty in which everything warms up, and over the last hundred. A process grows if
its PSS rises by at least 2 MiB and 2 % from the one to the other. Processes that did not live all the while are named;
``python`` is the caller's own.

Prints a table; writes runs/bench/long_run.json with all samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from contest import Contestant
from memory import MIB, Memory

import fedray
from fedray.environment import environment

WARM_UP, SPAN = 20, 100
GROWN_MIB, GROWN = 2.0, 1.02
ROW = "{:>8s}  {:28s}{:>12s}{:>12s}{:>8s}{:>12s}{:>12s}{:>8s}  {}"


def experiment(rounds: int) -> fedray.Experiment:
    """FedAvg of tiny owners."""
    return fedray.Experiment(
        name="long-run",
        rounds=rounds,
        data={"name": "images", "owners": 200, "rows": 20, "shape": [1, 8, 8]},
        model="logistic",
        train={"batch_size": 10, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}},
        protection="plain",
        cohort={"name": "fixed", "size": 20},
        evaluation={"every": 10, "owners": 20},
        simulation="pooled",
    )


class Run:
    """``fedray.run`` as a loop that is asked for its rounds."""

    def __init__(self, rounds: int, directory: Path) -> None:
        self._records = fedray.run(experiment(rounds), directory).__iter__()

    def advance(self, rounds: int) -> list[int]:
        """Do so many rounds; their numbers."""
        return [next(self._records).round for _ in range(rounds)]

    def close(self) -> None:
        """End the run where it is."""
        self._records.close()


def samples(rounds: int) -> list[list[Memory]]:
    """What each process holds after every round."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Contestant(partial(Run, rounds + 1, Path(folder) / "run"))) as contestant,
    ):
        found = []
        for _ in range(rounds):
            contestant.ask("advance", 1)
            found.append(contestant.memory())
        return found


def compared(found: Sequence[Sequence[Memory]]) -> list[dict[str, Any]]:
    """Each process that lived all the while: means near the beginning and at the end, in MiB; fastest growing first."""
    span = min(SPAN, len(found) // 2)
    early, late = found[min(WARM_UP, span // 2) : span], found[-span:]
    alive = set.intersection(*({one.pid for one in sample} for sample in found[len(found) // 10 :]))
    lines = []
    for pid in alive:
        before, after = _means(early, pid), _means(late, pid)
        ratio = {kind: after[kind] / before[kind] for kind in before}
        grows = ratio["PSS"] >= GROWN and after["PSS"] - before["PSS"] >= GROWN_MIB
        name = next(one.name for one in found[-1] if one.pid == pid)
        lines.append({"pid": pid, "name": name, "early": before, "late": after, "ratio": ratio, "grows": grows})
    return sorted(lines, key=lambda line: line["early"]["PSS"] - line["late"]["PSS"])


def _means(found: Sequence[Sequence[Memory]], pid: int) -> dict[str, float]:
    own = [one for sample in found for one in sample if one.pid == pid]
    return {"PSS": mean(one.pss for one in own) / MIB, "RSS": mean(one.rss for one in own) / MIB}


def _passing(found: Sequence[Sequence[Memory]], lines: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Processes that came late or went early: the rounds after which they were first and last seen."""
    lived = {line["pid"] for line in lines}
    seen: dict[str, list[int]] = {}
    for round, sample in enumerate(found, 1):
        for one in sample:
            if one.pid not in lived:
                seen.setdefault(f"{one.name} {one.pid}", [round, round])[1] = round
    return seen


def printed(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table, and the verdict."""
    heads = ("pid", "process", "PSS early", "PSS late", "ratio", "RSS early", "RSS late", "ratio", "")
    table = [ROW.format(*heads)]
    for line in lines:
        figures = [
            f"{value:.{places}f}"
            for kind in ("PSS", "RSS")
            for value, places in ((line["early"][kind], 1), (line["late"][kind], 1), (line["ratio"][kind], 3))
        ]
        table.append(ROW.format(str(line["pid"]), line["name"], *figures, "grows" if line["grows"] else ""))
    growing = ", ".join(f"{line['name']} ({line['pid']})" for line in lines if line["grows"])
    return "\n".join([*table, f"growing: {growing or 'none'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/long_run.json"))
    asked = parser.parse_args()
    found = samples(asked.rounds)
    lines = compared(found)
    passing = _passing(found, lines)
    by_process = {
        str(line["pid"]): [[round(one.pss / MIB, 2), round(one.rss / MIB, 2)] for one in _own(found, line["pid"])]
        for line in lines
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    results = {"rounds": asked.rounds, "processes": lines, "came or went": passing, "PSS and RSS, MiB": by_process}
    asked.out.write_text(json.dumps({"environment": environment(), **results}, indent=1))
    print(printed(lines))
    print(f"came late or went early (first and last round seen): {passing or 'none'}")


def _own(found: Sequence[Sequence[Memory]], pid: int) -> list[Memory]:
    return [one for sample in found for one in sample if one.pid == pid]


if __name__ == "__main__":
    main()
