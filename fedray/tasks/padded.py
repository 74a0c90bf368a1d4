"""Batches of many owners as one: rows that an owner has too few of are padded, and marked as absent.

Owners come sorted by their number of steps, most first, so that those who still have a batch at a step are the leading
ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.tasks.device import Pair


@dataclass(frozen=True)
class Batch:
    """One step's rows of ``k`` owners, of which the largest batch has ``b``.

    Attributes:
        features: of shape ``(k, b, ...)``; what is no row repeats another one of the owner.
        targets: of shape ``(k, b, ...)``.
        is_row: of shape ``(k, b)``.
    """

    features: Tensor
    targets: Tensor
    is_row: Tensor

    def __len__(self) -> int:
        return len(self.is_row)


class Pool:
    """Rows of a group of owners, and which of them make up each owner's steps.

    Args:
        pairs: features and targets of each owner.
        batches: each owner's row numbers, step by step.
    """

    def __init__(self, pairs: Sequence[Pair], batches: Sequence[Sequence[Tensor]]) -> None:
        self._features = torch.cat([features for features, _ in pairs])
        self._targets = torch.cat([targets for _, targets in pairs])
        starts = np.cumsum([0, *(len(targets) for _, targets in pairs)])[:-1]
        self._n_steps = np.array([len(one) for one in batches])
        self._sizes = _padded([np.array([len(rows) for rows in one], dtype=np.int64) for one in batches])
        drawn = [torch.cat([*one, torch.zeros(0, dtype=torch.int64)]).numpy() for one in batches]
        self._drawn = np.concatenate([start + rows for start, rows in zip(starts, drawn, strict=True)])
        ends = np.cumsum(self._sizes.ravel()).reshape(self._sizes.shape)
        self._first = ends - self._sizes

    def batches(self) -> Iterator[Batch]:
        """The steps one after the other, each of the leading owners that take it."""
        for step in range(max(self._n_steps, default=0)):
            yield self._batch(step, int((self._n_steps > step).sum()))

    def _batch(self, step: int, k: int) -> Batch:
        sizes, first = self._sizes[:k, step, None], self._first[:k, step, None]
        places = np.arange(max(1, sizes.max()))
        within = np.minimum(places, np.maximum(sizes - 1, 0))
        rows = self._numbers(first + within)
        device = self._features.device
        return Batch(
            self._features.index_select(0, rows.to(device)).unflatten(0, (k, len(places))),
            self._targets.index_select(0, rows.to(device)).unflatten(0, (k, len(places))),
            torch.from_numpy(places < sizes).to(device),
        )

    def _numbers(self, places: NDArray[np.int64]) -> Tensor:
        """Numbers of rows in the pool; for an owner whose batch is empty, of any row."""
        if not len(self._drawn):
            return torch.zeros(places.size, dtype=torch.int64)
        return torch.from_numpy(self._drawn[np.minimum(places, len(self._drawn) - 1).ravel()])


def _padded(sizes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sizes of batches, of shape ``(owners, steps)``, 0 where an owner has no more steps."""
    table = np.zeros((len(sizes), max((len(one) for one in sizes), default=0)), dtype=np.int64)
    for row, one in zip(table, sizes, strict=True):
        row[: len(one)] = one
    return table
