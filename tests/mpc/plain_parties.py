"""Parties in the clear: one float64 tensor each value, every operator by torch. What shares are held against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedray.mpc.engine import Cost, Ref


def _put(x: Tensor, index: Any, shape: Sequence[int]) -> Tensor:
    room = np.zeros(shape)
    np.add.at(room, tuple(part.numpy() if isinstance(part, Tensor) else part for part in index), x.numpy())
    return torch.from_numpy(room)


def _sum(x: Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    return x if dim == () else x.sum(dim=dim, keepdim=keepdim)


OPERATORS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "negate": torch.neg,
    "multiply": torch.mul,
    "matmul": torch.matmul,
    "convolve": lambda x, weight, stride, padding: F.conv2d(x, weight, stride=stride, padding=padding),
    "sum": _sum,
    "reshape": torch.reshape,
    "permute": torch.permute,
    "expand": torch.Tensor.expand,
    "index": lambda x, index: x[index],
    "put": _put,
    "concatenate": torch.cat,
    "pad": F.pad,
    "unfold": lambda x, kernel, stride, padding: F.unfold(x, kernel, padding=padding, stride=stride),
    "fold": lambda x, size, kernel, stride, padding: F.fold(x, size, kernel, padding=padding, stride=stride),
    "is_negative": lambda x: (x < 0).to(torch.float64),
    "exp": torch.exp,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "sigmoid": torch.sigmoid,
    "inverse_square_root": torch.rsqrt,
}


class PlainParties:
    """Nothing is hidden and nothing is rounded; who may read is not asked.

    Attributes:
        called: names of operators in their order.
        values: all that is held.
    """

    precision = 20

    def __init__(self) -> None:
        self.called: list[str] = []
        self.values: dict[Ref, Tensor] = {}
        self._n_made = 0

    def share(self, value: Tensor, readers: Collection[bytes] | None = None) -> Ref:
        return self._kept(value.detach().to(torch.float64))

    @torch.no_grad()
    def run(self, operator: str, *args: Any, **options: Any) -> Ref:
        self.called.append(operator)
        made = OPERATORS[operator](*(self._found(arg) for arg in args), **options)
        return self._kept(made.clone())

    def reveal(self, ref: Ref) -> Tensor:
        return self.values[ref].clone()

    def sealed(self, ref: Ref, reader: bytes) -> bytes:
        raise NotImplementedError

    def forget(self, refs: Sequence[Ref]) -> None:
        for ref in refs:
            del self.values[ref]

    def costs(self) -> list[Cost]:
        return []

    def _kept(self, value: Tensor) -> Ref:
        self._n_made += 1
        self.values[ref := Ref(self._n_made)] = value
        return ref

    def _found(self, arg: Any) -> Any:
        if isinstance(arg, Ref):
            return self.values[arg]
        if isinstance(arg, list):
            return [self._found(one) for one in arg]
        if isinstance(arg, int | float):
            return torch.tensor(arg, dtype=torch.float64)
        return arg.to(torch.float64) if isinstance(arg, Tensor) else arg
