"""One owner: what leaves it, and what it says when nothing does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toys import assignment, openers, plan, shard, torch_task

from fedray.errors import BudgetExhausted
from fedray.owners import Owner
from fedray.protection.plain import PlainProtection
from fedray.values import Absent, Sealed, Spent, Update

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
    spent = Spent(1.0, 2.0, 1e-5)


def _owner(task: Any, name: str = "a", seed: int = 0, account: Any = None) -> Owner:
    return Owner(name, shard(), task, PlainProtection(3).sealer(name), seed, account)


def test_an_update_leaves_sealed_with_what_the_server_may_know() -> None:
    answer = _owner(Scripted(GOOD), account=Bank()).train(VECTOR, assignment(plan(round=6)))
    assert isinstance(answer, Sealed)
    assert answer.payload.tolist() == [12 * 2**28, 12 * 2**28, 12 * 2**28, 12]
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
        (BudgetExhausted("found", "expected", "do"), "refused"),
    ],
    ids=["partial", "no step", "misshapen", "not finite", "too large", "no weight", "budget"],
)
def test_what_cannot_be_used_is_absent_with_a_reason(given: Any, outcome: str) -> None:
    answer = _owner(Scripted(given), account=Bank()).train(VECTOR, assignment(plan(round=6)))
    assert isinstance(answer, Absent)
    assert (answer.owner, answer.round, answer.outcome, answer.spent) == ("a", 6, outcome, Bank.spent)
    assert answer.reason


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
