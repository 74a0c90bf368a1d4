"""Torch functions whose own way would cost more on shares, in terms of others that have a secure version.

Most are choices: relu(x) is x times whether x is not negative, and autograd then multiplies by the same truth value
instead of comparing again. Gradients are PyTorch's but where two values are alike, which PyTorch splits evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedray.mpc.registry import function, no_secure_version
from fedray.mpc.tensor import SecureTensor
from fedray.mpc.tournament import largest, largest_and_first

Window = int | Sequence[int]


def _in_place(name: str, version: Callable[..., Tensor]) -> None:
    """Register the form of a function that changes its argument."""

    @wraps(version)
    def changed(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.copy_(version(x, *args, **kwargs))

    function(name)(changed)


@function("relu")
def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """x where it is positive, 0 elsewhere. Exact in sign; 0 has the gradient 1."""
    return _kept(x, x * (x >= 0), inplace)


@function("leaky_relu")
def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where it is positive, a part of it elsewhere."""
    return _kept(x, relu(x) * (1 - negative_slope) + x * negative_slope, inplace)


@function("relu6")
def relu6(x: Tensor, inplace: bool = False) -> Tensor:
    """x between 0 and 6."""
    return _kept(x, clamp(x, 0, 6), inplace)


@function("hardtanh")
def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x between bounds."""
    return _kept(x, clamp(x, min_val, max_val), inplace)


@function("abs")
def absolute(x: Tensor) -> Tensor:
    """x without its sign."""
    return x * (2 * (x >= 0) - 1)


@function("clamp", "clip")
def clamp(x: Tensor, min: Any = None, max: Any = None) -> Any:  # noqa: A002
    """x between bounds, both of which are compared with at once."""
    if min is None or max is None:
        return minimum(x, max) if min is None else maximum(x, min)
    below, above = relu(torch.stack([min - x, x - max]))
    return x + below - above


@function("maximum")
def maximum(x: Any, y: Any) -> Any:
    """The larger of two, elementwise."""
    return y + relu(x - y)


@function("minimum")
def minimum(x: Any, y: Any) -> Any:
    """The smaller of two, elementwise."""
    return x - relu(x - y)


@function("max")
def max_(x: Tensor, dim: Any = None, keepdim: bool = False, other: Any = None) -> Any:
    """The largest of all values; over a dimension, with its place; or the larger of two tensors."""
    if isinstance(dim, Tensor) or other is not None:
        return maximum(x, dim if other is None else other)
    if dim is None:
        return largest(x.flatten(), 0)
    return torch.return_types.max(largest_and_first(x, dim, keepdim))


@function("min")
def min_(x: Tensor, dim: Any = None, keepdim: bool = False, other: Any = None) -> Any:
    """As ``max``, of the smallest."""
    if isinstance(dim, Tensor) or other is not None:
        return minimum(x, dim if other is None else other)
    if dim is None:
        return -largest(-x.flatten(), 0)
    value, place = largest_and_first(-x, dim, keepdim)
    return torch.return_types.min((-value, place))


@function("amax")
def amax(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The largest value of a dimension."""
    return largest(x, dim, keepdim)


