"""Losses whose gradient is short and whose value is not: the value is computed only if somebody asks for it.

The gradient of cross entropy is softmax(x) - y, that of its binary form sigmoid(x) - y: neither takes a logarithm. The
gradient is that of the true loss, to the error of softmax or sigmoid, whatever the error of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedray.errors import ModelError
from fedray.mpc.held import Later, the_parties
from fedray.mpc.registry import function, no_secure_version
from fedray.mpc.tensor import Cell, SecureTensor


class _Loss(torch.autograd.Function):
    """A number of losses, times a factor: by the gradient of their sum, and by how to find it."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, gradient: Tensor, value: Callable[[], Tensor], factor: float) -> SecureTensor:
        ctx.save_for_backward(gradient)
        ctx.factor = factor
        later = Later(the_parties([scores, gradient]), lambda: (value() * factor).held)  # type: ignore[attr-defined]
        return SecureTensor(Cell(later), (), torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * (grads[0] * ctx.factor), None, None, None


def _loss(scores: Tensor, gradient: Tensor, value: Callable[[], Tensor], factor: float) -> Tensor:
    made: Tensor = _Loss.apply(scores, gradient, value, factor)  # type: ignore[no-untyped-call]
    return made


@function("cross_entropy")
def cross_entropy(input: Tensor, target: Tensor, **options: Any) -> Tensor:  # noqa: A002
    """Of scores of shape (n, classes) and public classes of shape (n,), or probabilities of the scores' shape."""
    factor = _factor(F.cross_entropy, options, _rows(input))
    scores, wanted = input.detach(), _probabilities(target, input)

    def value() -> Tensor:
        return -(F.log_softmax(scores, 1) * wanted).sum()

    gap = F.softmax(scores, 1) * wanted.sum(1, keepdim=True) - wanted
    return _loss(input, gap, value, factor)


def _probabilities(target: Tensor, scores: Tensor) -> Tensor:
    if target.is_floating_point():
        return target.detach()
    if isinstance(target, SecureTensor):
        raise ModelError(
            "shared class numbers", "public class numbers, or shared probabilities", "share F.one_hot(target).float()"
        )
    return F.one_hot(target, scores.shape[1]).to(torch.float32)


@function("nll_loss")
def nll_loss(input: Tensor, target: Tensor, **options: Any) -> Tensor:  # noqa: A002
    """Of logarithms of shape (n, classes) and public classes of shape (n,)."""
    factor = _factor(F.nll_loss, options, _rows(input))
    return -(input * _probabilities(target, input)).sum() * factor


@function("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(input: Tensor, target: Tensor, **options: Any) -> Tensor:  # noqa: A002
    """Of scores and of labels, public or shared, of one shape."""
    factor = _factor(F.binary_cross_entropy_with_logits, options, input.numel())
    scores, wanted = input.detach(), target.detach()

    def value() -> Tensor:
        excess = torch.log(1 + torch.exp(-torch.abs(scores)))
        return (F.relu(scores) - scores * wanted + excess).sum()

    return _loss(input, torch.sigmoid(scores) - wanted, value, factor)


@function("mse_loss")
def mse_loss(input: Tensor, target: Tensor, **options: Any) -> Tensor:  # noqa: A002
    """The squared difference of two tensors, either of which may be public."""
    factor = _factor(F.mse_loss, options, input.numel())
    return ((input - target) ** 2).sum() * factor


def _rows(scores: Tensor) -> int:
    if scores.dim() != 2:
        raise no_secure_version(f"a loss of scores of shape {tuple(scores.shape)}", "scores of shape (n, classes)")
    return len(scores)


def _factor(loss: Callable[..., Tensor], options: Mapping[str, Any], n: int) -> float:
    """What the sum of n losses is multiplied by."""
    usual = signature(loss).parameters
    odd = [name for name, value in options.items() if name != "reduction" and not _is(value, usual[name].default)]
    reduction = options.get("reduction", "mean")
    if odd or reduction not in ("mean", "sum"):
        raise no_secure_version(
            f"{loss.__name__} with {', '.join(odd) or f'reduction={reduction!r}'}",
            f"{loss.__name__} with reduction='mean' or 'sum' and no other option",
        )
    return 1 / n if reduction == "mean" else 1.0


def _is(value: Any, usual: Any) -> bool:
    return not isinstance(value, Tensor) and bool(value == usual)
