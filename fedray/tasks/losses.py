"""Losses and metrics by name. A loss is the mean over the batch; a metric is a value an example, whose mean is taken
once over all owners' examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch.nn.functional as F  # noqa: N812  # PyTorch's own convention
from torch import Tensor

from fedray.errors import ModelError

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]


class NamedLoss(Protocol):
    """A loss that can be had without its mean: ``reduction`` is PyTorch's, ``mean`` or ``none``."""

    def __call__(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor: ...


def cross_entropy(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Softmax cross-entropy; outputs ``(n, ..., n_classes)``, targets ``(n, ...)`` of class numbers."""
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), reduction=reduction)


def binary_cross_entropy(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the logistic function of ``outputs``, of shape ``(n, 1)`` or ``(n,)``, targets 0 or 1."""
    return F.binary_cross_entropy_with_logits(
        outputs.reshape(targets.shape), targets.to(outputs.dtype), reduction=reduction
    )


def mse(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Mean squared error; outputs are brought to the targets' shape."""
    return F.mse_loss(outputs.reshape(targets.shape), targets, reduction=reduction)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the highest score is the target's, a mean over positions for sequences."""
    return _per_example((outputs.argmax(-1) == targets).float())


def binary_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the logistic function of ``outputs`` is above a half just when the target is 1."""
    return _per_example(((outputs.reshape(targets.shape) > 0) == (targets > 0)).float())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared difference."""
    return _per_example((outputs.reshape(targets.shape) - targets) ** 2)


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute difference."""
    return _per_example((outputs.reshape(targets.shape) - targets).abs())


def _per_example(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1)


LOSSES: Mapping[str, NamedLoss] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
}
METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "squared_error": squared_error,
    "absolute_error": absolute_error,
}
SINGLE_OUTPUT = frozenset({"binary_cross_entropy", "mse"})
"""Losses for which a built-in model has one output instead of one a class."""


def per_row(loss: Loss) -> Loss:
    """The loss of every row, shape ``(n,)``, of which ``loss`` is the mean.

    Raises:
        ModelError: a loss of the user's own, of which only the mean is known.
    """
    for named in LOSSES.values():
        if named is loss:
            return lambda outputs, targets: named(outputs, targets, "none").reshape(len(targets), -1).mean(1)
    raise ModelError(
        f"a loss of your own, {getattr(loss, '__name__', type(loss).__name__)}, where one value a row is needed",
        f"one of fedray's own: {', '.join(LOSSES)}",
        "name one of these as the loss, or set privacy.gradients: per_example",
    )
