"""A model served from an actor gives what it gives in process; what it refuses is the caller's error."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import ray
import torch
from ray import cloudpickle
from torch import nn

from fedray.actors.encrypted_inference import RayEncryptedModel
from fedray.config.cluster import Place
from fedray.encrypted import Client, EncryptedModel, Square
from fedray.errors import ModelError, ProtocolError, ResourcesError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.usefixtures("ray_dir")


def _module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), Square(), nn.Flatten(), nn.Linear(8, 3))


def _open() -> EncryptedModel:
    return EncryptedModel(_module(), (1, 4, 4))


@pytest.fixture(scope="module")
def served(ray_dir: object) -> Iterator[RayEncryptedModel]:
    model = RayEncryptedModel(_open)
    yield model
    model.close()


def test_an_actor_gives_what_the_module_gives(served: RayEncryptedModel) -> None:
    assert served.public_description == _open().public_description
    client = Client(served.public_description)
    images = torch.rand(6, 1, 4, 4)
    assert torch.allclose(client.decrypt(served(client.encrypt(images))), _module()(images), atol=1e-3)


def test_what_the_model_refuses_is_the_callers_error_and_it_goes_on(served: RayEncryptedModel) -> None:
    for message in (b"", b"garbage"):
        with pytest.raises(ProtocolError, match="no protocol message"):
            served(message)
    client = Client(served.public_description)
    assert client.decrypt(served(client.encrypt(torch.zeros(1, 1, 4, 4)))).shape == (1, 3)


def test_a_client_cannot_be_sent_to_an_actor(served: RayEncryptedModel) -> None:
    client = Client(served.public_description)
    with pytest.raises(TypeError, match="stays in its process"):
        ray.put(client)


def test_a_model_that_cannot_be_computed_is_refused_where_it_is_served() -> None:
    with pytest.raises(ModelError, match=r"layer 1 \(ReLU\)"):
        RayEncryptedModel(lambda: EncryptedModel(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (2,)))


def test_an_actor_that_does_not_start_in_time_is_a_clear_error() -> None:
    with pytest.raises(ResourcesError, match="within 1 s"):
        RayEncryptedModel(_open, Place(resources={"none has this": 1.0}), timeout_s=1.0)


def test_an_actor_that_is_gone_is_a_clear_error() -> None:
    model = RayEncryptedModel(_open)
    client = Client(model.public_description)
    request = client.encrypt(torch.zeros(1, 1, 4, 4))
    model.close()
    with pytest.raises(ProtocolError, match="no answer of the model"):
        model(request)
