"""What every Cohort must do. A test class derives from ``CohortContract`` and gives the fixture ``opens_cohort``.

For owners in other processes, ``toys`` must be importable there, or be pickled by value.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from toys import Patient, Talkative, assignment, is_there, openers, plan, shard, torch_task

from fedray.owners import Owner
from fedray.pools import OneByOne, Place, Pool
from fedray.protocols import BackgroundCohort, Cohort, Trainer
from fedray.values import Absent, Assignment, Choice, Kept, Sealed, Shard, Staleness, Work

OpensCohort = Callable[[Mapping[str, Callable[[], Owner]]], Cohort]

SHARDS: dict[str, Shard] = {"b": shard(9, 4, seed=1), "a": shard(12, 5, seed=2), "c": shard(5, 0, seed=3)}
VECTOR = torch_task().initial(1)


class SinglePools:
    """Makes pools that send every update by itself, as for protections that take no subtotals."""

    def open(self, openers: Mapping[str, Callable[[], Owner]], place: Place | None = None) -> Pool:
        return Pool(openers, place=place)

    def choose(self, sizes: Sequence[int]) -> Choice:
        return Choice(1, f"one at a time: there are {len(sizes)} owners")

    def trainer(self, at_once: int) -> Trainer:
        assert at_once == 1
        return OneByOne()


class CohortContract:
    @pytest.fixture
    def opens_cohort(self) -> OpensCohort:
        raise NotImplementedError

    @pytest.fixture
    def cohort(self, opens_cohort: OpensCohort) -> Iterator[Cohort]:
        cohort = opens_cohort(openers(torch_task, SHARDS))
        yield cohort
        cohort.close()

    @pytest.fixture
    def alone(self) -> dict[str, Owner]:
        """The same owners, asked without any cohort."""
        return {name: opened() for name, opened in openers(torch_task, SHARDS).items()}

    def test_owners_are_listed_by_name_with_their_rows(self, cohort: Cohort) -> None:
        found = cohort.population
        assert list(found.names) == ["a", "b", "c"]
        assert (found.n_train.tolist(), found.n_holdout.tolist()) == ([12, 9, 5], [5, 4, 0])

    def test_everyone_asked_answers_once_with_the_bits_of_that_owner(
        self, cohort: Cohort, alone: Mapping[str, Owner]
    ) -> None:
        asked = [assignment(plan(2, round=4), owner) for owner in ("c", "a")]
        answers = list(cohort.train(VECTOR, asked))
        assert sorted(answer.owner for answer in answers) == ["a", "c"]
        for answer, expected in [(one, alone[one.owner].train(VECTOR, _for(one.owner, asked))) for one in answers]:
            assert isinstance(answer, Sealed)
            assert isinstance(expected, Sealed)
            assert answer.round == 4
            assert answer.payload.tobytes() == expected.payload.tobytes()
            assert (answer.n_steps, answer.is_complete, answer.spent) == (expected.n_steps, True, None)

    def test_nobody_asked_gives_no_answer(self, cohort: Cohort) -> None:
        assert list(cohort.train(VECTOR, [])) == []

    def test_owners_remember_nothing_from_round_to_round(self, cohort: Cohort) -> None:
        asked = [assignment(plan(round=2), "a")]
        (first,) = cohort.train(VECTOR, asked)
        list(cohort.train(VECTOR + 1, [assignment(plan(round=3), "a")]))
        (again,) = cohort.train(VECTOR, asked)
        assert isinstance(first, Sealed)
        assert isinstance(again, Sealed)
        assert first.payload.tobytes() == again.payload.tobytes()

    @pytest.mark.parametrize("accepts", [True, False])
    def test_partial_work_comes_marked_or_not_at_all(self, cohort: Cohort, accepts: bool) -> None:
        (answer,) = cohort.train(VECTOR, [assignment(plan(3, partial_work=accepts), "a", amount=1)])
        if accepts:
            assert isinstance(answer, Sealed)
            assert not answer.is_complete
        else:
            assert isinstance(answer, Absent)
            assert answer.outcome == "dropped"

    def test_an_update_that_is_not_finite_stays_at_its_owner(self, cohort: Cohort) -> None:
        (answer,) = cohort.train(np.full_like(VECTOR, np.nan), [assignment(plan(), "b")])
        assert isinstance(answer, Absent)
        assert (answer.owner, answer.outcome) == ("b", "rejected")

    @pytest.mark.parametrize("part", ["train", "holdout"])
    def test_everyone_is_evaluated_on_its_own_rows(self, cohort: Cohort, alone: Mapping[str, Owner], part: str) -> None:
        found = dict(cohort.evaluate(VECTOR, part, cohort.population.names))
        assert found == {name: owner.evaluate(VECTOR, part) for name, owner in alone.items()}

    def test_no_answer_holds_a_row(self, cohort: Cohort) -> None:
        answers = pickle.dumps(
            [
                list(cohort.train(VECTOR, [assignment(plan(), name) for name in SHARDS])),
                dict(cohort.evaluate(VECTOR, "train", list(SHARDS))),
                cohort.population,
            ]
        )
        for held in SHARDS.values():
            assert not any(row.tobytes() in answers for row in held.train.features)

    def test_everyone_that_is_sent_a_message_answers_under_its_name(self, opens_cohort: OpensCohort) -> None:
        cohort = opens_cohort({name: partial(_talkative, name) for name in SHARDS})
        messages = {"c": b"ciao", "a": b"ahoi"}
        assert dict(cohort.ask(3, messages)) == {"a": b"a: ahoi", "c": b"c: ciao"}
        assert dict(cohort.ask(3, {})) == {}
        assert messages == {"c": b"ciao", "a": b"ahoi"}
        cohort.close()

    def test_an_owner_that_refuses_a_message_is_absent_with_a_reason(self, opens_cohort: OpensCohort) -> None:
        cohort = opens_cohort({name: partial(_talkative, name) for name in SHARDS})
        answers = cohort.ask(7, {"a": b"no thanks", "b": b"hello"})
        refused = answers["a"]
        assert isinstance(refused, Absent)
        assert (refused.owner, refused.round, refused.outcome) == ("a", 7, "refused")
        assert "what must not be given" in refused.reason
        assert answers["b"] == b"b: hello"
        cohort.close()

    def test_only_owners_that_are_named_are_evaluated(self, cohort: Cohort, alone: Mapping[str, Owner]) -> None:
        assert dict(cohort.evaluate(VECTOR, "train", ["b"])) == {"b": alone["b"].evaluate(VECTOR, "train")}
        assert dict(cohort.evaluate(VECTOR, "train", [])) == {}

    def test_owners_tell_the_server_what_they_signed(self, opens_cohort: OpensCohort) -> None:
        cohort = opens_cohort({"a": partial(_talkative, "a")})
        (answer,) = cohort.train(VECTOR, [assignment(plan(), "a")])
        assert isinstance(answer, Sealed)
        assert answer.proof == b"signed"
        cohort.close()

    def test_owners_answer_messages_while_they_train(self, opens_cohort: OpensCohort, tmp_path: Path) -> None:
        """Training ends when the message has been answered, so one that waited for the other would never end."""
        trains, heard = tmp_path / "trains", tmp_path / "heard"

        def ask() -> Mapping[str, bytes | Absent]:
            assert is_there(trains)
            return cohort.ask(2, {"a": b"hello"})

        cohort = opens_cohort({"a": partial(_patient, "a", trains, heard)})
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(ask)
            (answer,) = cohort.train(np.zeros(3, np.float32), [assignment(plan(partial_work=True), "a")])
            assert dict(asking.result()) == {"a": b"a: hello"}
        assert isinstance(answer, Sealed)
        assert answer.is_complete, "the message was not answered while the owner trained"
        cohort.close()

    def test_what_was_worked_is_told_once_in_seconds(self, cohort: Cohort) -> None:
        list(cohort.train(VECTOR, [assignment(plan(), "a")]))
        dict(cohort.evaluate(VECTOR, "holdout", ["a"]))
        worked = dict(cohort.work())
        assert set(worked) <= {"open", "train", "seal", "add", "evaluate", "carry", "wait"}
        assert all(seconds >= 0 for seconds in worked.values())
        assert not any(cohort.work().values())

    def test_a_cohort_may_be_closed_twice(self, cohort: Cohort) -> None:
        cohort.close()
        cohort.close()


class BackgroundContract:
    """What cohorts must do besides whose owners also train in the background."""

    @pytest.fixture
    def opens_cohort(self) -> OpensCohort:
        raise NotImplementedError

    @pytest.fixture
    def cohort(self, opens_cohort: OpensCohort) -> Iterator[BackgroundCohort]:
        cohort = opens_cohort(openers(torch_task, SHARDS))
        assert isinstance(cohort, BackgroundCohort)
        yield cohort
        cohort.close()

    def test_what_is_trained_in_the_background_is_told_once_and_sealed_when_asked(
        self, cohort: BackgroundCohort
    ) -> None:
        """Each from a model of its own; the bits are those of the owner asked without any cohort."""
        models = {"a": VECTOR, "c": VECTOR + np.float32(0.25)}
        for name, vector in models.items():
            cohort.begin(vector, _stale(name, round=2))
        kept = [one for _ in models for one in cohort.ended()]
        assert {(one.owner, one.round, type(one)) for one in kept} == {("a", 2, Kept), ("c", 2, Kept)}
        assert list(cohort.ended()) == []
        sealed = {one.owner: one for one in cohort.seal([_stale(name, round=5) for name in models])}
        alone = {name: opened() for name, opened in openers(torch_task, SHARDS).items()}
        for name, vector in models.items():
            alone[name].train_and_keep(vector, _stale(name, round=2))
            found, expected = sealed[name], alone[name].seal(_stale(name, round=5))
            assert isinstance(found, Sealed)
            assert isinstance(expected, Sealed)
            assert (found.round, found.payload.tobytes()) == (5, expected.payload.tobytes())

    def test_owners_answer_and_are_evaluated_between_training_and_sealing(self, cohort: BackgroundCohort) -> None:
        cohort.begin(VECTOR, _stale("a", round=2))
        assert [one.owner for one in cohort.ended()] == ["a"]
        assert set(dict(cohort.evaluate(VECTOR, "train", ["a", "b"]))) == {"a", "b"}
        (sealed,) = cohort.seal([_stale("a", round=2)])
        assert isinstance(sealed, Sealed)

    def test_an_owner_that_keeps_nothing_has_nothing_to_seal(self, cohort: BackgroundCohort) -> None:
        (answer,) = cohort.seal([_stale("b", round=3)])
        assert isinstance(answer, Absent)
        assert (answer.owner, answer.round, answer.outcome) == ("b", 3, "absent")

    def test_an_owner_that_cannot_train_says_why_in_the_background_too(self, cohort: BackgroundCohort) -> None:
        cohort.begin(VECTOR, replace(_stale("a", round=2), work=Work(1, "epochs")))
        (answer,) = cohort.ended()
        assert isinstance(answer, Absent)
        assert (answer.owner, answer.round, answer.outcome) == ("a", 2, "dropped")

    def test_of_an_owner_that_is_forgotten_nothing_is_told(self, cohort: BackgroundCohort) -> None:
        cohort.begin(VECTOR, _stale("a", round=2))
        cohort.begin(VECTOR, _stale("b", round=2))
        cohort.forget("a")
        assert [one.owner for one in cohort.ended()] == ["b"]
        assert list(cohort.ended()) == []


def _stale(name: str, round: int) -> Assignment:
    return assignment(replace(plan(2, round=round), staleness=Staleness(power=1.0, most=9)), name)


def _talkative(name: str) -> Owner:
    return Owner(name, SHARDS[name], torch_task(), Talkative(name), 0)


def _patient(name: str, trains: Path, heard: Path) -> Owner:
    return Owner(name, SHARDS[name], Patient(trains, heard), Talkative(name, heard), 0)


def _for(owner: str, asked: list) -> object:
    return next(one for one in asked if one.owner == owner)
