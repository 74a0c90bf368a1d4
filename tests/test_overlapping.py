"""Overlapping rounds give the records of rounds one at a time, evaluate while the next round trains, and lose none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toys import MASKED, PLAIN, Meddling, federation, shard, torch_task

from fedray.actors.server import ServerActor
from fedray.config import Experiment
from fedray.errors import RunError
from fedray.federation import Federation, ServerState
from fedray.overlapping import federate_overlapping
from fedray.rounds import Rounds, federate
from fedray.strategies import FedProx
from fedray.values import Absent, Assignment, Part, RoundRecord, Sealed, Tally, Vector, Work, sha256

WAIT_S = 30.0
SHARDS = {name: shard(6 + place, 3, seed=place) for place, name in enumerate("abcde")}
Meddle = Callable[[list[Any]], Iterable[Any]]


class OneThread(Meddling):
    """Trains or evaluates, not both at the same moment, as an owner's process does."""

    def __init__(self, cohort: Any, meddle: Meddle = lambda answers: answers) -> None:
        super().__init__(cohort, meddle)
        self._lock = threading.Lock()

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Any]:
        with self._lock:
            return list(super().train(vector, assignments))

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        with self._lock:
            return iter(list(super().evaluate(vector, part, owners)))


def made(folder: Path = Path(), section: Any = PLAIN, around: Any = OneThread, **settings: Any) -> Federation:
    asked = {"train": {"epochs": 2}, "stragglers": {"fraction": 0.4}, "rounds": 4, **settings}
    task, strategy = partial(torch_task, "logistic"), FedProx(Work(2, "epochs"), mu=0.1)
    parts = federation(task, SHARDS, strategy, section=section, folder=folder, around=around)
    return replace(parts, experiment=Experiment.model_validate({"protection": section, **asked}))


def figures(record: RoundRecord) -> RoundRecord:
    """Without what is measured by the clock."""
    owners = tuple(replace(owner, seconds=0.0) for owner in record.owners)
    return replace(record, seconds={}, work={}, owners=owners)


def told(rounds: Iterator[tuple[ServerState, RoundRecord]]) -> tuple[list[Any], str]:
    """States and records that come, and the error that ends them."""
    found: list[Any] = []
    try:
        for state, record in rounds:
            found.append((state.round, sha256(state.vector), state.barren, state.is_exhausted, figures(record)))
    except RunError as error:
        return found, error.found
    return found, ""


# The same records ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [PLAIN, MASKED], ids=["plain", "masked"])
@pytest.mark.parametrize("every", [1, 2, 3, 9])
@pytest.mark.parametrize("rounds", [1, 4])
def test_records_are_those_of_rounds_one_at_a_time(section: Any, every: int, rounds: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "section": section,
        "rounds": rounds,
        "evaluation": {"every": every, "owners": 3, "train": True},
    }
    found = told(federate_overlapping(made(tmp_path / "overlapping", **settings)))
    assert found == told(federate(made(tmp_path / "one", **settings)))
    assert [one[0] for one in found[0]] == list(range(1, rounds + 1))
    is_evaluated = [bool(one[-1].metrics) for one in found[0]]
    assert is_evaluated == [round % every == 0 or round == rounds for round in range(1, rounds + 1)]


def _lost(last: int, answers: list[Any]) -> list[Any]:
    """Nobody answers after this round."""
    return [one for one in answers if one.round <= last]


def _exhausted(last: int, answers: list[Any]) -> list[Any]:
    return [one if one.round <= last else Absent(one.owner, one.round, "exhausted", "spent") for one in answers]


@pytest.mark.parametrize("last", [0, 1, 3])
@pytest.mark.parametrize("every", [1, 2, 9])
def test_every_round_that_was_finished_comes_before_the_error(last: int, every: int) -> None:
    """After three rounds without an answer the run is given up."""
    settings: dict[str, Any] = {"rounds": 9, "evaluation": {"every": every}}
    around = partial(OneThread, meddle=partial(_lost, last))
    found = told(federate_overlapping(made(around=around, **settings)))
    assert found == told(federate(made(around=around, **settings)))
    assert [one[0] for one in found[0]] == list(range(1, last + 3))
    assert found[1].startswith("for 3 rounds there was no sum of updates")