@function("amin")
def amin(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The smallest value of a dimension."""
    return -largest(-x, dim, keepdim)


@function("argmax")
def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The place of the largest value: the first where several are alike."""
    x, at = (x.flatten(), 0) if dim is None else (x, dim)
    return largest_and_first(x.detach(), at, keepdim)[1]


@function("argmin")
def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The place of the smallest value: the first where several are alike."""
    return argmax(-x, dim, keepdim)


@function("matmul", "__matmul__")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """A product of matrices, batches of them or vectors."""
    left, right = (y.mT, x) if x.dim() == 1 < y.dim() else (x, y)
    with torch._C.DisableTorchFunctionSubclass():
        return torch.matmul(left, right)


@function("div", "divide", "true_divide", "__truediv__")
def divide(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    """x / y; the reciprocal of a shared divisor serves the gradient again."""
    if rounding_mode is not None:
        raise no_secure_version("div with a rounding_mode", "x / y")
    return x * (torch.reciprocal(y) if isinstance(y, SecureTensor) else 1 / torch.as_tensor(y))


@function("sqrt")
def sqrt(x: Tensor) -> Tensor:
    """x / sqrt(x)."""
    return x * torch.rsqrt(x)


@function("silu")
def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(x)."""
    return _kept(x, x * torch.sigmoid(x), inplace)


@function("max_pool2d")
def max_pool2d(
    x: Tensor,
    kernel_size: Window,
    stride: Window | None = None,
    padding: Window = 0,
    dilation: Window = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The largest value of each window. A window that reaches beyond the edge sees the edge again, and not zeros."""
    if ceil_mode or return_indices or _pair(dilation) != (1, 1):
        raise no_secure_version("max_pool2d with ceil_mode, return_indices or dilation", "max_pool2d without")
    for dim, (width, step, edge) in enumerate(_sides(kernel_size, stride, padding), start=x.dim() - 2):
        x = _largest_along(x, dim, width, step, edge)
    return x


def _largest_along(x: Tensor, dim: int, width: int, step: int, edge: int) -> Tensor:
    n = x.shape[dim]
    starts = torch.arange(-edge, n + edge - width + 1, step)
    places = (starts + torch.arange(width)[:, None]).clamp(0, n - 1)
    return largest(torch.stack([index_select(x, dim, row) for row in places]), 0)


@function("avg_pool2d")
def avg_pool2d(
    x: Tensor,
    kernel_size: Window,
    stride: Window | None = None,
    padding: Window = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window: of its columns' mean."""
    if ceil_mode or divisor_override or not (count_include_pad or _pair(padding) == (0, 0)):
        raise no_secure_version("avg_pool2d with ceil_mode, divisor_override or padding that is not counted", "without")
    (height, down, top), (width, right, left) = _sides(kernel_size, stride, padding)
    n, channels = x.shape[:2]
    sides = (x.shape[2] + 2 * top - height) // down + 1, (x.shape[3] + 2 * left - width) // right + 1
    columns = F.unfold(x, (height, width), padding=(top, left), stride=(down, right))
    return columns.reshape(n, channels, height * width, *sides).mean(2)


@function("adaptive_avg_pool2d")
def adaptive_avg_pool2d(x: Tensor, output_size: Window) -> Tensor:
    """The mean of each image."""
    if _pair(output_size) != (1, 1):
        raise no_secure_version(f"adaptive_avg_pool2d to {output_size}", "avg_pool2d, or an output of size 1")
    return x.mean((-2, -1), keepdim=True)


@function("index_select")
def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Places of one dimension by public numbers."""
    places: tuple[Any, ...] = (*[slice(None)] * (dim % x.dim()), index)
    return x[places]


@function("batch_norm")
def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    """By running statistics, public or shared: a factor and a term for each channel."""
    if training or running_mean is None or running_var is None:
        raise no_secure_version("batch_norm by the statistics of a batch", "call eval() on the module")
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    places = (1, -1, *[1] * (x.dim() - 2))
    return x * scale.view(places) + shift.view(places)


@function("dropout")
def dropout(x: Tensor, p: float = 0.5, training: bool = True, **_: Any) -> Tensor:
    """x itself, outside of training."""
    if training and p > 0:
        raise no_secure_version("dropout in training", "call eval() on the module, or set p to 0")
    return x


def _kept(x: Tensor, made: Tensor, inplace: bool) -> Tensor:
    return x.copy_(made) if inplace else made


def _pair(window: Window) -> tuple[int, int]:
    return (window, window) if isinstance(window, int) else (window[0], window[-1])


def _sides(kernel: Window, stride: Window | None, padding: Window) -> list[tuple[int, int, int]]:
    """Width, step and edge of windows, down and across."""
    return list(zip(_pair(kernel), _pair(stride or kernel), _pair(padding), strict=True))


_in_place("relu_", relu)
_in_place("clamp_", clamp)
_in_place("abs_", absolute)
