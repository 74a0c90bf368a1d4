"""Rows as tensors: on the CPU the array's own memory, on a card what fits, the longest unused leaving first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import IMAGE, NEXT_TOKEN, TABLE, examples

from fedray.tasks.device import Rows, rows_on, take_share, tensor_of

CPU = torch.device("cpu")
BYTES = 10 * (5 * 4 + 8)
"""Of ten rows of a table."""


def test_on_the_cpu_tensors_are_the_arrays_own_memory() -> None:
    for schema in (TABLE, IMAGE, NEXT_TOKEN):
        one = examples(10, schema)
        features, targets = rows_on(CPU).of(one)
        assert features.data_ptr() == one.features.ctypes.data
        assert targets.data_ptr() == one.targets.ctypes.data
        assert torch.equal(features, torch.tensor(one.features))


def test_read_only_arrays_are_neither_copied_nor_warned_about() -> None:
    array = np.arange(6.0)
    array.flags.writeable = False
    assert tensor_of(array).data_ptr() == array.ctypes.data


def test_the_longest_unused_leave_first() -> None:
    """Two owners' rows fit; a copy tells whether a tensor was kept."""
    rows, owners = Rows(CPU, 2 * BYTES), [examples(10, TABLE, seed) for seed in range(3)]
    first, second = rows.of(owners[0]), rows.of(owners[1])
    assert rows.of(owners[0]) is first
    third = rows.of(owners[2])
    assert rows.of(owners[0]) is first
    assert rows.of(owners[2]) is third
    assert rows.of(owners[1]) is not second
    assert rows.of(owners[2]) is third
    assert rows.of(owners[0]) is not first


@pytest.mark.parametrize("budget", [0, BYTES - 1])
def test_what_does_not_fit_is_not_kept_and_drives_nothing_out(budget: int) -> None:
    rows, small, large = Rows(CPU, budget), examples(1), examples(10)
    kept = rows.of(small)
    assert rows.of(large) is not rows.of(large)
    assert (rows.of(small) is kept) == (budget > 0)


def test_no_more_is_kept_than_the_budget_whatever_comes() -> None:
    rows = Rows(CPU, 3 * BYTES)
    for n in (10, 3, 25, 30, 1, 29, 0, 12, 18):
        rows.of(examples(n))
        kept = sum(one.features.nbytes + one.targets.nbytes for one, _ in rows._kept.values())
        assert kept == rows._n_bytes <= 3 * BYTES


def test_a_share_of_a_card_means_nothing_on_the_cpu() -> None:
    take_share(CPU, 0.25)
    assert rows_on(CPU)._budget == 0
