"""Convolutions of shared images, their gradients, and images as columns of windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedray.mpc.held import Held, run
from fedray.mpc.registry import no_secure_version, primitive
from fedray.mpc.tensor import SecureTensor

aten = torch.ops.aten

Pair = Sequence[int]


@primitive(aten.convolution.default)
def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    transposed: bool,
    output_padding: Pair,
    groups: int,
) -> Held | Tensor:
    """A convolution of images of shape (n, channels, height, width); images or weight may be public."""
    _require_plain(weight, dilation, transposed, groups)
    if bias is not None:
        made = aten.convolution(images, weight, None, stride, padding, dilation, False, output_padding, 1)
        return made + aten.view(bias, (1, -1, 1, 1))  # type: ignore[no-any-return]
    if isinstance(images, SecureTensor):
        return run("convolve", images, weight, stride=tuple(stride), padding=tuple(padding))
    columns = aten.im2col(images, weight.shape[2:], (1, 1), padding, stride)
    return run("reshape", _flat(weight) @ columns, _out_shape(images, weight, stride, padding))


@primitive(aten.convolution_backward.default)
def convolve_backward(
    grad: Tensor,
    images: Tensor,
    weight: Tensor,
    _bias: Sequence[int] | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    transposed: bool,
    _output_padding: Pair,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of images, weight and bias, those that are wanted."""
    _require_plain(weight, dilation, transposed, groups)
    kernel, flat = weight.shape[2:], aten.flatten(grad, 2)
    return (
        aten.col2im(_flat(weight).t() @ flat, images.shape[2:], kernel, (1, 1), padding, stride) if wanted[0] else None,
        _gradient_of_weight(flat, aten.im2col(images, kernel, (1, 1), padding, stride), weight) if wanted[1] else None,
        aten.sum(grad, (0, 2, 3)) if wanted[2] else None,
    )


def _gradient_of_weight(grad: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
    """One matrix product over images and windows alike, so that it is truncated once."""
    left = grad.permute(1, 0, 2).reshape(weight.shape[0], -1)
    right = columns.permute(0, 2, 1).reshape(left.shape[1], -1)
    return (left @ right).view(weight.shape)


@primitive(aten.im2col.default)
def windows(images: SecureTensor, kernel: Pair, dilation: Pair, padding: Pair, stride: Pair) -> Held:
    """Windows of images as columns, (n, channels * kernel, windows)."""
    _require_undilated(dilation)
    return run("unfold", images, kernel=tuple(kernel), stride=tuple(stride), padding=tuple(padding))


@primitive(aten.col2im.default)
def images_of(columns: SecureTensor, size: Pair, kernel: Pair, dilation: Pair, padding: Pair, stride: Pair) -> Held:
    """Columns added up where their windows were."""
    _require_undilated(dilation)
    return run("fold", columns, size=tuple(size), kernel=tuple(kernel), stride=tuple(stride), padding=tuple(padding))


def _flat(weight: Tensor) -> Tensor:
    return aten.flatten(weight, 1)  # type: ignore[no-any-return]


def _out_shape(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> tuple[int, ...]:
    sides = (
        (side + 2 * edge - window) // step + 1
        for side, edge, window, step in zip(images.shape[2:], padding, weight.shape[2:], stride, strict=True)
    )
    return (images.shape[0], weight.shape[0], *sides)


def _require_plain(weight: Tensor, dilation: Pair, transposed: bool, groups: int) -> None:
    if transposed or groups != 1 or weight.dim() != 4:
        raise no_secure_version("convolution with groups, transposed or not of images", "torch.nn.Conv2d, groups=1")
    _require_undilated(dilation)


def _require_undilated(dilation: Pair) -> None:
    if any(step != 1 for step in dilation):
        raise no_secure_version("a window with dilation", "dilation=1")
