"""Rows as tensors where they are computed with.

On the CPU a tensor is the array itself: nothing is copied or kept. On a card, tensors stay as long as there is room for
them, and those used longest ago leave first; room is a share of the card, since owners' processes share it.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.values import Examples

ROWS_SHARE = 0.5
"""Of the process's share of a card, what rows that stay there may take; models and gradients take the rest."""

Pair = tuple[Tensor, Tensor]


class Rows:
    """Features and targets of owners' examples as tensors on one device.

    Args:
        device: where.
        budget: bytes that tensors kept there may take; 0 keeps none.
    """

    def __init__(self, device: torch.device, budget: int) -> None:
        self._device = device
        self._budget = budget
        self._kept: OrderedDict[tuple[int, int], tuple[Examples, Pair]] = OrderedDict()
        self._n_bytes = 0

    def of(self, examples: Examples) -> Pair:
        """Features and targets; kept for as long as others are not wanted more."""
        key = id(examples.features), id(examples.targets)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        pair = tensor_of(examples.features).to(self._device), tensor_of(examples.targets).to(self._device)
        if 0 < size_of(pair) <= self._budget:
            self._keep(key, examples, pair)
        return pair

    def _keep(self, key: tuple[int, int], examples: Examples, pair: Pair) -> None:
        """The arrays are held on to with their tensors: another array must not come by their identity."""
        while self._n_bytes + size_of(pair) > self._budget:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._n_bytes -= size_of(oldest)
        self._kept[key] = examples, pair
        self._n_bytes += size_of(pair)


def rows_on(device: torch.device) -> Rows:
    """Rows on a device: on the CPU nothing is kept, on a card what ``ROWS_SHARE`` of the process's share holds."""
    return Rows(device, int(ROWS_SHARE * memory_of(device)) if device.type == "cuda" else 0)


def tensor_of(array: NDArray[Any]) -> Tensor:
    """A tensor over the array's own memory; it may be read-only, nothing here writes to it."""
    array = np.asarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def size_of(pair: Pair) -> int:
    """Bytes of two tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in pair)


def take_share(device: torch.device, share: float) -> None:
    """Keep this process to a share of a card's memory; beyond it PyTorch raises as if the card were full.

    Args:
        device: the card; on the CPU nothing is done.
        share: part of the card's memory, from 0 to 1.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device.index)


def memory_of(card: torch.device) -> int:
    """Bytes of a card that this process may use."""
    share = torch.cuda.get_per_process_memory_fraction(card.index)
    return int(share * torch.cuda.get_device_properties(card).total_memory)