def test_a_run_that_is_exhausted_ends_after_the_same_round() -> None:
    around = partial(OneThread, meddle=partial(_exhausted, 2))
    found = told(federate_overlapping(made(around=around, rounds=9)))
    assert found == told(federate(made(around=around, rounds=9)))
    assert [one[3] for one in found[0]] == [False, False, True]


# At the same time ----------------------------------------------------------------------------------------------------


class Rendezvous(OneThread):
    """Training after round 1 ends when the evaluation before it has begun; that ends when this training has begun."""

    def __init__(self, cohort: Any, n_rounds: int) -> None:
        super().__init__(cohort)
        self._trains = [threading.Event() for _ in range(n_rounds + 2)]
        self._evaluates = [threading.Event() for _ in range(n_rounds + 2)]
        self._n_rounds = n_rounds
        self._n_evaluated = 0
        self.met: list[bool] = []

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Any]:
        round = assignments[0].plan.round
        self._trains[round].set()
        if round > 1:
            self.met.append(self._evaluates[round - 1].wait(WAIT_S))
        return super().train(vector, assignments)

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        self._n_evaluated += 1
        self._evaluates[self._n_evaluated].set()
        if self._n_evaluated < self._n_rounds:
            self.met.append(self._trains[self._n_evaluated + 1].wait(WAIT_S))
        return super().evaluate(vector, part, owners)


def test_a_model_is_evaluated_while_the_next_round_trains() -> None:
    """Each waits for the other, so that one after the other would never end well."""
    opened: list[Rendezvous] = []

    def around(cohort: Any) -> Rendezvous:
        opened.append(Rendezvous(cohort, n_rounds=4))
        return opened[-1]

    assert len(list(federate_overlapping(made(around=around)))) == 4
    assert opened[0].met == [True] * 6


class Noting(OneThread):
    """Notes the rounds that train."""

    def __init__(self, cohort: Any, noted: list[int]) -> None:
        super().__init__(cohort)
        self._noted = noted

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Absent]:
        self._noted.append(assignments[0].plan.round)
        return super().train(vector, assignments)


@pytest.mark.parametrize(
    ("rounds", "every", "expected"),
    [
        (federate, 1, [1, 2, 3, 4]),
        (federate_overlapping, 1, [2, 3, 4, 4]),
        (federate_overlapping, 2, [1, 3, 3, 4]),
        (federate_overlapping, 9, [1, 2, 3, 4]),
    ],
)
def test_only_a_round_that_is_evaluated_waits_for_the_next(rounds: Rounds, every: int, expected: list[int]) -> None:
    """How far training is when each record comes."""
    noted: list[int] = []
    running = rounds(made(around=partial(Noting, noted=noted), evaluation={"every": every}))
    assert [noted[-1] for _ in running] == expected


@pytest.mark.parametrize(
    ("privacy", "n_trained"),
    [("none", 2), ({"name": "example", "noise_multiplier": 1.0}, 1), ({"name": "owner", "noise_multiplier": 1.0}, 1)],
    ids=["none", "example", "owner"],
)
def test_the_server_trains_ahead_only_where_that_costs_no_privacy(privacy: Any, n_trained: int) -> None:
    noted: list[int] = []
    settings = {"strategy": {"name": "fedprox", "mu": 0.1, "weighting": "uniform"}, "privacy": privacy}
    server = ServerActor(lambda: made(around=partial(Noting, noted=noted), **settings))
    assert list(server.start().names) == list("abcde")
    assert not noted, "nothing runs before it is asked for"
    after = server.advance()
    assert after is not None
    state, record = after
    assert record.round == 1
    assert noted == list(range(1, n_trained + 1))
    assert sha256(state.vector) == record.parameters_sha256


# When things go wrong ------------------------------------------------------------------------------------------------


class Blind(OneThread):
    """Cannot be evaluated."""

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        raise ZeroDivisionError("no rows")


def test_what_an_evaluation_raises_comes_where_its_record_would() -> None:
    rounds = federate_overlapping(made(around=Blind, evaluation={"every": 2}))
    assert next(rounds)[1].round == 1
    with pytest.raises(ZeroDivisionError, match="no rows"):
        next(rounds)


def test_who_leaves_early_leaves_no_thread_behind() -> None:
    rounds = federate_overlapping(made())
    next(rounds)
    assert any(thread.name.startswith("evaluate") for thread in threading.enumerate())
    rounds.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("evaluate") for thread in threading.enumerate())
