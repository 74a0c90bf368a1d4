"""What registered owners cost who do not take part: start-up, rounds a minute and memory from a thousand to a million.

    .venv/bin/python scripts/bench/population.py                            # some minutes
    .venv/bin/python scripts/bench/population.py --owners 1000 100000       # less

Each owner has 20 made-up images of 8 x 8 and learns a logistic regression for one epoch in batches of 10; a hundred
take part in a round of the thousand, a thousand otherwise. Every tenth model is evaluated on ten owners' held-out rows
and on 1,000 rows of the server's. Owners are simulated in pools on Ray, updates are in the clear, records go to disk.
Rounds are timed as they follow each other, memory is what processes hold at the largest moment of two more. Every
population starts from nothing, one after the other. Of the processes named, ``python`` is the caller's own.

Prints a table; writes runs/bench/population.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from contest import Contestant

import fedray
from fedray.environment import environment

ENDLESS = 1_000_000
"""Rounds of an experiment that is left before its end."""
ROW = "{:>10s}{:>8s}{:>12s}{:>12s}{:>14s}{:>10s}  {}"


def experiment(owners: int, cohort: int) -> fedray.Experiment:
    """FedAvg of tiny owners."""
    return fedray.Experiment(
        name="population",
        rounds=ENDLESS,
        data={"name": "images", "owners": owners, "rows": 20, "shape": [1, 8, 8], "central_test": 1000},
        model="logistic",
        train={"batch_size": 10, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}},
        protection="plain",
        cohort={"name": "fixed", "size": cohort},
        evaluation={"every": 10, "owners": 10},
        simulation="pooled",
    )


def measure(owners: int, rounds: int) -> dict[str, Any]:
    """Figures of one population."""
    from federations import Federation

    cohort = 100 if owners < 10_000 else 1000
    with tempfile.TemporaryDirectory() as folder:
        make = partial(Federation, experiment(owners, cohort), Path(folder) / "run")
        with closing(Contestant(make)) as contestant:
            (first,) = contestant.ask("advance", 1)
            turns = contestant.ask("advance", rounds)
            weight = contestant.weigh(2, 0.0, "cpu")
            seconds = sum(turn.seconds for turn in turns)
            return {
                "owners": owners,
                "cohort": cohort,
                "start-up, s": contestant.start_up_s,
                "first round, s": first.seconds,
                "rounds a minute": 60 * rounds / seconds,
                "owners trained a second": cohort * rounds / seconds,
                "notes": contestant.ask("notes"),
                "work, mean s a round": {
                    what: sum(turn.work.get(what, 0.0) for turn in turns) / rounds for what in turns[-1].work
                },
                **asdict(weight),
            }


def row(found: Mapping[str, Any]) -> str:
    """One line of the table."""
    largest = ", ".join(f"{name} {'+'.join(f'{one:.0f}' for one in pss)}" for name, pss in found["processes"].items())
    return ROW.format(
        f"{found['owners']:,}",
        f"{found['cohort']:,}",
        f"{found['start-up, s']:.1f}",
        f"{found['first round, s']:.2f}",
        f"{found['rounds a minute']:.1f}",
        f"{found['memory']['PSS']:.0f}",
        largest,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=40, help="rounds that are timed")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/population.json"))
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    print(ROW.format("owners", "cohort", "start-up s", "first s", "rounds a min", "PSS MiB", "of which"))
    for owners in asked.owners:
        results.append(measure(owners, asked.rounds))
        print(row(results[-1]), flush=True)
        asked.out.write_text(json.dumps({"environment": environment(), "populations": results}, indent=1))


if __name__ == "__main__":
    main()
