"""Ghost clipping against per-example clipping, step for step, and against gradients by plain autograd, row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample.linear import compute_linear_norm_sample
from torch import Tensor, nn
from torch.nn.functional import linear
from toys import IMAGE, MODELS, TABLE, assignment, examples, make_module, plan, shard

from fedray.build import check, open_federation
from fedray.config import Experiment
from fedray.errors import ModelError
from fedray.pools import InProcessCohort
from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent, make_private
from fedray.privacy.events import Charge
from fedray.privacy.ghost_clipping import GhostDescent, check_ghost
from fedray.rounds import federate
from fedray.tasks.descent import Steps
from fedray.tasks.losses import LOSSES, Loss, cross_entropy, mse, per_row
from fedray.tasks.torch_task import TorchTask
from fedray.values import Examples, Schema, Shard, Vector

N_ROWS, SEED, CLIP = 12, 9, 0.5


class _Charges:
    """An account without a limit."""

    def __init__(self) -> None:
        self.charged: list[Charge] = []
        self.settled: list[int] = []

    def charge(self, round: int, charge: Charge) -> None:
        self.charged.append(charge)

    def settle(self, round: int, count: int) -> None:
        self.settled.append(count)


def _descent(kind: type[PrivateDescent], batch_size: int = 4, clip: float = CLIP) -> PrivateDescent:
    return kind(DpSgdPlan(N_ROWS, batch_size, clip, 0.8), _Charges(), 5)


def _private(name: str) -> nn.Module:
    return make_private(make_module(name))


def _trained(
    kind: type[PrivateDescent],
    make: Callable[[], nn.Module],
    rows: Shard,
    *,
    loss: Loss = cross_entropy,
    mu: float = 0.0,
    batch_size: int = 4,
) -> Vector:
    task = TorchTask(make, loss, {}, partial(torch.optim.SGD, lr=0.3, momentum=0.5), _descent(kind, batch_size))
    return task.train(task.initial(2), assignment(plan(15, "steps", mu=mu)), rows, SEED).delta


def _assert_both_train_alike(make: Callable[[], nn.Module], rows: Shard, **kw: Any) -> None:
    expected, found = (_trained(kind, make, rows, **kw) for kind in (PrivateDescent, GhostDescent))
    assert np.abs(expected).max() > 0.05
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("mu", [0.0, 1.0])
@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn", "lstm", "lstm every step"])
def test_a_model_trained_by_ghost_clipping_is_the_one_trained_example_by_example(model: str, mu: float) -> None:
    """Batches of 4 expected rows of 12, noise drawn from the same state; mu = 1 is FedProx."""
    _assert_both_train_alike(partial(_private, model), shard(N_ROWS, 3, MODELS[model][1]), mu=mu)


@pytest.mark.parametrize("model", ["mlp", "lstm"])
def test_empty_batches_are_steps_of_noise_alone(model: str) -> None:
    """At one expected row of 12 a third of the batches is empty."""
    _assert_both_train_alike(partial(_private, model), shard(N_ROWS, 3, MODELS[model][1]), batch_size=1)


def test_a_first_batch_that_is_empty_gets_its_noise() -> None:
    module = nn.Linear(5, 3)
    steps = _steps(GhostDescent, module)
    before = module.weight.detach().clone()
    steps.optimizer.zero_grad()
    steps.optimizer.step()
    assert (module.weight != before).all()


TARGETS: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
    "cross_entropy": (3, lambda: np.arange(N_ROWS) % 3),
    "binary_cross_entropy": (1, lambda: np.arange(N_ROWS) % 2),
    "mse": (1, lambda: np.linspace(-3, 3, N_ROWS, dtype=np.float32)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_named_loss_trains_alike(loss: str) -> None:
    width, targets = TARGETS[loss]
    rows = Examples(examples(N_ROWS).features, targets())
    _assert_both_train_alike(lambda: nn.Linear(5, width), Shard(rows, rows), loss=LOSSES[loss])


def test_dropout_and_frozen_layers_train_alike() -> None:
    def make() -> nn.Module:
        module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))
        module[3].requires_grad_(False)
        return module

    _assert_both_train_alike(make, shard(N_ROWS))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_named_loss_is_the_mean_of_what_it_is_a_row(loss: str) -> None:
    draw = torch.Generator().manual_seed(0)
    for positions in ((), (4,), (2, 3)):
        targets = torch.randint(0, 2, (7, *positions), generator=draw)
        shape = (7, *positions, 3) if loss == "cross_entropy" else (7, *positions)
        outputs = torch.randn(shape, generator=draw)
        targets = targets.float() if loss == "mse" else targets
        rows = per_row(LOSSES[loss])(outputs, targets)
        assert rows.shape == (7,)
        one_by_one = [LOSSES[loss](outputs[i : i + 1], targets[i : i + 1]) for i in range(7)]
        torch.testing.assert_close(rows, torch.stack(one_by_one))
        torch.testing.assert_close(rows.mean(), LOSSES[loss](outputs, targets))


def _steps(kind: type[PrivateDescent], module: nn.Module, clip: float = CLIP) -> Steps:
    descent = _descent(kind, clip=clip)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return descent.steps(descent.wrap(module), optimizer, descent.draw(assignment(plan(1, "steps")), N_ROWS, 0))


def _summed(module: nn.Module, loss: Loss, features: Tensor, targets: Tensor, clip: float = CLIP) -> Tensor:
    """The sum of the clipped gradients that the optimizer is handed, flat; before any noise."""
    steps = _steps(GhostDescent, module, clip)
    steps.optimizer.zero_grad()
    steps.backward(loss, features, targets)
    return torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])


def _by_hand(module: nn.Module, loss: Loss, features: Tensor, targets: Tensor, clip: float = CLIP) -> Tensor:
    """Every row's gradient by autograd on that row alone, scaled down to the clip, and their sum."""
    total = torch.zeros(sum(parameter.numel() for parameter in module.parameters()))
    for i in range(len(targets)):
        gradients = torch.autograd.grad(
            loss(module(features[i : i + 1]), targets[i : i + 1]), list(module.parameters())
        )
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        total += flat * min(1.0, clip / float(flat.norm()))
    return total


