"""Owners trained together come out as each would alone, on its own draws and at its own cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import MODELS, TABLE, assignment, examples, make_module, plan, shard, torch_task

from fedray.errors import BudgetExhausted, FedrayError
from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent, make_private
from fedray.privacy.events import Charge
from fedray.privacy.ghost_clipping import GhostDescent
from fedray.protocols import Job, Trainer
from fedray.tasks.descent import Descent, ShuffledDescent
from fedray.tasks.losses import accuracy, cross_entropy
from fedray.tasks.many import ManyOwners
from fedray.tasks.torch_task import TorchTask
from fedray.values import Examples, Shard, Update, Vector

TOLERANCE = 1e-5
"""Distance over the update's norm; 400 random cohorts of three models came to 1.5e-6."""
ADAMS_TOLERANCE = 1e-3
"""Adam divides a gradient by its size: one that is nothing but rounding becomes a step. A search came to 3e-5."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
}


class _Account:
    """Has room for so many steps."""

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.charged: list[int] = []
        self.settled: list[int] = []

    def charge(self, round: int, charge: Charge) -> None:
        if charge.count > self.room:
            raise BudgetExhausted("too many steps", "fewer", "stop")
        self.charged.append(charge.count)

    def settle(self, round: int, count: int) -> None:
        self.settled.append(count)


@dataclass(frozen=True)
class Cohort:
    """How many rows owners have, and what they are asked."""

    sizes: list[int]
    amounts: list[int]
    unit: str
    batch: int
    mu: float
    at_once: int

    def jobs(self, task: TorchTask, model: str, descent_of: Callable[[int], Descent]) -> list[Job]:
        asked = plan(max(self.amounts), self.unit, mu=self.mu)
        return [
            Job(task.sharing(descent_of(n)), assignment(asked, amount=amount), shard(n, 1, MODELS[model][1], i), i)
            for i, (n, amount) in enumerate(zip(self.sizes, self.amounts, strict=False))
        ]


COHORTS = st.builds(
    Cohort,
    sizes=st.lists(st.integers(1, 14), min_size=1, max_size=6),
    amounts=st.lists(st.integers(1, 3), min_size=6, max_size=6),
    unit=st.sampled_from(["epochs", "steps"]),
    batch=st.integers(1, 9),
    mu=st.sampled_from([0.0, 0.5]),
    at_once=st.integers(2, 4),
)


def _alone(vector: Vector, jobs: Sequence[Job]) -> list[Update]:
    return [job.task.train(vector, job.assignment, job.shard, job.seed) for job in jobs]


def _assert_alike(
    found: Sequence[Update | FedrayError], expected: Sequence[Update], tolerance: float = TOLERANCE
) -> None:
    nothing = np.zeros(0, np.float32)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Update)
        assert one.delta.dtype == np.float32
        assert replace(one, delta=nothing) == replace(other, delta=nothing)
        assert np.linalg.norm(one.delta - other.delta) <= tolerance * np.linalg.norm(other.delta)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
@settings(deadline=None, max_examples=12, derandomize=True)
@given(cohort=COHORTS)
def test_owners_trained_together_end_where_each_ends_alone(model: str, optimizer: str, cohort: Cohort) -> None:
    task = torch_task(model, OPTIMIZERS[optimizer], batch_size=cohort.batch)
    vector = task.initial(1)
    jobs = cohort.jobs(task, model, lambda _: ShuffledDescent(cohort.batch))
    tolerance = ADAMS_TOLERANCE if optimizer == "adam" else TOLERANCE
    _assert_alike(ManyOwners(task, cohort.at_once).train(vector, jobs), _alone(vector, jobs), tolerance)


@pytest.mark.parametrize("kind", [PrivateDescent, GhostDescent])
@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
@settings(deadline=None, max_examples=12, derandomize=True)
@given(cohort=COHORTS, optimizer=st.sampled_from(sorted(OPTIMIZERS)), clip=st.sampled_from([0.05, 0.5, 100.0]))
def test_private_owners_too_on_batches_and_noise_of_their_own(
    model: str, kind: type[PrivateDescent], cohort: Cohort, optimizer: str, clip: float
) -> None:
    """Whatever their clips: every other owner's is twice as large. Empty batches are among them."""

    def descent_of(n: int) -> PrivateDescent:
        return kind(DpSgdPlan(n, cohort.batch, clip * (1 + n % 2), 0.8), _Account(), 5)

    task = torch_task(lambda: make_private(make_module(model)), OPTIMIZERS[optimizer], descent=descent_of(1))
    vector = task.initial(1)
    jobs = cohort.jobs(task, model, descent_of)
    tolerance = ADAMS_TOLERANCE if optimizer == "adam" else TOLERANCE
    _assert_alike(ManyOwners(task, cohort.at_once).train(vector, jobs), _alone(vector, jobs), tolerance)


