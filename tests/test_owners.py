"""One owner: what leaves it, and what it says when nothing does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys import Talkative, assignment, openers, plan, shard, torch_task

from fedray.errors import BudgetExhausted, ProtocolError
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.plain import PlainSealer
from fedray.protocols import Sealer
from fedray.values import Absent, Sealed, Spent, Tally, Update, Work

VECTOR = np.zeros(3, dtype=np.float32)
GOOD = Update(np.ones(3, dtype=np.float32), 12, 4, True)


class Scripted:
    """A task that answers what it was told to, and notes the seeds that it is given."""

    n_parameters = 3

    def __init__(self, answer: Update | Exception) -> None:
        self.answer, self.seeds = answer, []

    def train(self, vector: Any, assignment: Any, shard: Any, seed: int) -> Update:
        self.seeds.append(seed)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Bank:
    spent = Spent(1.0, "PLD", 2.0, 1e-5)


FIXED_POINT = FixedPoint(3, n_owners=3, clip=8.0, precision=2.0**-16)


def _owner(task: Any, name: str = "a", seed: int = 0, account: Any = None, sealer: Sealer | None = None) -> Owner:
    return Owner(name, shard(), task, sealer or PlainSealer(FIXED_POINT, seed), seed, account)


def test_an_update_leaves_sealed_with_what_the_server_may_know() -> None:
    answer = _owner(Scripted(GOOD), account=Bank()).train(VECTOR, assignment(plan(round=6)))
    assert isinstance(answer, Sealed)
    assert answer.payload.tolist() == [12 * 2**16 // 32] * 3 + [12, 0]
    assert answer.proof == b""
    assert (answer.owner, answer.round, answer.n_steps, answer.is_complete) == ("a", 6, 4, True)
    assert answer.spent == Bank.spent
    assert answer.seconds >= 0


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (replace(GOOD, is_complete=False), "dropped"),
        (replace(GOOD, n_steps=0), "dropped"),
        (replace(GOOD, delta=np.ones(4, dtype=np.float32)), "rejected"),
        (replace(GOOD, delta=np.full(3, np.nan, dtype=np.float32)), "rejected"),
        (replace(GOOD, delta=np.full(3, 1e9, dtype=np.float32)), "rejected"),
        (replace(GOOD, weight=0), "rejected"),
        (replace(GOOD, weight=33), "rejected"),
        (BudgetExhausted("found", "expected", "do"), "exhausted"),
    ],
    ids=["partial", "no step", "misshapen", "not finite", "too large", "no weight", "too heavy", "budget"],
)
def test_what_cannot_be_used_is_absent_with_a_reason(given: Any, outcome: str) -> None:
    answer = _owner(Scripted(given), account=Bank()).train(VECTOR, assignment(plan(round=6)))
    assert isinstance(answer, Absent)
    assert (answer.owner, answer.round, answer.outcome, answer.spent) == ("a", 6, outcome, Bank.spent)
    assert answer.reason


class Refusing(Talkative):
    """A sealer whose round was not prepared."""

    def seal(self, update: Update, assignment: Any, terms: bytes) -> Any:
        raise ProtocolError("round 6 that this owner has not joined", "one that it has", "ask again")


def test_a_round_that_was_not_prepared_is_refused_and_what_it_cost_is_said() -> None:
    answer = _owner(Scripted(GOOD), account=Bank(), sealer=Refusing("a")).train(VECTOR, assignment(plan(round=6)))
    assert isinstance(answer, Absent)
    assert (answer.owner, answer.round, answer.outcome, answer.spent) == ("a", 6, "refused", Bank.spent)
    assert answer.reason == "round 6 that this owner has not joined; expected one that it has"


def test_an_owner_joins_with_its_rows() -> None:
    info = _owner(Scripted(GOOD), sealer=Talkative("a")).join()
    assert (info.name, info.n_train, info.n_holdout) == ("a", 12, 5)


def test_what_the_sealer_signed_leaves_with_the_update() -> None:
    answer = _owner(Scripted(GOOD), sealer=Talkative("a")).train(VECTOR, assignment(plan()))
    assert isinstance(answer, Sealed)
    assert (answer.payload.tolist(), answer.proof) == ([0, 0, 0], b"signed")


def test_the_sealer_is_told_the_assignment() -> None:
    """Its briefing, and what weights are scaled by."""

    class Noting(Talkative):
        def seal(self, update: Update, assignment: Any, terms: bytes) -> Any:
            seen.append((assignment, terms))
            return super().seal(update, assignment, terms)

    seen: list[Any] = []
    asked = assignment(plan(round=4), weight_bound=16, briefing=b"who takes part")
    answer = _owner(Scripted(GOOD), sealer=Noting("a")).train(VECTOR, asked)
    assert seen == [(asked, asked.terms(VECTOR))]
    assert isinstance(answer, Sealed)
    assert answer.terms == asked.terms(VECTOR)
    light = _owner(Scripted(GOOD)).train(VECTOR, asked)
    assert isinstance(light, Sealed)
    assert light.payload.tolist() == [12 * 2**16 // 16] * 3 + [12, 0]


def test_terms_tell_models_plans_and_scales_apart_and_nothing_else() -> None:
    """What all owners of a sum must be asked alike; who is asked, and for how much of it, may differ."""
    asked, vector = assignment(plan(3, mu=0.5)), np.array([1.0, -2.0, 0.0], np.float32)
    tiny, negative_zero = vector.copy(), vector.copy()
    tiny[2], negative_zero[2] = np.float32(1e-45), np.float32(-0.0)
    different = [
        asked.terms(vector),
        asked.terms(tiny),
        asked.terms(negative_zero),
        asked.terms(vector[:2]),
        asked.terms(vector[None]),
        replace(asked, weight_bound=64).terms(vector),
        *(
            replace(asked, plan=other).terms(vector)
            for other in (
                plan(4, mu=0.5),
                plan(3, "steps", mu=0.5),
                plan(3),
                plan(3, mu=0.5, round=2),
                plan(3, mu=0.5, partial_work=True),
                plan(3, mu=0.5, weighting="uniform"),
            )
        ),
    ]
    assert len(set(different)) == len(different)
    assert {len(terms) for terms in different} == {32}
    alike = [
        replace(asked, owner="b"),
        replace(asked, work=Work(1, "epochs")),
        replace(asked, deadline_s=3.0),
        replace(asked, briefing=b"who takes part"),
    ]
    assert {one.terms(vector.copy()) for one in alike} == {asked.terms(vector)}
    assert asked.terms(np.stack([vector, vector])[:, :].T[:, 0]) == asked.terms(vector), "whatever its strides"
    assert asked.terms(vector.astype(">f4")) == asked.terms(vector), "whatever the machine"


def test_terms_are_those_of_what_was_given_even_where_training_changes_it() -> None:
    class Overwriting(Scripted):
        def train(self, vector: Any, assignment: Any, shard: Any, seed: int) -> Update:
            vector += 1
            return super().train(vector, assignment, shard, seed)

    given = VECTOR.copy()
    answer = _owner(Overwriting(GOOD)).train(given, assignment(plan()))
    assert isinstance(answer, Sealed)
    assert answer.terms == assignment(plan()).terms(VECTOR)


def test_messages_go_to_the_sealer_and_refusals_come_back_as_reasons() -> None:
    owner = _owner(Scripted(GOOD), "b", sealer=Talkative("b"))
    assert owner.answer(3, b"hello") == b"b: hello"
    refused = owner.answer(3, b"no thanks")
    assert isinstance(refused, Absent)
    assert (refused.owner, refused.round, refused.outcome) == ("b", 3, "refused")
    assert refused.reason == "a request for what must not be given; expected another"


def test_under_plain_protection_no_message_is_answered() -> None:
    refused = _owner(Scripted(GOOD)).answer(1, b"give me your rows")
    assert isinstance(refused, Absent)
    assert refused.outcome == "refused"
    assert "rows" not in refused.reason


def test_partial_work_without_a_single_step_is_not_used_even_where_partial_work_is() -> None:
    owner = openers(torch_task, {"a": shard()})["a"]()
    answer = owner.train(torch_task().initial(0), assignment(plan(5, partial_work=True), deadline_s=1e-9))
    assert isinstance(answer, Absent)
    assert (answer.outcome, answer.spent) == ("dropped", None)


def test_what_a_task_raises_reaches_the_debugger() -> None:
    with pytest.raises(ZeroDivisionError):
        _owner(Scripted(ZeroDivisionError())).train(VECTOR, assignment(plan()))


def test_every_owner_and_round_and_experiment_has_batches_of_its_own() -> None:
    seeds = []
    for name, seed in (("a", 0), ("b", 0), ("a", 1)):
        task = Scripted(GOOD)
        for round in (1, 2, 1):
            _owner(task, name, seed).train(VECTOR, assignment(plan(round=round), name))
        assert task.seeds[0] == task.seeds[2]
        seeds += task.seeds[:2]
    assert len(set(seeds)) == 6


# Owner-level privacy ------------------------------------------------------------------------------------------------


class Half:
    """An owner's half of owner-level privacy that notes what it is asked, in order."""

    def __init__(self, seen: list[Any], refusal: Exception | None = None) -> None:
        self._seen, self._refusal = seen, refusal

    def charge(self, round: int) -> None:
        self._seen.append(("charged", round))
        if self._refusal:
            raise self._refusal

    def bounded(self, update: Update, plan: Any, metrics: Any) -> Update:
        self._seen.append(("bounded", update, plan.clip, metrics()))
        return replace(update, delta=update.delta / 2, weight=1)


