"""Sums, products and means of shared tensors, and how PyTorch's autograd reverses them.

A small public factor is multiplied in two steps, its first digits and a power of two: in fixed point with 20 fractional
bits alone, 1/100000 would be 5 % off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedray.mpc.held import Held, as_number, run
from fedray.mpc.registry import no_secure_version, primitive
from fedray.mpc.tensor import SecureTensor

aten = torch.ops.aten

_SMALL = 2.0**-6
_STEP = 2.0**-16


@primitive(aten.add.Tensor, aten.add.Scalar)
def add(x: Any, y: Any, alpha: float = 1) -> Any:
    """x + alpha y."""
    if x.dtype is torch.bool and getattr(y, "dtype", type(y)) in (torch.bool, bool):
        raise no_secure_version("add of two bool tensors", "torch.logical_or, or .float() first")
    return run("add", x, y if alpha == 1 else multiply(y, alpha))


@primitive(aten.sub.Tensor, aten.sub.Scalar)
def subtract(x: Any, y: Any, alpha: float = 1) -> Any:
    """x - alpha y."""
    return run("subtract", x, y if alpha == 1 else multiply(y, alpha))


@primitive(aten.rsub.Tensor, aten.rsub.Scalar)
def subtract_from(x: Any, y: Any, alpha: float = 1) -> Any:
    """y - alpha x."""
    return subtract(y, x, alpha)


@primitive(aten.neg.default)
def negate(x: SecureTensor) -> Held:
    """-x."""
    return run("negate", x)


@primitive(aten.mul.Tensor, aten.mul.Scalar, aten.logical_and.default, aten.bitwise_and.Tensor)
def multiply(x: Any, y: Any) -> Any:
    """x y, elementwise; either may be public."""
    if not isinstance(x, SecureTensor | Held):
        x, y = y, x
    if not isinstance(x, SecureTensor | Held):
        return x * y
    number = as_number(y)
    return run("multiply", x, y) if number is None else _scaled(x, number)


def _scaled(x: SecureTensor | Held, factor: float) -> Held:
    """A shared tensor times a public number: small ones digits first, then the power of two in steps."""
    if factor == 0 or abs(factor) >= _SMALL or not math.isfinite(factor):
        return run("multiply", x, factor)
    digits, exponent = math.frexp(factor)
    x, exponent = run("multiply", x, 2 * digits), exponent - 1
    while exponent < math.log2(_STEP):
        x, exponent = run("multiply", x, _STEP), exponent - int(math.log2(_STEP))
    return run("multiply", x, 2.0**exponent)


@primitive(aten.div.Tensor, aten.div.Scalar)
def divide(x: Any, y: Any) -> Any:
    """x / y. A shared divisor costs a reciprocal."""
    return multiply(x, run("reciprocal", y) if isinstance(y, SecureTensor) else 1 / torch.as_tensor(y))


@primitive(aten.pow.Tensor_Scalar)
def power(x: SecureTensor, exponent: float) -> Any:
    """x to a whole power from 1 on, by squaring."""
    if exponent != int(exponent) or exponent < 1:
        raise no_secure_version(f"pow by {exponent}", "a whole exponent from 1 on; torch.sqrt, torch.reciprocal")
    if exponent == 1:
        return aten.clone(x)
    half = power(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


@primitive(aten.sum.default)
def total(x: SecureTensor, **_: Any) -> Held:
    """The sum of all values."""
    return run("sum", x)


@primitive(aten.sum.dim_IntList)
def total_over(x: SecureTensor, dims: Sequence[int] | None, keepdim: bool = False, **_: Any) -> Held:
    """The sum over dimensions; over all where none is named."""
    return run("sum", x, dim=tuple(dims) if dims else tuple(range(x.dim())), keepdim=keepdim)


@primitive(aten.mean.default, aten.mean.dim)
def mean(x: SecureTensor, dims: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> Held:
    """The mean over dimensions; over all where none is named."""
    over = tuple(dims) if dims else tuple(range(x.dim()))
    return _scaled(total_over(x, over, keepdim), 1 / math.prod(x.shape[dim] for dim in over))


@primitive(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.matmul.default)
def matmul(left: Any, right: Any) -> Any:
    """A product of matrices, batches of them or vectors; either may be public."""
    if isinstance(left, SecureTensor):
        return run("matmul", left, right)
    swapped: Tensor = aten.matmul(_transposed(right), _transposed(left))
    return _transposed(swapped) if left.dim() > 1 and right.dim() > 1 else swapped


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.dim() > 1 else matrix


@primitive(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def product_plus(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta bias + alpha (left @ right)."""
    product: Tensor = aten.matmul(left, right)
    return (product if alpha == 1 else product * alpha) + (bias if beta == 1 else bias * beta)