def test_one_step_by_hand() -> None:
    """Softmax regression from zeros: the step of an owner is lr times the mean of (onehot - 1/3) x, in float64."""
    task = torch_task("logistic", OPTIMIZERS["sgd"], batch_size=20)
    jobs = [Job(task, assignment(plan()), shard(n, 1, TABLE, n), n) for n in (4, 9, 1)]
    found = ManyOwners(task, 3).train(np.zeros(18, np.float32), jobs)
    for job, update in zip(jobs, found, strict=True):
        rows = job.shard.train
        error = np.eye(3)[rows.targets] - 1 / 3
        expected = np.concatenate([(error.T @ rows.features.astype(np.float64)).ravel(), error.sum(0)])
        assert isinstance(update, Update)
        np.testing.assert_allclose(update.delta, 0.1 * expected / len(rows), rtol=1e-5, atol=1e-7)


def test_the_noise_of_one_step_by_hand() -> None:
    """With a clip of next to nothing relative to the noise, each update is its own generator's draws, scaled."""
    dp = DpSgdPlan(8, 4, 1e-6, 1e6)
    descent = PrivateDescent(dp, _Account(), 5)
    task = torch_task("logistic", OPTIMIZERS["sgd"], descent=descent)
    jobs = [Job(task, assignment(plan(1, "steps")), shard(8, 1, TABLE, i), i) for i in range(3)]
    found = ManyOwners(task, 3).train(np.zeros(18, np.float32), jobs)
    for job, update in zip(jobs, found, strict=True):
        drawn = descent._generator(job.seed, "noise").standard_normal(18, dtype=np.float32)
        assert isinstance(update, Update)
        np.testing.assert_allclose(update.delta, -0.1 * drawn / 4, rtol=1e-4, atol=1e-5)


def test_a_row_whose_gradient_is_not_finite_counts_as_none() -> None:
    rows = shard(6)
    rows.train.features[2] = 3e38
    descent = PrivateDescent(DpSgdPlan(6, 6, 0.5, 0.8), _Account(), 5)
    task = torch_task("logistic", OPTIMIZERS["sgd"], descent=descent)
    vector = task.initial(0)
    jobs = [Job(task, assignment(plan(2)), one, 0) for one in (rows, shard(6, seed=1))]
    found = ManyOwners(task, 2).train(vector, jobs)
    _assert_alike(found, _alone(vector, jobs))
    assert all(isinstance(one, Update) and np.isfinite(one.delta).all() for one in found)


def test_an_owner_that_refuses_is_answered_for_in_its_place_and_costs_nothing() -> None:
    accounts = [_Account(), _Account(room=1), _Account()]
    descents = [PrivateDescent(DpSgdPlan(8, 4, 0.5, 0.8), account, 5) for account in accounts]
    task = torch_task("mlp", descent=descents[0])
    vector = task.initial(0)
    jobs = [Job(task.sharing(one), assignment(plan(2)), shard(8, seed=i), i) for i, one in enumerate(descents)]
    for at_once in (1, 2, 3):
        first, refusal, last = ManyOwners(task, at_once).train(vector, jobs)
        assert isinstance(refusal, BudgetExhausted)
        _assert_alike([first, last], _alone(vector, [jobs[0], jobs[2]]))
    assert [account.settled for account in accounts] == [[4] * 6, [], [4] * 6]
    assert [account.charged for account in accounts] == [[4] * 6, [], [4] * 6]


def test_if_all_refuse_nothing_is_trained() -> None:
    task = torch_task("mlp", descent=PrivateDescent(DpSgdPlan(8, 4, 0.5, 0.8), _Account(room=1), 5))
    jobs = [Job(task, assignment(plan(2)), shard(8), i) for i in range(3)]
    assert [type(one) for one in ManyOwners(task, 2).train(task.initial(0), jobs)] == [BudgetExhausted] * 3
    assert ManyOwners(task, 2).train(task.initial(0), []) == []


def test_work_with_a_deadline_is_done_alone() -> None:
    task = torch_task("mlp")
    vector = task.initial(0)
    late, early = (assignment(plan(3), deadline_s=limit) for limit in (60.0, 1e-9))
    jobs = [Job(task, asked, shard(8, seed=i), i) for i, asked in enumerate((late, assignment(plan(3)), early))]
    whole, together, cut = ManyOwners(task, 3).train(vector, jobs)
    assert isinstance(whole, Update)
    assert whole.delta.tobytes() == _alone(vector, jobs[:1])[0].delta.tobytes()
    assert isinstance(cut, Update)
    assert (cut.n_steps, cut.is_complete) == (0, False)
    _assert_alike([together], _alone(vector, jobs[1:2]))


