"""Many owners on one module: none of them finds anything of another's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import assignment, make_module, plan, shard, torch_task

from fedray.errors import BudgetExhausted, ModelError
from fedray.privacy.dp_sgd import Charges, DpSgdPlan, PrivateDescent
from fedray.privacy.events import Charge
from fedray.privacy.ghost_clipping import GhostDescent
from fedray.protocols import Job
from fedray.tasks.descent import Descent, ShuffledDescent
from fedray.tasks.many import ManyOwners
from fedray.values import Vector


class _NoLimit:
    def charge(self, round: int, charge: Charge) -> None: ...

    def settle(self, round: int, count: int) -> None: ...


NO_LIMIT: Charges = _NoLimit()
ASKED = assignment(plan(2, mu=0.1))


def _descents(n_rows: int) -> dict[str, Descent]:
    return {
        "shuffled": ShuffledDescent(4),
        "private": PrivateDescent(DpSgdPlan(n_rows, 4, 0.5, 0.8), NO_LIMIT, 5),
        "ghost": GhostDescent(DpSgdPlan(n_rows, 4, 0.7, 0.8), NO_LIMIT, 5),
        "ghost of another clip": GhostDescent(DpSgdPlan(n_rows, 4, 0.05, 0.8), NO_LIMIT, 5),
    }


def _alone(kind: str, n_rows: int) -> Vector:
    task = torch_task("mlp", descent=_descents(n_rows)[kind])
    return task.train(task.initial(0), ASKED, shard(n_rows), n_rows).delta


def test_owners_of_one_module_train_as_on_modules_of_their_own() -> None:
    base = torch_task("mlp")
    vector = base.initial(0)
    for n_rows in (12, 7, 9):
        for kind, descent in _descents(n_rows).items():
            found = base.sharing(descent).train(vector, ASKED, shard(n_rows), n_rows).delta
            assert found.tobytes() == _alone(kind, n_rows).tobytes()


def test_there_is_one_module_a_kind_of_descent_however_many_owners() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(make_module("mlp"))
        return made[-1]

    base = torch_task(make)
    vector = base.initial(0)
    made.clear()
    tasks = [base.sharing(descent) for n_rows in range(5, 12) for descent in _descents(n_rows).values()]
    for task in tasks:
        task.train(vector, ASKED, shard(6), 0)
        task.evaluate(vector, shard(6).holdout)
    assert len(made) == 2
    assert len({id(task.bench.module) for task in tasks}) == 3
    assert len({id(task.bench.model) for task in tasks}) == 3


class Fails(nn.Module):
    """Raises in the middle of its second training step, with activations kept for a backward pass to come."""

    def __init__(self, at: list[int]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.training:
            self.at[0] -= 1
            if self.at[0] == 0:
                raise RuntimeError("out of memory")
        scores: Tensor = self.second(hidden)
        return scores


@pytest.mark.parametrize("kind", ["shuffled", "private", "ghost"])
def test_an_owner_that_failed_leaves_nothing_to_the_next(kind: str) -> None:
    fails_at = [-1]
    base = torch_task(partial(Fails, fails_at))
    vector = base.initial(0)
    expected = base.sharing(_descents(12)[kind]).train(vector, ASKED, shard(12), 3).delta
    fails_at[0] = 2
    with pytest.raises(RuntimeError, match="out of memory"):
        base.sharing(_descents(12)[kind]).train(vector, ASKED, shard(12, seed=9), 3)
    again = base.sharing(_descents(12)[kind]).train(vector, ASKED, shard(12), 3).delta
    assert again.tobytes() == expected.tobytes()


def test_a_refusal_and_a_model_of_another_size_cost_neither_module_nor_budget() -> None:
    class Refuses(_NoLimit):
        def charge(self, round: int, charge: Charge) -> None:
            raise BudgetExhausted("too many steps", "fewer", "stop")

    task = torch_task("mlp", descent=PrivateDescent(DpSgdPlan(12, 4, 0.5, 0.8), Refuses()))
    bench = task.bench
    with pytest.raises(BudgetExhausted):
        task.train(task.initial(0), ASKED, shard(12), 0)
    with pytest.raises(ModelError, match=r"a vector of shape \(3,\)"):
        task.train(np.zeros(3, np.float32), ASKED, shard(12), 0)
    many, job = ManyOwners(task, 2), Job(task, ASKED, shard(12), 0)
    with pytest.raises(ModelError, match=r"a vector of shape \(3,\)"):
        many.train(np.zeros(3, np.float32), [job, job])
    assert task.bench is bench


def test_rehearsals_charge_nobody_and_draw_the_same_twice() -> None:
    class Refuses(_NoLimit):
        def charge(self, round: int, charge: Charge) -> None:
            raise AssertionError("charged")

    private = PrivateDescent(DpSgdPlan(500, 4, 0.5, 0.8), Refuses())
    drawn = [private.rehearsal(12).draw(ASKED, 12, 0) for _ in range(2)]
    one, other = ([rows.tolist() for rows in draws.batches] for draws in drawn)
    assert one == other
    assert len(one) == drawn[0].n_steps == 6
    assert all(draws.clipping is not None for draws in drawn)
    noise = [draws.clipping.noise.standard_normal(3) for draws in drawn if draws.clipping]
    assert np.array_equal(*noise)


def test_secrets_of_a_draw_do_not_show() -> None:
    draws = PrivateDescent(DpSgdPlan(12, 4, 0.5, 0.8), NO_LIMIT).draw(ASKED, 12, 0)
    assert "noise" not in repr(draws.clipping)
    assert "Generator" not in repr(draws)
    assert torch.is_tensor(next(draws.batches))
