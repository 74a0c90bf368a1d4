"""What a simulated round costs over the same training without a framework, on the same cores or card.

    .venv/bin/python scripts/bench/simulation.py                                # all cases, some minutes
    .venv/bin/python scripts/bench/simulation.py --only tiny pfl --rounds 50    # less, or more
    .venv/bin/python scripts/bench/simulation.py --device cuda --processes 4    # a card that four processes share

Floors (``floors.py``, ``crew.py``) are bare PyTorch loops, one owner after the other and vectorised over owners, each
in one process and in one process a core. They train fedray's cohorts on fedray's batches, with all rows in memory
before anything is timed, and take the weighted mean; their model after the first round must be fedray's but for
rounding, or nothing is reported. fedray's rounds are whole: cohorts drawn, owners opened, updates sealed, exact sums,
records on disk. All loops are alive at once and take turns of a few rounds, one thread a process.

The floors do not evaluate. fedray evaluates a model while the next round trains; both of these rounds are left out of
all medians, and told apart. Images of an owner are made when fedray opens it first, under "open" in the work; in
``tiny``, where that would be most of a round, nearly all owners are opened before anything is timed, in the other cases
they are not. Memory is watched over two more rounds that are not timed; the floors hold all owners' rows, mapped, and
pages of libraries are shared out among all loops: see ``memory.py``.

Case ``pfl`` is the CIFAR-10 set-up on which Granqvist et al. 2024 (*pfl-research: simulation framework for accelerating
research in Private Federated Learning*, table 1) compare frameworks, with made-up images and a smaller CNN: padded
convolutions of 16 and 32 channels with pooling after each, 64 hidden units, and no dropout.

Prints a table; writes runs/bench/simulation.json with every round's time, and runs/bench/simulation.png.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cards
from contest import Contestant, Loop, Measured, Turn, opened

import fedray
from fedray.environment import environment

ALIKE = 0.05
"""Models after the first round may differ by this part of what the round moved."""
ENDLESS = 1_000_000
"""Rounds of an experiment that is left before its end."""
CARD_S = 5.0
"""Seconds that a card is watched: its utilisation is a mean over up to one."""

CNN = {"name": "cnn", "channels": [16, 32], "hidden": 128}
DEVICES = {"name": "images", "owners": 1000, "rows": 75, "spread": 0.7, "alpha": 0.3, "holdout": 0.2}
SILOS = {"name": "images", "owners": 8, "rows": 2500, "spread": 0.0, "alpha": 0.3, "holdout": 0.2}
CIFAR = {"name": "images", "owners": 1000, "rows": 50, "spread": 0.0, "alpha": None, "holdout": 0.0}


@dataclass(frozen=True)
class Case:
    """One federation to be timed.

    Attributes:
        what: what the reader is told.
        rounds: rounds that are timed, unless asked otherwise.
        settings: of the experiment.
        simulations: how fedray carries it out, by name.
        is_vectorised: whether floors are vectorised over owners too.
        warm_up: rounds after the first that are not timed.
        turn: rounds that a loop does before it is the next one's turn.
    """

    what: str
    rounds: int
    settings: Mapping[str, Any]
    simulations: tuple[str, ...] = ("pooled",)
    is_vectorised: bool = True
    warm_up: int = 0
    turn: int = 5


CASES = {
    "silos": Case(
        "8 owners x 2,000 rows, CNN, all take part, batch 32",
        8,
        {"data": SILOS, "model": CNN, "train": {"batch_size": 32}, "evaluation": {"every": 4}},
        ("none", "pooled"),
        is_vectorised=False,
        turn=4,
    ),
    "devices": Case(
        "1,000 owners x about 60 rows, CNN, 50 take part, batch 10",
        20,
        {
            "data": DEVICES,
            "model": CNN,
            "train": {"batch_size": 10},
            "cohort": {"name": "fixed", "size": 50},
            "evaluation": {"every": 10, "owners": 100},
        },
    ),
    "tiny": Case(
        "1,000 owners x about 60 rows, logistic regression, 50 take part, batch 10",
        40,
        {
            "data": DEVICES,
            "model": "logistic",
            "train": {"batch_size": 10},
            "cohort": {"name": "fixed", "size": 50},
            "evaluation": {"every": 10, "owners": 100},
        },
        warm_up=60,
        turn=10,
    ),
    "pfl": Case(
        "1,000 owners x 50 colour images of 32 x 32, small CNN, 50 take part, batch 10",
        20,
        {
            "data": {**CIFAR, "shape": [3, 32, 32], "central_test": 10_000},
            "model": {**CNN, "hidden": 64},
            "train": {"batch_size": 10},
            "cohort": {"name": "fixed", "size": 50},
            "evaluation": {"every": 10, "owners": 1},
        },
    ),
}


def experiment(case: Case, simulation: str, processes: int, device: str) -> fedray.Experiment:
    """FedAvg by plain SGD, updates in the clear: what the floors do too."""
    pooled = {"pools": processes, "pool_gpus": 1 / processes if device == "cuda" else 0.0}
    train = {**case.settings["train"], "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.05}}
    return fedray.Experiment(
        **{**case.settings, "train": train},
        rounds=ENDLESS,
        protection="plain",
        simulation={"name": simulation, **(pooled if simulation == "pooled" else {})},
    )


def loops(case: Case, folder: Path, processes: int, device: str) -> dict[str, Callable[[], Loop]]:
    """What opens each loop of a case; floors come first."""
    from crew import BareLoop
    from federations import Federation

    made: dict[str, Callable[[], Loop]] = {}
    config = experiment(case, "pooled", processes, device)
    for is_vectorised in (False, True) if case.is_vectorised else (False,):
        for n in sorted({1, processes}):
            name = f"{'vectorised' if is_vectorised else 'bare'}, {n} process{'es' if n > 1 else ''}"
            made[name] = partial(BareLoop, config, folder, n, device, is_vectorised)
    for simulation in case.simulations if device == "cpu" else ("pooled",):
        config = experiment(case, simulation, processes, device)
        name = "fedray, pooled" if simulation == "pooled" else "fedray, an actor an owner"
        made[name] = partial(Federation, config, folder / simulation)
    return made


def measure(case: Case, rounds: int, processes: int, device: str) -> dict[str, Measured]:
    """What each loop of a case took, in turns."""
    from floors import write_rows

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_rows(experiment(case, "pooled", processes, device), Path(folder))
        contestants = opened(stack, loops(case, Path(folder), processes, device))
        start = next(iter(contestants.values())).ask("vector")
        first = {name: one.ask("advance", 1)[0] for name, one in contestants.items()}
        apart = _apart(start, {name: one.ask("vector") for name, one in contestants.items()})
        turns = _turns(contestants, case, rounds)
        weights = {name: one.weigh(2, CARD_S if device == "cuda" else 0.0, device) for name, one in contestants.items()}
        freed = {name: _freed(one) for name, one in contestants.items()} if device == "cuda" else {}
        return {
            name: Measured(one.start_up_s, first[name], turns[name], weights[name], apart[name], freed.get(name))
            for name, one in contestants.items()
        }


def _turns(contestants: Mapping[str, Contestant], case: Case, rounds: int) -> dict[str, list[Turn]]:
    """What at least so many rounds took each loop."""
    if case.warm_up:
        for one in contestants.values():
            one.ask("advance", case.warm_up)
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for _ in range(0, rounds, turn := min(case.turn, rounds)):
        for name, one in contestants.items():
            turns[name] += one.ask("advance", turn)
    return turns


def _apart(start: Any, vectors: Mapping[str, Any]) -> dict[str, float]:
    """How far each model is from the first, as a part of what the round moved that.

    Raises:
        AssertionError: too far: the loops do not train alike.
    """
    reference = next(iter(vectors.values()))
    moved = float(((reference - start) ** 2).sum() ** 0.5)
    found = {name: float(((one - reference) ** 2).sum() ** 0.5) / moved for name, one in vectors.items()}
    assert max(found.values()) < ALIKE, f"loops that do not train alike: {found}"
    return found


def _freed(contestant: Contestant) -> float:
    """Memory of the card in MiB that a loop held: what its end gives back."""
    before = cards.used_mib()
    contestant.close()
    time.sleep(2)  # processes of its Ray end a little later
    return before - cards.used_mib()


def main() -> None:
    from picture import draw
    from summary import summarised, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, help="rounds that are timed; each case's own when left out")
    parser.add_argument("--repeats", type=int, default=1, help="times that all loops are started anew")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, help="one a core when left out, one on a card")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/simulation.json"))
    asked = parser.parse_args()
    processes = asked.processes or (1 if asked.device == "cuda" else os.cpu_count() or 1)
    where = environment() | ({"card": cards.name()} if asked.device == "cuda" else {})
    results: dict[str, Any] = {"environment": where, "processes": processes, "cases": {}}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        case = CASES[name]
        repeats = [measure(case, asked.rounds or case.rounds, processes, asked.device) for _ in range(asked.repeats)]
        results["cases"][name] = {"what": case.what, **summarised(repeats)}
        asked.out.write_text(json.dumps(results, indent=1))
        print(table(name, results["cases"][name]), flush=True)
    draw(results["cases"], asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
