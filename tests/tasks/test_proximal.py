"""The proximal pull is the gradient of mu/2 ||w - w_t||^2, whatever the optimizer."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from toys import MODELS, assignment, examples, make_module, plan, shard, study, torch_task

from fedray.config.learning import Logistic
from fedray.tasks.descent import ShuffledDescent
from fedray.tasks.losses import cross_entropy
from fedray.tasks.modules import build_module
from fedray.tasks.proximal import pull_to_start
from fedray.tasks.torch_task import TorchTask
from fedray.values import Schema, Shard
from fedray.vectors import Layout

N_STEPS = 6
OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=0.3),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "weight decay": partial(torch.optim.SGD, lr=0.3, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=0.05),
}


CASES = [("mlp", optimizer, mu) for optimizer in OPTIMIZERS for mu in (0.0, 0.7, 3.0)]
CASES += [(model, optimizer, 0.7) for model in ("cnn", "lstm") for optimizer in ("sgd", "adam")]


@pytest.mark.parametrize(("model", "optimizer", "mu"), CASES)
def test_local_training_descends_loss_plus_proximal_term(model: str, optimizer: str, mu: float) -> None:
    """The reference writes the term into the loss and leaves the gradient to autograd; batches are all rows."""
    rows = shard(8, 2, MODELS[model][1])
    task = torch_task(model, OPTIMIZERS[optimizer], batch_size=8)
    vector = task.initial(3)
    update = task.train(vector, assignment(plan(N_STEPS, "steps", mu=mu)), rows, 0)

    module = make_module(model)
    layout = Layout(module)
    layout.write(vector)
    start = [parameter.detach().clone() for parameter in module.parameters()]
    step = OPTIMIZERS[optimizer](module.parameters())
    x, y = torch.from_numpy(rows.train.features), torch.from_numpy(rows.train.targets)
    for _ in range(N_STEPS):
        step.zero_grad()
        proximal = sum(((p - s) ** 2).sum() for p, s in zip(module.parameters(), start, strict=True))
        (F.cross_entropy(module(x), y) + mu / 2 * proximal).backward()
        step.step()
    np.testing.assert_allclose(update.delta, layout.read() - vector, rtol=1e-3, atol=2e-5)


def test_with_mu_of_nothing_the_optimizer_is_left_alone() -> None:
    task = torch_task()
    vector = task.initial(0)
    without = task.train(vector, assignment(plan(2)), shard(), 1)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    pull_to_start(optimizer, [parameter], 0.0)
    assert not optimizer._optimizer_step_pre_hooks
    assert np.isfinite(without.delta).all()


def test_frozen_parameters_are_not_pulled() -> None:
    frozen, free = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([frozen, free], lr=0.5)
    pull_to_start(optimizer, [frozen, free], 2.0)
    with torch.no_grad():
        frozen += 1
        free += 1
    free.grad = torch.zeros(2)
    optimizer.step()
    assert frozen.tolist() == [2.0, 2.0]
    assert free.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_the_studys_softmax_regression_in_numpy_trains_like_the_same_model_in_torch(mu: float) -> None:
    module = study("fedprox_synthetic")
    schema = Schema((60,), "float32", (), 10)
    rows = Shard(examples(47, schema), examples(9, schema))
    by_hand = module.SoftmaxRegression(schema)
    by_torch = TorchTask(
        partial(build_module, Logistic(), schema, 10),
        cross_entropy,
        {},
        partial(torch.optim.SGD, lr=module.LR),
        ShuffledDescent(module.BATCH),
    )
    vector = by_torch.initial(5)
    assert np.array_equal(vector, by_hand.initial(5))
    asked = assignment(plan(20, mu=mu))
    one, other = (task.train(vector, asked, rows, 11) for task in (by_hand, by_torch))
    np.testing.assert_allclose(one.delta, other.delta, rtol=1e-3, atol=1e-5)
    assert (one.n_steps, one.weight) == (other.n_steps, other.weight) == (100, 47)
    tallies = [task.evaluate(vector, rows.holdout) for task in (by_hand, by_torch)]
    assert tallies[0].sums["loss"] == pytest.approx(tallies[1].sums["loss"], rel=1e-5)
