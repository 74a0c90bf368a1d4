"""Rounds that are closed before everyone has answered: by the clock, or by enough updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import MASKED, PLAIN, Meddling, changed, federation, openers, plan, shard, torch_task

from fedray import build
from fedray.config import Experiment, validated
from fedray.config.learning import FixedSize, Stragglers
from fedray.errors import ConfigError
from fedray.pools import InProcessCohort
from fedray.rounds import federate
from fedray.selection import assignments, cohort_of_round, planned_rounds
from fedray.values import Absent, Assignment, RoundRecord, Sealed, Vector

SHARDS = {name: shard(6 + place, 3, seed=place) for place, name in enumerate("abcdef")}
LOGISTIC = partial(torch_task, "logistic")


class Tardy(Meddling):
    """A cohort of which nobody answers that is named; it knows who was asked and when its answers were wanted no more.

    Args:
        late: owners without an answer.
    """

    def __init__(self, cohort: Any, late: str) -> None:
        super().__init__(cohort, lambda answers: answers)
        self._late = late
        self.patience: list[float | None] = []
        self.given: list[str] = []
        self.n_closed = 0

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Absent]:
        self.patience.append(patience_s)
        try:
            for answer in super().train(vector, [one for one in assignments if one.owner not in self._late]):
                self.given.append(answer.owner)
                yield answer
        finally:
            self.n_closed += 1


def outcomes(record: RoundRecord) -> Mapping[str, tuple[str, str]]:
    return {owner.name: (owner.outcome, owner.reason) for owner in record.owners if owner.outcome != "idle"}


def test_whoever_has_not_answered_when_a_round_is_closed_by_the_clock_is_dropped() -> None:
    around = partial(Tardy, late="be")
    made = federation(LOGISTIC, SHARDS, around=around, schedule={"name": "synchronous", "close_after_s": 2.5})
    ((_, record),) = federate(made)
    assert isinstance(made.cohort, Tardy)
    assert made.cohort.patience == [2.5]
    assert record.n_updates == 4
    assert record.cohort == tuple("abcdef")
    assert outcomes(record) == {
        name: ("dropped", "the round was closed after 2.5 s") if name in "be" else ("update", "") for name in "abcdef"
    }


def test_an_open_round_says_nothing_of_closing() -> None:
    made = federation(LOGISTIC, SHARDS, around=partial(Tardy, late="be"))
    ((_, record),) = federate(made)
    assert isinstance(made.cohort, Tardy)
    assert made.cohort.patience == [None]
    assert outcomes(record)["b"] == ("absent", "")


def test_a_round_is_closed_with_the_first_updates_that_enter_the_sum() -> None:
    """Six are asked, one gives an update that is refused: it does not count."""
    made = federation(
        LOGISTIC,
        SHARDS,
        around=partial(Refused, late=""),
        cohort={"name": "fixed", "size": 3, "over_select": 0.9},
        rounds=2,
    )
    for number, (_, record) in enumerate(federate(made), start=1):
        assert isinstance(made.cohort, Refused)
        assert len(record.cohort) == 6
        assert record.n_updates == 3
        assert len(made.cohort.given) == 4, "nobody is listened to after that"
        assert made.cohort.n_closed == number
        first, *taken = made.cohort.given
        late = ("dropped", "the round was closed after 3 updates")
        assert outcomes(record) == {
            first: ("rejected", "an update of f for round 99"),
            **dict.fromkeys(taken, ("update", "")),
            **dict.fromkeys(set("abcdef") - {first, *taken}, late),
        }
        made.cohort.given.clear()


class Refused(Tardy):
    """The first answer is to another question."""

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Absent]:
        for place, answer in enumerate(super().train(vector, assignments, patience_s)):
            yield answer if place else changed(answer, round=99)


def test_the_sum_of_a_round_that_is_closed_is_that_of_those_in_time() -> None:
    def end(**settings: Any) -> bytes:
        *_, (state, _) = federate(federation(LOGISTIC, SHARDS, rounds=3, **settings))
        return state.vector.tobytes()

    closing = {"name": "synchronous", "close_after_s": 9.0}
    gone = partial(Meddling, meddle=lambda answers: [one for one in answers if one.owner not in "be"])
    assert end(around=partial(Tardy, late="be"), schedule=closing) == end(around=gone)
    over = {"name": "fixed", "size": 4, "over_select": 0.5}
    assert end(around=partial(Tardy, late="be"), cohort=over) == end(around=gone)


def test_a_closed_masked_round_has_the_bits_of_a_plain_one(tmp_path: Path) -> None:
    """Who is late has agreed on masks with the others: what they leave in the sum is taken out as of a dropout."""

    def records(section: Any) -> list[RoundRecord]:
        over = {"name": "fixed", "size": 4, "over_select": 0.5}
        around = partial(Tardy, late="be")
        settings = {"section": section, "folder": tmp_path, "around": around, "rounds": 2}
        return [record for _, record in federate(federation(LOGISTIC, SHARDS, cohort=over, **settings))]

    plain, masked = records(PLAIN), records(MASKED)
    assert [one.parameters_sha256 for one in masked] == [one.parameters_sha256 for one in plain]
    assert [one.sum.outcome for one in masked] == ["opened"] * 2
    assert [one.sum.stages["updates"] for one in masked] == [4, 4]


def test_in_one_process_the_clock_is_looked_at_between_owners() -> None:
    cohort = InProcessCohort(openers(LOGISTIC, SHARDS))
    vector = LOGISTIC().initial(0)
    asked = assignments(plan(), tuple(SHARDS), Stragglers(), None, 0)
    assert [one.owner for one in cohort.train(vector, asked, 0.0)] == ["f"]
    assert len(list(cohort.train(vector, asked, 1e9))) == 6


@pytest.mark.parametrize(("size", "over", "n_asked"), [(4, 0.0, 4), (4, 0.5, 6), (4, 0.1, 5), (3, 1.0, 6), (1, 5.0, 6)])
def test_so_many_are_asked(size: int, over: float, n_asked: int) -> None:
    section = FixedSize(size=size, over_select=over)
    names = sorted(SHARDS)
    drawn = [cohort_of_round(section, names, 0, round) for round in range(1, 9)]
    assert [len(set(cohort)) for cohort in drawn] == [n_asked] * 8
    assert planned_rounds(section, names, 0, 8).total() == 8 * n_asked
    experiment = Experiment(cohort=section, data={"name": "digits", "owners": 6}, protection="plain")
    assert (experiment.most_in_a_round(6), experiment.most_in_a_sum(6)) == (n_asked, size)


def test_without_over_selection_the_draw_is_what_it_was() -> None:
    names = sorted(SHARDS)
    assert cohort_of_round(FixedSize(size=4), names, 0, 3) == cohort_of_round(
        FixedSize(size=2, over_select=1.0), names, 0, 3
    )


@pytest.mark.parametrize(
    ("n_owners", "cohort", "protection", "found"),
    [
        (8, {"size": 4, "over_select": 1.0}, {}, ["8 owners asked and 4 in a sum", "at least 5", "over_select"]),
        (8, {"size": 5, "over_select": 0.6}, {}, []),
        (12, {"size": 8, "over_select": 0.5}, {"server": "may_lie"}, ["12 owners asked and 8", "at least 9"]),
        (80, {"size": 50, "over_select": 0.1}, {}, []),
        (80, {"size": 50, "over_select": 0.2}, {}, ["60 owners asked", "at most 10% left out", "dropouts to 0.17"]),
        (80, {"size": 50, "over_select": 0.2}, {"dropouts": 0.17}, []),
    ],
)
def test_over_selection_leaves_a_masked_sum_enough_owners(
    n_owners: int, cohort: dict[str, Any], protection: dict[str, Any], found: list[str]
) -> None:
    data = {"name": "digits", "owners": n_owners}
    keys = {"identities": {f"owner-{n:02d}": f"{n:064x}" for n in range(n_owners)}} if "server" in protection else {}
    settings = {"name": "masked", **protection, **keys}
    experiment = Experiment(data=data, cohort={"name": "fixed", **cohort}, protection=settings)
    if not found:
        build.check(experiment)
        return
    with pytest.raises(ConfigError) as caught:
        build.check(experiment)
    assert all(text in str(caught.value) for text in found), str(caught.value)


def test_a_sum_that_is_closed_with_too_few_for_its_protection_is_refused() -> None:
    """Six are asked, which would do; but of two updates no sum is opened."""
    raw = {"data": {"name": "digits", "owners": 6}, "cohort": {"name": "fixed", "size": 2, "over_select": 2.0}}
    with pytest.raises(ConfigError, match="at least 3 owners, but a round has at most 2"):
        validated(raw)


def test_what_arrives_late_is_in_no_later_round() -> None:
    """A late update of round 1 that is handed in with round 2 is refused, and its owner's own counts."""

    class Belated(Tardy):
        def train(
            self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
        ) -> Iterable[Sealed | Absent]:
            now = list(Meddling.train(self, vector, assignments))
            yield from kept
            kept[:] = [one for one in now if one.owner == "b"]
            yield from (one for one in now if one.owner != "b" or one.round == 2)

    kept: list[Any] = []
    schedule = {"name": "synchronous", "close_after_s": 60.0}
    first, second = (
        record
        for _, record in federate(
            federation(LOGISTIC, SHARDS, around=partial(Belated, late=""), rounds=2, schedule=schedule)
        )
    )
    assert (first.n_updates, second.n_updates, second.n_rejected) == (5, 6, 1)
    assert np.isfinite(second.metrics["loss"])
