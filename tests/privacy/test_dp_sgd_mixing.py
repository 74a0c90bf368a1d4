"""A model that mixes the rows of a batch is refused under example-level privacy, one that draws at random is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedray.errors import ModelError
from fedray.privacy.dp_sgd import check_private, make_private
from fedray.values import Schema

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
    with pytest.raises(ModelError, match="other rows"):
        check_private(make_private(Centred()), SCHEMA)


def test_dropout_is_accepted() -> None:
    torch.manual_seed(0)
    check_private(make_private(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))), SCHEMA)