def _tensors(schema: Schema, n: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = examples(n, schema, seed)
    return torch.from_numpy(rows.features), torch.from_numpy(rows.targets)


@pytest.mark.parametrize("model", ["mlp", "cnn", "lstm every step"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 5), clip=st.sampled_from([0.01, 0.3, 100.0]))
def test_the_sum_is_that_of_the_clipped_gradients_by_autograd(model: str, seed: int, n: int, clip: float) -> None:
    """One row alone included; its norm is the clip where it was beyond, and the sum's never beyond n of them."""
    torch.manual_seed(seed)
    plainly = make_private(make_module(model))
    features, targets = _tensors(MODELS[model][1], n, seed)
    expected = _by_hand(plainly, cross_entropy, features, targets, clip)
    found = _summed(plainly, cross_entropy, features, targets, clip)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(found.norm()) <= n * clip * (1 + 1e-5)
    if clip == 0.01 and n == 1:
        assert float(found.norm()) == pytest.approx(clip, rel=1e-3)


class Positions(nn.Module):
    """A linear layer on every position of a row, be it a sequence or a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x).squeeze(-1)
        return scores


def _cancelling() -> tuple[Tensor, Tensor]:
    """A row of two positions, far out and close together, with opposite gradients."""
    far, apart = torch.tensor([123456.0, -98765.0, 54321.0]), torch.tensor([0.7, 1.3, -0.4])
    return torch.stack([far, far + apart])[None], torch.tensor([[-2e6, 2e6]])


def test_a_row_whose_positions_cancel_is_clipped_all_the_same() -> None:
    """Opacus's own norm of such a row, by Gram matrices in float32, is off by orders of magnitude."""
    module = Positions()
    nn.init.zeros_(module.linear.weight)
    nn.init.zeros_(module.linear.bias)
    features, targets = _cancelling()
    backprops = torch.autograd.grad(mse(scores := module(features), targets), scores)[0].unsqueeze(-1)
    true = float(torch.einsum("nij,nik->njk", backprops, features).norm())
    grams = float(compute_linear_norm_sample(module.linear, [features], backprops)[module.linear.weight])
    assert true > 1e5
    assert not 0.1 < grams / true < 10
    assert float(_summed(module, mse, features, targets).norm()) == pytest.approx(CLIP, rel=0.05)


def test_rows_that_are_grids_are_clipped() -> None:
    """Opacus has no norm for a linear layer on four axes."""
    draw = torch.Generator().manual_seed(1)
    features, targets = torch.randn((4, 2, 5, 3), generator=draw), torch.randn((4, 2, 5), generator=draw)
    torch.manual_seed(0)
    module = Positions()
    expected = _by_hand(module, mse, features, targets)
    torch.testing.assert_close(_summed(module, mse, features, targets), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [[2], [0, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_row_whose_gradient_is_not_finite_counts_as_none(value: float, bad: list[int]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    features, targets = _tensors(TABLE, 4, 1)
    good = [i for i in range(4) if i not in bad]
    expected = _by_hand(module, cross_entropy, features[good], targets[good])
    features[bad, 1] = value
    found = _summed(module, cross_entropy, features, targets)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_charges_are_those_of_clipping_example_by_example() -> None:
    accounts = []
    for kind in (PrivateDescent, GhostDescent):
        accounts.append(account := _Charges())
        descent = kind(DpSgdPlan(N_ROWS, 4, CLIP, 0.8), account, 5)
        task = TorchTask(partial(nn.Linear, 5, 3), cross_entropy, {}, partial(torch.optim.SGD, lr=0.1), descent)
        task.train(task.initial(0), assignment(plan(2)), shard(N_ROWS), 0)
    assert accounts[0].charged == accounts[1].charged != []
    assert accounts[0].settled == accounts[1].settled == [6]


def _experiment(**changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "data": {"name": "digits", "owners": 3, "split": "iid", "min_classes": 1},
        "model": {"name": "mlp", "hidden": [8]},
        "train": {"batch_size": 120, "epochs": 1},
        "rounds": 2,
    }
    return Experiment.model_validate({**raw, **changes})


def _privacy(gradients: str) -> dict[str, Any]:
    return {"name": "example", "noise_multiplier": 1.5, "gradients": gradients, "unsafe_replay_seed": 3}


def test_a_run_asks_for_it_by_name(tmp_path: Path) -> None:
    """Both kinds end at one model, up to the steps of fixed point, and at the same epsilon."""
    results = []
    for gradients in ("per_example", "ghost"):
        experiment = _experiment(privacy=_privacy(gradients))
        check(experiment)
        opened = open_federation(experiment, InProcessCohort, tmp_path / gradients)
        (*_, (state, record)) = federate(opened)
        results.append((state.vector, [owner.epsilon for owner in record.owners]))
    (expected, epsilons), (found, others) = results
    assert epsilons == others
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(expected).max() > 0.1


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets)


def test_a_loss_of_the_users_own_is_refused_before_the_run_and_the_same_by_name_is_not() -> None:
    reference = f"{own_loss.__module__}:own_loss"
    check(_experiment(privacy=_privacy("per_example"), loss=reference))
    with pytest.raises(ModelError, match="a loss of your own, own_loss") as error:
        check(_experiment(privacy=_privacy("ghost"), loss=reference))
    assert "per_example" in error.value.remedy
    check(_experiment(privacy=_privacy("ghost"), loss="fedray.tasks.losses:cross_entropy"))


@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn", "lstm", "lstm every step"])
def test_the_built_in_models_are_accepted(model: str) -> None:
    check_ghost(_private(model), cross_entropy, MODELS[model][1])


def test_groupnorm_is_accepted() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3))
    check_ghost(module, cross_entropy, IMAGE)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.outer(self.inner(torch.tanh(self.inner(x))))
        return scores


class Tied(CalledTwice):
    """Two layers, one of whose parameters is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Linear(5, 5)
        self.between.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.outer(self.between(torch.tanh(self.inner(x))))
        return scores


class Bypassed(CalledTwice):
    """Uses a layer's weight once through the layer, where Opacus sees it, and once without."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.outer(linear(torch.tanh(self.inner(x)), self.inner.weight))
        return scores


class Unseen(CalledTwice):
    """Uses a layer's parameters without calling it."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.outer(linear(x, self.inner.weight, self.inner.bias))
        return scores


@pytest.mark.parametrize(
    ("make", "detail"),
    [(CalledTwice, "tying"), (Tied, "tying"), (Bypassed, r"inner\.weight"), (Unseen, r"inner\.weight, inner\.bias")],
)
def test_a_model_whose_norms_would_be_wrong_is_refused(make: Callable[[], nn.Module], detail: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=detail) as error:
        check_ghost(make(), cross_entropy, TABLE)
    assert "per_example" in error.value.remedy


class Choosy(nn.Module):
    """Calls one of its layers for some rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.always(x)
        return scores + self.sometimes(x) if x.max() < 100 else scores


def test_norms_of_one_batch_are_never_used_for_another() -> None:
    torch.manual_seed(0)
    steps = _steps(GhostDescent, Choosy())
    features, targets = _tensors(TABLE, 4, 0)
    steps.backward(cross_entropy, features, targets)
    with pytest.raises(ModelError, match=r"sometimes\.weight, sometimes\.bias"):
        steps.backward(cross_entropy, features + 200, targets)