def test_one_at_a_time_gives_the_bits_of_each_alone() -> None:
    task = torch_task("cnn")
    vector = task.initial(0)
    jobs = [Job(task, assignment(plan(2)), shard(n, 1, MODELS["cnn"][1]), n) for n in (5, 9, 3)]
    found = ManyOwners(task, 1).train(vector, jobs)
    assert [one.delta.tobytes() for one in found if isinstance(one, Update)] == [
        one.delta.tobytes() for one in _alone(vector, jobs)
    ]


def test_owners_under_unlike_proximal_terms_go_apart() -> None:
    task = torch_task("mlp")
    vector = task.initial(0)
    jobs = [Job(task, assignment(plan(3, mu=mu)), shard(8, seed=i), i) for i, mu in enumerate((0.0, 2.0, 0.0, 2.0))]
    _assert_alike(ManyOwners(task, 4).train(vector, jobs), _alone(vector, jobs))


def test_training_together_touches_neither_model_nor_rows_nor_generators() -> None:
    task = torch_task("mlp")
    vector, rows = task.initial(0), shard(8)
    before = vector.copy(), rows.train.features.copy(), torch.get_rng_state()
    vector.flags.writeable = False
    ManyOwners(task, 2).train(vector, [Job(task, assignment(plan()), rows, i) for i in range(3)])
    assert np.array_equal(before[0], vector)
    assert np.array_equal(before[1], rows.train.features)
    assert torch.equal(before[2], torch.get_rng_state())


@settings(deadline=None, max_examples=20, derandomize=True)
@given(sizes=st.lists(st.integers(0, 30), max_size=7), batch=st.sampled_from([1, 7, 16, 1024]))
def test_owners_evaluated_together_get_the_sums_of_each_alone(sizes: list[int], batch: int) -> None:
    task = torch_task("mlp")
    task.evaluation_batch_size = batch
    vector = task.initial(2)
    parts = [examples(n, TABLE, seed) for seed, n in enumerate(sizes)]
    found = ManyOwners(task, 4).evaluate(vector, task, parts)
    expected = [task.evaluate(vector, part) for part in parts]
    assert [one.count for one in found] == sizes
    assert [one.sums["accuracy"] for one in found] == [one.sums["accuracy"] for one in expected]
    assert [one.sums["loss"] for one in found] == pytest.approx([one.sums["loss"] for one in expected], rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_models_that_cannot_be_trained_together_can_be_evaluated_so(model: str) -> None:
    task = torch_task(model)
    vector = task.initial(2)
    parts = [examples(n, MODELS[model][1], n) for n in (3, 8)]
    for found, part in zip(ManyOwners(task, 4).evaluate(vector, task, parts), parts, strict=True):
        assert found.sums == pytest.approx(task.evaluate(vector, part).sums, rel=1e-5)


def test_a_loss_whose_rows_are_unknown_is_evaluated_owner_by_owner() -> None:
    def own(outputs: Any, targets: Any) -> Any:
        return cross_entropy(outputs, targets)

    make = torch_task("mlp").make_module
    task = TorchTask(make, own, {"accuracy": accuracy}, OPTIMIZERS["sgd"], ShuffledDescent(4))
    vector, parts = task.initial(0), [examples(5), examples(7)]
    assert ManyOwners(task, 4).evaluate(vector, task, parts) == [task.evaluate(vector, part) for part in parts]


def test_images_are_evaluated_alike_before_and_after_training_together() -> None:
    task = torch_task("cnn")
    many, parts = ManyOwners(task, 4), [examples(n, MODELS["cnn"][1], n) for n in (3, 200)]
    vector = task.initial(2)
    jobs = [Job(task, assignment(plan()), shard(8, 1, MODELS["cnn"][1], i), i) for i in range(3)]
    expected = [task.evaluate(vector, part).sums["loss"] for part in parts]
    for _ in range(2):
        assert [one.sums["loss"] for one in many.evaluate(vector, task, parts)] == pytest.approx(expected, rel=1e-5)
        _assert_alike(many.train(vector, jobs), _alone(vector, jobs))


def test_it_is_a_trainer() -> None:
    trainer: Trainer = ManyOwners(torch_task("mlp"), 5)
    assert trainer.at_once == 5


def test_a_small_batch_is_padded_with_rows_of_its_own() -> None:
    """A neighbour's rows that are no numbers do not reach an owner, be it ever so padded."""
    bad = Examples(np.full((3, 5), np.nan, np.float32), np.zeros(3, np.int64))
    task = torch_task("logistic", batch_size=8)
    vector = task.initial(0)
    jobs = [Job(task, assignment(plan()), one, i) for i, one in enumerate((shard(8), shard(5), Shard(bad, bad)))]
    *rest, nothing = ManyOwners(task, 3).train(vector, jobs)
    assert isinstance(nothing, Update)
    assert np.isnan(nothing.delta).all()
    _assert_alike(rest, _alone(vector, jobs[:2]))
