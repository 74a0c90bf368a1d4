"""Windows of images as columns, and back, for words: torch's own know floating point only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

Pair = tuple[int, int]


def unfolded(images: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """(n, channels, height, width) as (n, channels * kernel, windows), as ``torch.nn.functional.unfold``."""
    framed = pad(images, (padding[1], padding[1], padding[0], padding[0]))
    windows = framed.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
    n, channels, height, width = windows.shape[:4]
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(n, channels * kernel[0] * kernel[1], height * width)


def folded(columns: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Columns added up where their windows were, as ``torch.nn.functional.fold``."""
    height, width = (
        (side + 2 * edge - window) // step + 1
        for side, edge, window, step in zip(size, padding, kernel, stride, strict=True)
    )
    windows = columns.reshape(columns.shape[0], -1, *kernel, height, width)
    framed = torch.zeros((*windows.shape[:2], size[0] + 2 * padding[0], size[1] + 2 * padding[1]), dtype=columns.dtype)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            rows = slice(row, row + stride[0] * height, stride[0])
            framed[:, :, rows, column : column + stride[1] * width : stride[1]] += windows[:, :, row, column]
    return framed[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
