"""Masks of dropout under example-level privacy: from a seed that nobody knows, or from one that a test replays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toys import assignment, plan

from fedray.privacy.account import Account
from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile


def seeds_of_two_rounds(folder: Path, replay: int | None) -> list[int]:
    """What PyTorch's generator is seeded with in two rounds that the experiment seeds alike, with 5."""
    account = Account(Ledger(LedgerFile(folder / "ledger", "process"), "a"), "run", "toy", "example", 1e-5, None)
    descent = PrivateDescent(DpSgdPlan(6, 3, 1.0, 1.0), account, replay)
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    wrapped = descent.wrap(module)
    found = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            descent.steps(wrapped, optimizer, descent.draw(assignment(plan()), 6, 5))
            found.append(torch.initial_seed())
    return found


@pytest.mark.parametrize("replay", [None, 7])
def test_masks_follow_no_seed_that_others_know_unless_they_are_replayed(replay: int | None, tmp_path: Path) -> None:
    first, second = seeds_of_two_rounds(tmp_path, replay)
    assert (first == second == 5) == (replay is not None)
    assert (first != second) == (replay is None)