class Measured(Scripted):
    """A task that can also say how good a model is, and notes when it trains."""

    def __init__(self, answer: Update, seen: list[Any]) -> None:
        super().__init__(answer)
        self._seen = seen

    def train(self, vector: Any, assignment: Any, shard: Any, seed: int) -> Update:
        self._seen.append("trained")
        return super().train(vector, assignment, shard, seed)

    def evaluate(self, vector: Any, examples: Any) -> Tally:
        return Tally({"accuracy": float(vector.sum()) * len(examples)}, len(examples))


def _with_half(task: Any, half: Half) -> Owner:
    return Owner("a", shard(), task, PlainSealer(FIXED_POINT, 0), 0, contribution=half)


def test_an_owner_is_charged_before_it_trains_and_sends_what_was_bounded() -> None:
    """Its figures are those of the model that the round began with."""
    seen: list[Any] = []
    asked = assignment(replace(plan(round=6), clip=0.25))
    answer = _with_half(Measured(GOOD, seen), Half(seen)).train(np.full(3, 2.0, np.float32), asked)
    assert seen == [("charged", 6), "trained", ("bounded", GOOD, 0.25, {"accuracy": 6.0})]
    assert isinstance(answer, Sealed)
    assert answer.payload.tolist() == [2**16 // 2 // 32] * 3 + [1, 0]
    assert answer.spent is None, "the server knows what owner-level privacy costs"


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        (BudgetExhausted("epsilon 3 in round 6", "at most 2", "stop"), "exhausted"),
        (ProtocolError("epsilon 3 in round 6", "at most 2", "stop"), "refused"),
    ],
)
def test_an_owner_that_may_not_take_part_does_not_train(refusal: Exception, outcome: str) -> None:
    seen: list[Any] = []
    answer = _with_half(Measured(GOOD, seen), Half(seen, refusal)).train(VECTOR, assignment(plan(round=6)))
    assert isinstance(answer, Absent)
    assert (answer.outcome, answer.reason) == (outcome, "epsilon 3 in round 6; expected at most 2")
    assert seen == [("charged", 6)]


def test_private_figures_are_all_that_an_owner_says_of_its_rows() -> None:
    class Noisy:
        def __call__(self, evaluate: Any) -> Tally:
            true = evaluate()
            return Tally({"accuracy": true.sums["accuracy"] + 0.5}, true.count)

    owner = Owner("a", shard(), Measured(GOOD, []), PlainSealer(FIXED_POINT, 0), 0, noisy=Noisy())
    assert owner.evaluate(np.ones(3, np.float32), "holdout") == Tally({"accuracy": 15.5}, 5)


def test_an_owner_without_a_budget_for_figures_is_left_out_of_the_evaluation() -> None:
    def spent(evaluate: Any) -> Tally:
        raise BudgetExhausted("found", "expected", "do")

    def owner(name: str, noisy: Any) -> Owner:
        return Owner(name, shard(), Measured(GOOD, []), PlainSealer(FIXED_POINT, 0), 0, noisy=noisy)

    cohort = InProcessCohort({"a": lambda: owner("a", spent), "b": lambda: owner("b", None)})
    assert [name for name, _ in cohort.evaluate(VECTOR, "holdout", ["a", "b"])] == ["b"]
