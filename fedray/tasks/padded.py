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
        weights: of rows in their owner's mean, 0 for what is no row; of shape ``(k, b)``.
    """

    features: Tensor
    targets: Tensor
    is_row: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.is_row)


class Steps:
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
        together = np.concatenate([start + rows for start, rows in zip(starts, drawn, strict=True)])
        self._numbers, is_row = self._laid_out(together)
        shares = is_row / np.maximum(self._sizes, 1)[..., None]
        device = self._features.device
        self._is_row = torch.from_numpy(is_row).to(device)
        self._weights = torch.from_numpy(shares.astype(np.float32)).to(device)

    def batches(self) -> Iterator[Batch]:
        """The steps one after the other, each of the leading owners that take it."""
        for step in range(max(self._n_steps, default=0)):
            k = int((self._n_steps > step).sum())
            b = max(1, int(self._sizes[:k, step].max()))
            rows = self._numbers[:k, step, :b]
            yield Batch(
                self._features.index_select(0, rows.flatten()).unflatten(0, (k, b)),
                self._targets.index_select(0, rows.flatten()).unflatten(0, (k, b)),
                self._is_row[:k, step, :b],
                self._weights[:k, step, :b],
            )

    def _laid_out(self, drawn: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.bool_]]:
        """Numbers of rows by owner, step and place, and where there is one; an empty batch has any row's number."""
        sizes = self._sizes[..., None]
        first = np.cumsum(self._sizes.ravel()).reshape(self._sizes.shape)[..., None] - sizes
        places = np.arange(max(1, self._sizes.max(initial=0)))
        if not len(drawn):
            return torch.zeros((*self._sizes.shape, 1), dtype=torch.int64), np.zeros((*self._sizes.shape, 1), np.bool_)
        within = np.minimum(places, np.maximum(sizes - 1, 0))
        numbers = drawn[np.minimum(first + within, len(drawn) - 1)]
        return torch.from_numpy(numbers).to(self._features.device), places < sizes


def _padded(sizes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sizes of batches, of shape ``(owners, steps)``, 0 where an owner has no more steps."""
    table = np.zeros((len(sizes), max((len(one) for one in sizes), default=0)), dtype=np.int64)
    for row, one in zip(table, sizes, strict=True):
        row[: len(one)] = one
    return table
