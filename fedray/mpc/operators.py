"""The operators that parties know, by name: each a program that all three run on their own shares.

A factor or a term may be public, a tensor or a number, where ``Term`` stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedray.mpc import approximations
from fedray.mpc.comparison import is_negative
from fedray.mpc.images import folded, unfolded
from fedray.mpc.party import Party
from fedray.mpc.products import product, scaled
from fedray.mpc.shares import Share, aligned

Term = Share | Tensor | float | int
Operator = Callable[..., Share]


def _shared(party: Party, value: Term) -> Share:
    return value if isinstance(value, Share) else party.public(torch.as_tensor(value))


def _bilinear(party: Party, left: Term, right: Term, function: Callable[[Tensor, Tensor], Tensor]) -> Share:
    if isinstance(left, Share) and isinstance(right, Share):
        return product(party, left, right, function)
    if isinstance(left, Share):
        return scaled(party, left, torch.as_tensor(right), function)
    return scaled(party, _shared(party, right), torch.as_tensor(left), lambda x, y: function(y, x))


def add(party: Party, left: Term, right: Term) -> Share:
    return _shared(party, left) + _shared(party, right)


def subtract(party: Party, left: Term, right: Term) -> Share:
    return _shared(party, left) - _shared(party, right)


def negate(_party: Party, share: Share) -> Share:
    return -share


def multiply(party: Party, left: Term, right: Term) -> Share:
    return _bilinear(party, left, right, torch.mul)


def matmul(party: Party, left: Term, right: Term) -> Share:
    return _bilinear(party, left, right, torch.matmul)


def convolve(
    party: Party,
    image: Share,
    weight: Share | Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Share:
    """A convolution of (n, channels, height, width) with (filters, channels, height, width)."""

    def convolved(x: Tensor, filters: Tensor) -> Tensor:
        n_filters, _, *kernel = filters.shape
        columns = unfolded(x, (kernel[0], kernel[1]), stride, padding)
        height = (x.shape[2] + 2 * padding[0] - kernel[0]) // stride[0] + 1
        flat = columns.permute(1, 0, 2).reshape(columns.shape[1], -1)
        out = filters.reshape(n_filters, -1) @ flat
        return out.reshape(n_filters, x.shape[0], height, -1).transpose(0, 1)

    return _bilinear(party, image, weight, convolved)


def total(_party: Party, share: Share, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Share:
    """The sum over dimensions; all where none is named."""
    dims = tuple(range(len(share.shape))) if dim is None else dim
    return share.map(lambda words: words.sum(dim=dims, keepdim=keepdim)) if dims != () else share


def reshape(_party: Party, share: Share, shape: Sequence[int]) -> Share:
    return share.map(lambda words: words.reshape(tuple(shape)))


def permute(_party: Party, share: Share, dims: Sequence[int]) -> Share:
    return share.map(lambda words: words.permute(tuple(dims)))


def expand(_party: Party, share: Share, shape: Sequence[int]) -> Share:
    return share.map(lambda words: words.expand(tuple(shape)))


def index(_party: Party, share: Share, index: Any) -> Share:
    """What ``share[index]`` is, for a public index."""
    return share.map(lambda words: words[index])


def put(_party: Party, share: Share, index: Any, shape: Sequence[int]) -> Share:
    """Zeros of a shape to which the share is added at a public index: the transpose of ``index``."""

    def placed(words: Tensor) -> Tensor:
        room = torch.zeros(tuple(shape), dtype=words.dtype)
        places = torch.arange(room.numel()).reshape(room.shape)[index].reshape(-1)
        return room.reshape(-1).index_add(0, places, words.reshape(-1)).reshape(room.shape)

    return share.map(placed)


def concatenate(party: Party, shares: Sequence[Term], dim: int = 0) -> Share:
    together = [_shared(party, share) for share in shares]
    finest = max(together, key=lambda share: share.precision)
    parts = [aligned(share, finest)[0] for share in together]
    return Share(
        torch.cat([part.own for part in parts], dim), torch.cat([part.next for part in parts], dim), finest.precision
    )


def pad(_party: Party, share: Share, padding: Sequence[int]) -> Share:
    """Zeros around the last dimensions, in the order of ``torch.nn.functional.pad``."""
    return share.map(lambda words: torch.nn.functional.pad(words, list(padding)))


def unfold(
    _party: Party, share: Share, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Share:
    """Windows as columns, in the layout of ``torch.nn.functional.unfold``."""
    return share.map(lambda words: unfolded(words, kernel, stride, padding))


def fold(
    _party: Party,
    share: Share,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Share:
    """Columns added up where their windows were: the transpose of ``unfold``."""
    return share.map(lambda words: folded(words, size, kernel, stride, padding))


OPERATORS: dict[str, Operator] = {
    "add": add,
    "subtract": subtract,
    "negate": negate,
    "multiply": multiply,
    "matmul": matmul,
    "convolve": convolve,
    "sum": total,
    "reshape": reshape,
    "permute": permute,
    "expand": expand,
    "index": index,
    "put": put,
    "concatenate": concatenate,
    "pad": pad,
    "unfold": unfold,
    "fold": fold,
    "is_negative": is_negative,
    "exp": approximations.exp,
    "log": approximations.log,
    "reciprocal": approximations.reciprocal,
    "sigmoid": approximations.sigmoid,
    "inverse_square_root": approximations.inverse_square_root,
}
