"""What cannot be trained together is found by trying, and said in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_same_bits import Tied
from torch import Tensor, nn
from toys import IMAGE, MODELS, NEXT_TOKEN, TABLE, torch_task

from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent
from fedray.privacy.events import Charge
from fedray.tasks.descent import ShuffledDescent
from fedray.tasks.losses import accuracy, cross_entropy, mse
from fedray.tasks.torch_task import TorchTask
from fedray.tasks.treatable import treatable
from fedray.values import Schema


class _Refuses:
    """Nobody may be charged for a trial."""

    def charge(self, round: int, charge: Charge) -> None:
        raise AssertionError("charged")

    def settle(self, round: int, count: int) -> None:
        raise AssertionError("settled")


def _half_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    module[0].requires_grad_(False)
    return module


class Standardises(nn.Module):
    """Has constants as buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.register_buffer("mean", torch.full((5,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x - self.mean)
        return scores


class Branches(nn.Module):
    """Asks the rows what to do with them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x) if float(x.sum()) > 0 else -self.linear(x)
        return scores


class Centred(nn.Module):
    """Subtracts the mean over the batch, so that rows that pad one show."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x - x.mean(0))
        return scores


class LengthOne(torch.optim.SGD):
    """Steps of length lr: not number by number."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad /= parameter.grad.norm()
        super().step()


FITS: dict[str, tuple[Any, Schema]] = {
    **{name: (name, MODELS[name][1]) for name in ("logistic", "mlp", "cnn")},
    "tied": (Tied, TABLE),
    "half frozen": (_half_frozen, TABLE),
    "constant buffers": (Standardises, TABLE),
    "groupnorm": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3)),
        IMAGE,
    ),
    "a score a position": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)), NEXT_TOKEN),
}


@pytest.mark.parametrize("make", FITS)
@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_models_that_treat_rows_by_themselves_are_trained_together(make: str, batch_size: int) -> None:
    module, schema = FITS[make]
    assert treatable(torch_task(module, batch_size=batch_size), schema) is None


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_any_optimizer_that_moves_number_by_number_will_do(optimizer: Any) -> None:
    assert treatable(torch_task("mlp", partial(optimizer, lr=0.01)), TABLE) is None


def test_a_trial_of_private_training_is_charged_to_nobody() -> None:
    descent = PrivateDescent(DpSgdPlan(1000, 4, 0.5, 0.8), _Refuses())
    assert treatable(torch_task("mlp", descent=descent), TABLE) is None


REFUSED: dict[str, tuple[Callable[[], nn.Module] | str, Schema, str]] = {
    "batchnorm": ("batchnorm", IMAGE, "buffers that change in training"),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)), TABLE, "random layers"),
    "branches": (Branches, TABLE, "when trained together"),
    "mixes rows": (Centred, TABLE, "of their update away"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_come_out_otherwise_is_refused_with_the_reason(case: str) -> None:
    module, schema, reason = REFUSED[case]
    found = treatable(torch_task(module, batch_size=5), schema)
    assert found is not None
    assert reason in found
    assert "\n" not in found


def test_an_optimizer_that_looks_at_whole_tensors_is_refused() -> None:
    found = treatable(torch_task("mlp", partial(LengthOne, lr=0.1)), TABLE)
    assert found is not None
    assert "of their update away" in found


def test_a_loss_whose_rows_are_unknown_is_refused_by_name() -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    task = TorchTask(
        torch_task("mlp").make_module, own, {"a": accuracy}, partial(torch.optim.SGD, lr=0.1), ShuffledDescent(4)
    )
    assert "own" in (treatable(task, TABLE) or "")


def test_regression_is_trained_together() -> None:
    schema = Schema((5,), "float32", (), None)
    task = TorchTask(partial(nn.Linear, 5, 1), mse, {}, partial(torch.optim.SGD, lr=0.1), ShuffledDescent(4))
    assert treatable(task, schema) is None
