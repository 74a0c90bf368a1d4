"""A user's module, loss and metrics: batches, deadlines, weights, and what does not fit."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import IMAGE, MODELS, TABLE, assignment, examples, make_module, plan, shard, torch_task

from fedray.config import learning as config
from fedray.errors import ModelError
from fedray.tasks.descent import ShuffledDescent, count_steps
from fedray.tasks.losses import LOSSES, METRICS, accuracy, cross_entropy
from fedray.tasks.modules import build_module
from fedray.tasks.torch_task import TorchTask
from fedray.values import Examples, Schema, Shard, Work
from fedray.vectors import Layout


class Watching(nn.Module):
    """A linear model that notes the first feature of every row that it sees in training."""

    def __init__(self, seen: list[list[float]], pause_s: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self._seen, self._pause_s = seen, pause_s

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._seen.append(x[:, 0].tolist())
            time.sleep(self._pause_s)
        return self.linear(x)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 13), batch=st.integers(1, 15), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_epoch_sees_every_row_once_in_another_order(n: int, batch: int, epochs: int, seed: int) -> None:
    seen: list[list[float]] = []
    rows = shard(n)
    task = torch_task(partial(Watching, seen), batch_size=batch)
    update = task.train(task.initial(0), assignment(plan(epochs)), rows, seed)
    per_epoch = len(range(0, n, batch))
    assert update.n_steps == len(seen) == epochs * per_epoch == count_steps(Work(epochs, "epochs"), n, batch)
    for start in range(0, len(seen), per_epoch):
        flat = [value for batch_seen in seen[start : start + per_epoch] for value in batch_seen]
        assert Counter(flat) == Counter(rows.train.features[:, 0].tolist())
    assert {len(one) for one in seen} <= {min(batch, n), n % batch}


def test_steps_cut_the_last_epoch_short() -> None:
    seen: list[list[float]] = []
    task = torch_task(partial(Watching, seen), batch_size=4)
    update = task.train(task.initial(0), assignment(plan(5, "steps")), shard(10), 0)
    assert update.n_steps == 5
    assert [len(one) for one in seen] == [4, 4, 2, 4, 4]


def test_epochs_and_owners_are_shuffled_apart() -> None:
    seen: list[list[float]] = []
    task = torch_task(partial(Watching, seen), batch_size=12)
    task.train(task.initial(0), assignment(plan(2)), shard(12), 0)
    task.train(task.initial(0), assignment(plan(1)), shard(12), 1)
    assert len({tuple(one) for one in seen}) == 3


def test_a_deadline_stops_training_at_the_iterate_that_is_there() -> None:
    seen: list[list[float]] = []
    task = torch_task(partial(Watching, seen, 0.02), batch_size=3)
    vector = task.initial(0)
    asked = assignment(plan(100), deadline_s=0.3)
    started = time.monotonic()
    update = task.train(vector, asked, shard(12), 4)
    assert time.monotonic() - started < 2
    assert 1 <= update.n_steps < 400
    assert not update.is_complete
    same = task.train(vector, assignment(plan(update.n_steps, "steps")), shard(12), 4)
    assert same.delta.tobytes() == update.delta.tobytes()


def test_work_within_the_deadline_is_complete() -> None:
    task = torch_task()
    update = task.train(task.initial(0), assignment(plan(1), deadline_s=60), shard(), 4)
    assert update.is_complete


@pytest.mark.parametrize(("weighting", "weight"), [("examples", 12), ("uniform", 1)])
def test_an_update_weighs_as_the_plan_says(weighting: str, weight: int) -> None:
    task = torch_task()
    assert task.train(task.initial(0), assignment(plan(weighting=weighting)), shard(12), 0).weight == weight


def test_the_optimizer_starts_afresh_in_every_round() -> None:
    task = torch_task("mlp", partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    vector = task.initial(0)
    first = task.train(vector, assignment(plan(3)), shard(), 1).delta
    assert np.array_equal(first, task.train(vector, assignment(plan(3)), shard(), 1).delta)


def test_the_initial_model_is_torchs_own_after_its_seed() -> None:
    torch.manual_seed(17)
    expected = Layout(make_module("cnn")).read()
    assert np.array_equal(torch_task("cnn").initial(17), expected)


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_that_of_plain_torch(model: str) -> None:
    rows = examples(30, MODELS[model][1])
    task = TorchTask(
        partial(make_module, model),
        cross_entropy,
        {"accuracy": accuracy},
        partial(torch.optim.SGD, lr=0.1),
        ShuffledDescent(4),
        evaluation_batch_size=7,
    )
    vector = task.initial(2)
    found = task.evaluate(vector, rows).means
    module = make_module(model).eval()
    Layout(module).write(vector)
    with torch.no_grad():
        outputs = module(torch.from_numpy(rows.features)).numpy().astype(np.float64)
    log = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log, rows.targets[..., None], -1)
    assert found["loss"] == pytest.approx(-chosen.mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((outputs.argmax(-1) == rows.targets).mean(), rel=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_losses_of_one_output_against_numpy(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    outputs, numbers = draw.normal(size=6), draw.normal(size=6)
    classes = draw.integers(0, 2, 6)
    scores = torch.tensor(outputs, dtype=torch.float32).reshape(shape)
    real, binary = torch.tensor(numbers, dtype=torch.float32), torch.tensor(classes)
    p = 1 / (1 + np.exp(-outputs))
    expected = -(classes * np.log(p) + (1 - classes) * np.log(1 - p)).mean()
    assert float(LOSSES["binary_cross_entropy"](scores, binary)) == pytest.approx(expected, rel=1e-5)
    assert float(LOSSES["mse"](scores, real)) == pytest.approx(((outputs - numbers) ** 2).mean(), rel=1e-5)
    assert METRICS["binary_accuracy"](scores, binary).tolist() == ((p > 0.5) == classes).astype(float).tolist()
    np.testing.assert_allclose(METRICS["squared_error"](scores, real), (outputs - numbers) ** 2, rtol=1e-4)
    np.testing.assert_allclose(METRICS["absolute_error"](scores, real), np.abs(outputs - numbers), rtol=1e-4)


def _task(make: Any, loss: Any = cross_entropy, metric: Any = accuracy) -> TorchTask:
    return TorchTask(make, loss, {"m": metric}, partial(torch.optim.SGD, lr=0.1), ShuffledDescent(4))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (_task(lambda: nn.Linear(4, 3)), "fails on features of shape"),
        (_task(lambda: nn.Linear(5, 2)), "output has shape"),
        (_task(lambda: nn.Linear(5, 1)), "outputs of shape"),
        (_task(lambda: nn.Linear(5, 3), loss=LOSSES["mse"]), "loss or metrics fail"),
        (_task(lambda: nn.Linear(5, 3), metric=lambda o, t: (o.argmax(-1) == t).float().mean()), "metric 'm'"),
    ],
    ids=["features", "width", "one score for three classes", "loss", "metric"],
)
def test_what_does_not_fit_the_data_is_found_before_training(task: TorchTask, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        task.check(TABLE)


@pytest.mark.parametrize("model", MODELS)
def test_what_fits_passes_the_check(model: str) -> None:
    torch_task(model).check(MODELS[model][1])


@pytest.mark.parametrize(
    ("model", "schema"),
    [(config.Cnn(), TABLE), (config.Cnn(channels=(2, 2, 2)), IMAGE)],
    ids=["table", "too many blocks"],
)
def test_a_cnn_needs_images_that_it_can_halve(model: config.Cnn, schema: Schema) -> None:
    with pytest.raises(ModelError, match="cnn"):
        build_module(model, schema, 3)


def test_a_factory_that_returns_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match="returned dict"):
        build_module(config.CustomModel(factory=dict), TABLE, 3)


def test_a_custom_factory_gets_its_arguments() -> None:
    module = build_module(config.CustomModel(factory=nn.Linear, args={"in_features": 5, "out_features": 3}), TABLE, 3)
    assert (module.in_features, module.out_features) == (5, 3)


def test_a_zero_initialised_logistic_model_scores_all_classes_alike() -> None:
    module = build_module(config.Logistic(zero_init=True), TABLE, 3)
    assert torch.equal(module(torch.randn(4, 5)), torch.zeros(4, 3))


def test_the_last_small_batch_counts_as_a_step_of_its_own() -> None:
    """Eight rows in batches of 5: the second step is the gradient of three rows, not of five."""
    rows = Shard(Examples(np.eye(8, 5, dtype=np.float32), np.arange(8) % 3), examples(1))
    task = torch_task(partial(nn.Linear, 5, 3), partial(torch.optim.SGD, lr=1.0), batch_size=5)
    vector = np.zeros(18, dtype=np.float32)
    update = task.train(vector, assignment(plan(1)), rows, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).numpy()
    w, b = np.zeros((3, 5)), np.zeros(3)
    for part in (order[:5], order[5:]):
        x, y = rows.train.features[part], rows.train.targets[part]
        scores = x @ w.T + b
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        error = (p - np.eye(3)[y]) / len(part)
        w, b = w - error.T @ x, b - error.sum(0)
    np.testing.assert_allclose(update.delta, np.concatenate([w.ravel(), b]), atol=1e-6)
    assert update.n_steps == 2
