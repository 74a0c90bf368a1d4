"""Comparisons and choices, which are exact, and functions that are approximated, with PyTorch's formulas for gradients.

The errors of approximations are those of ``approximations``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedray.mpc.held import Held, run
from fedray.mpc.registry import primitive
from fedray.mpc.tensor import SecureTensor
from fedray.mpc.tournament import largest

aten = torch.ops.aten


def _named(operator: str, *functions: Any) -> None:
    """Register functions of one tensor that the parties know by a name."""

    def version(x: SecureTensor) -> Held:
        return run(operator, x)

    primitive(*functions)(version)


_named("is_negative", aten.signbit.default)
_named("exp", aten.exp.default)
_named("log", aten.log.default)
_named("reciprocal", aten.reciprocal.default)
_named("sigmoid", aten.sigmoid.default)
_named("inverse_square_root", aten.rsqrt.default)


@primitive(aten.lt.Tensor, aten.lt.Scalar)
def less(x: Any, y: Any) -> Any:
    """Whether x < y. Exact."""
    return aten.signbit(_number(x) - _number(y))


@primitive(aten.gt.Tensor, aten.gt.Scalar)
def greater(x: Any, y: Any) -> Any:
    """Whether x > y. Exact."""
    return less(y, x)


@primitive(aten.ge.Tensor, aten.ge.Scalar)
def at_least(x: Any, y: Any) -> Any:
    """Whether x >= y. Exact."""
    return aten.logical_not(less(x, y))


@primitive(aten.le.Tensor, aten.le.Scalar)
def at_most(x: Any, y: Any) -> Any:
    """Whether x <= y. Exact."""
    return aten.logical_not(less(y, x))


@primitive(aten.ne.Tensor, aten.ne.Scalar)
def differs(x: Any, y: Any) -> Any:
    """Whether two fixed-point numbers differ; one comparison of both signs at once."""
    gap = _number(x) - _number(y)
    return run("sum", aten.signbit(aten.stack([gap, -gap])), dim=0)


@primitive(aten.eq.Tensor, aten.eq.Scalar)
def equals(x: Any, y: Any) -> Any:
    """Whether two fixed-point numbers are the same."""
    return run("subtract", 1, differs(x, y))


def _number(x: Any) -> Any:
    """Truth values as numbers, which can be subtracted."""
    return x.to(torch.float32) if isinstance(x, Tensor) and x.dtype is torch.bool else x


@primitive(aten.logical_not.default, aten.bitwise_not.default)
def negation(x: SecureTensor) -> Held:
    """Not."""
    return run("subtract", 1, x)


@primitive(aten.logical_or.default, aten.bitwise_or.Tensor)
def either(x: Any, y: Any) -> Held:
    """Or: x + y - x y."""
    return run("subtract", run("add", x, y), aten.logical_and(x, y))


@primitive(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(condition: Tensor, x: Any, y: Any) -> Any:
    """x where the condition holds, y elsewhere; each of the three may be public."""
    if isinstance(condition, SecureTensor):
        return condition * (x - y) + y
    chosen = condition.to(torch.float32)
    return x * chosen + y * (1 - chosen)


@primitive(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(x: Any, mask: Tensor, value: Any) -> Any:
    """A value where a mask holds."""
    return where(mask, value, x)


@primitive(aten.tanh.default)
def tanh(x: SecureTensor) -> Any:
    """2 sigmoid(2 x) - 1."""
    return aten.sigmoid(x * 2) * 2 - 1


@primitive(aten.sigmoid_backward.default)
def sigmoid_backward(grad: Tensor, output: SecureTensor) -> Any:
    """grad s (1 - s)."""
    return grad * (output - output * output)


@primitive(aten.tanh_backward.default)
def tanh_backward(grad: Tensor, output: SecureTensor) -> Any:
    """grad (1 - t**2)."""
    return grad * (1 - output * output)


@primitive(aten._softmax.default)
def softmax(x: SecureTensor, dim: int, _half_to_float: bool) -> Any:
    """Of what is left after the largest is subtracted."""
    powers = aten.exp(x - largest(x, dim, keepdim=True))
    return powers * aten.reciprocal(aten.sum(powers, (dim,), True))


@primitive(aten._log_softmax.default)
def log_softmax(x: SecureTensor, dim: int, _half_to_float: bool) -> Any:
    """Of what is left after the largest is subtracted."""
    left = x - largest(x, dim, keepdim=True)
    return left - aten.log(aten.sum(aten.exp(left), (dim,), True))


@primitive(aten._softmax_backward_data.default)
def softmax_backward(grad: Tensor, output: SecureTensor, dim: int, _dtype: torch.dtype) -> Any:
    """s (grad - sum of grad s)."""
    weighed = grad * output
    return weighed - output * aten.sum(weighed, (dim,), True)


@primitive(aten._log_softmax_backward_data.default)
def log_softmax_backward(grad: Tensor, output: SecureTensor, dim: int, _dtype: torch.dtype) -> Any:
    """grad - softmax sum of grad."""
    return grad - aten.exp(output) * aten.sum(grad, (dim,), True)
