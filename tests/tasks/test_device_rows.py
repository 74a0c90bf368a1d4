"""Rows as tensors: on the CPU the array's own memory, on a card what fits, the longest unused leaving first."""

from __future__ import annotations

from types import SimpleNamespace

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


@pytest.mark.parametrize(("name", "index"), [("cuda", None), ("cuda:1", 1)])
def test_rows_take_half_of_the_processs_share_of_a_card(
    name: str, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a made-up card of 1,000 bytes. PyTorch takes a number or None here, and no device without a number."""
    shares: dict[int | None, float] = {}
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share, card: shares.update({card: share}))
    monkeypatch.setattr("torch.cuda.get_per_process_memory_fraction", lambda card: shares[card])
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda card: SimpleNamespace(total_memory=1000))
    take_share(torch.device(name), 0.25)
    assert shares == {index: 0.25}
    assert rows_on(torch.device(name))._budget == 125


def test_a_share_of_a_card_means_nothing_on_the_cpu() -> None:
    take_share(CPU, 0.25)
    assert rows_on(CPU)._budget == 0
