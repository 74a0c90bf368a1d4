"""Which of the common rows make up a batch; every party derives it by itself from the public seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedray import seeds
from fedray.vertical.messages import Purpose


@dataclass(frozen=True)
class Batches:
    """Common rows by their position: those to train on first, then those held out.

    Attributes:
        n_train: rows to train on.
        n_rows: all common rows.
        seed: the run's; with an epoch's number it gives that epoch's order.
    """

    n_train: int
    n_rows: int
    seed: int

    def count(self, purpose: Purpose, size: int) -> int:
        """How many batches of at most ``size`` rows there are."""
        n = self.n_rows - self.n_train if purpose == "holdout" else self.n_train
        return -(-n // size)

    def batch(self, purpose: Purpose, epoch: int, number: int, size: int) -> Tensor:
        """Positions of one batch, int64 of shape ``(at most size,)``; empty beyond the last."""
        return _order(self, purpose, epoch)[number * size : (number + 1) * size]


@lru_cache(maxsize=16)
def _order(batches: Batches, purpose: Purpose, epoch: int) -> Tensor:
    if purpose == "step":
        return torch.from_numpy(seeds.generator(batches.seed, "vertical", epoch).permutation(batches.n_train))
    ends = (batches.n_train, batches.n_rows) if purpose == "holdout" else (0, batches.n_train)
    return torch.arange(*ends)
