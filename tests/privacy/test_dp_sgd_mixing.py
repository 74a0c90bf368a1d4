"""A model that mixes the rows of a batch is refused under example-level privacy, one that draws at random is not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import assignment, plan

from fedray.errors import ModelError
from fedray.privacy.account import Account
from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent, check_private, make_private
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile
from fedray.tasks.losses import Loss, cross_entropy
from fedray.tasks.torch_task import TorchTask
from fedray.values import Examples, Schema, Shard

SCHEMA = Schema((4,), "float32", (), 2)


class Centred(nn.Module):
    """Subtracts the mean over the batch: no BatchNorm by name, but one by nature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x - x.mean(0))
        return scores


def test_a_hidden_batch_statistic_is_refused() -> None:
    with pytest.raises(ModelError, match="act on each other"):
        check_private(make_private(Centred()), cross_entropy, SCHEMA)


def test_dropout_is_accepted() -> None:
    torch.manual_seed(0)
    check_private(make_private(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))), cross_entropy, SCHEMA)


class Transposed(nn.Module):
    """Puts positions first: Opacus would take positions for rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.unsqueeze(-1).transpose(0, 1)).mean(0)
        return scores


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets) * len(targets)


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets) + outputs.mean(0).square().sum()


def test_an_axis_that_is_not_the_rows_is_refused() -> None:
    with pytest.raises(ModelError, match=r"per-example gradient|act on each other"):
        check_private(make_private(Transposed()), cross_entropy, SCHEMA)


@pytest.mark.parametrize("loss", [summed, contrastive])
def test_a_loss_that_is_no_mean_over_rows_is_refused(loss: Loss) -> None:
    check_private(make_private(nn.Sequential(nn.Linear(4, 2))), cross_entropy, SCHEMA)
    with pytest.raises(ModelError, match="act on each other"):
        check_private(make_private(nn.Sequential(nn.Linear(4, 2))), loss, SCHEMA)


class Hoards(nn.Module):
    """Remembers the largest input that it ever saw beyond 1,000, which no probe will show it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("seen", torch.tensor(1000.0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.maximum(self.seen, x.max())
        scores: Tensor = self.linear(x)
        return scores


def _descent(folder: Path, dp: DpSgdPlan) -> PrivateDescent:
    ledger = Ledger(LedgerFile(folder / "ledger.jsonl"), "a")
    return PrivateDescent(dp, Account(ledger, "a run", "mixing", "example", 1e-5, None))


def test_buffers_never_leave_under_privacy_whatever_the_model_does(tmp_path: Path) -> None:
    check_private(make_private(Hoards()), cross_entropy, SCHEMA)
    descent = _descent(tmp_path, DpSgdPlan(6, 3, 1.0, 1.0))
    task = TorchTask(Hoards, cross_entropy, {}, partial(torch.optim.SGD, lr=0.1), descent)
    rows = Examples(np.full((6, 4), 5555.0, np.float32), np.zeros(6, np.int64))
    update = task.train(task.initial(0), assignment(plan(3)), Shard(rows, rows), 0)
    assert update.delta[-1] == 0.0
    assert (update.delta[:-1] != 0).all()


def test_a_row_whose_gradient_is_not_finite_does_not_show(tmp_path: Path) -> None:
    descent = _descent(tmp_path, DpSgdPlan(6, 6, 1.0, 1.0))
    task = TorchTask(lambda: nn.Linear(4, 2), cross_entropy, {}, partial(torch.optim.SGD, lr=0.1), descent)
    features = np.ones((6, 4), np.float32)
    features[2] = 3e38
    update = task.train(task.initial(0), assignment(plan(3)), Shard(Examples(features, np.zeros(6, np.int64)), None), 0)
    assert np.isfinite(update.delta).all()


def test_a_recurrent_model_of_the_users_own_is_made_private_without_pickling() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(1, 3, batch_first=True)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])
            return scores

    torch.manual_seed(1)
    plainly = Local()
    torch.manual_seed(1)
    privately = make_private(Local())
    x = torch.randn(5, 4)
    torch.testing.assert_close(privately(x), plainly(x))
    check_private(privately, cross_entropy, SCHEMA)
