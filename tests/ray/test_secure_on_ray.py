"""Owners of a model and of data, each in its own process, share what the caller computes with and cannot read."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from torch import Tensor, nn

from fedray.actors.parties import HeldParties, Parties
from fedray.errors import ProtocolError
from fedray.mpc.conducting import opened
from fedray.mpc.keys import Reader
from fedray.mpc.modules import secure
from fedray.mpc.sharing import share

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_dir")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def _rows() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@ray.remote
class ModelOwner:
    def model(self, parties: HeldParties, readers: list[bytes]) -> nn.Module:
        return secure(_model(), parties, readers)


@ray.remote
class DataOwner:
    def __init__(self) -> None:
        self._reader = Reader()

    def public(self) -> bytes:
        return self._reader.public

    def rows(self, parties: HeldParties) -> Tensor:
        return share(_rows(), parties, [self._reader.public])

    def read(self, sealed: bytes) -> Tensor:
        return opened(sealed, self._reader)


def test_a_data_owner_learns_what_a_model_says_and_nobody_else_learns_anything() -> None:
    model_owner: Any = ModelOwner.remote()
    data_owner: Any = DataOwner.remote()
    reader = ray.get(data_owner.public.remote())
    with Parties() as parties:
        model = ray.get(model_owner.model.remote(parties, [reader]))
        rows = ray.get(data_owner.rows.remote(parties))
        with torch.no_grad():
            scores = model(rows)
        found = ray.get(data_owner.read.remote(scores.sealed(reader)))
        torch.testing.assert_close(found, _model()(_rows()).detach().double(), atol=1e-4, rtol=0)
        for hidden in (scores, rows, *model.parameters()):
            with pytest.raises(ProtocolError, match="may not learn"):
                hidden.detach().reveal()
    for owner in (model_owner, data_owner):
        ray.kill(owner)


def test_training_on_actors_takes_the_steps_that_it_takes_in_the_clear() -> None:
    plain, rows, labels = _model(), _rows(), torch.tensor([0, 1, 1, 0, 1, 0])
    with Parties() as parties:
        secured = secure(plain, parties)
        for module, inputs in ((plain, rows), (secured, share(rows, parties))):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
        for ours, theirs in zip(secured.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.detach().reveal(), theirs.detach().double(), atol=1e-3, rtol=0)
