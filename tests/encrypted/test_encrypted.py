"""Encrypted inference gives the module's outputs, the server holds no key, and whoever lies is refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
import torch
from torch import nn

from fedray.encrypted import Client, EncryptedModel, Square
from fedray.encrypted.messages import Reply, Request
from fedray.encrypted.parameters import Parameters
from fedray.encrypted.scheme import Scheme, to_bytes
from fedray.errors import ConfigError, DataError, ModelError, ProtocolError
from fedray.protection import wire


def _linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def _cnn() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, stride=2),
        Square(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(2, 4),
        Square(),
        nn.Linear(4, 3),
    )


@pytest.fixture(scope="module")
def linear() -> EncryptedModel:
    return EncryptedModel(_linear(), (1, 2, 2))


@pytest.fixture(scope="module")
def client(linear: EncryptedModel) -> Client:
    return Client(linear.public_description)


IMAGES = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1

# What comes out -----------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_the_module(linear: EncryptedModel, client: Client) -> None:
    outputs = client.decrypt(linear(client.encrypt(IMAGES)))
    assert outputs.dtype == torch.float32
    assert outputs.shape == (5, 3)
    assert torch.allclose(outputs, _linear()(IMAGES), atol=1e-4)


def test_a_network_with_squares_computes_what_it_does_in_the_clear() -> None:
    model = EncryptedModel(_cnn(), (1, 4, 4))
    client = Client(model.public_description)
    images = torch.rand(7, 1, 4, 4) * 2 - 1
    outputs = client.decrypt(model(client.encrypt(images)))
    assert model.public_description.parameters.depth == 5
    assert torch.allclose(outputs, _cnn()(images), atol=1e-3)


def test_a_layer_that_stands_in_two_places_is_applied_twice() -> None:
    torch.manual_seed(3)
    square, linear = Square(), nn.Linear(3, 3)
    module = nn.Sequential(linear, square, linear, square, nn.Linear(3, 2))
    model = EncryptedModel(module, (3,))
    client = Client(model.public_description)
    images = torch.rand(4, 3) * 2 - 1
    assert torch.allclose(client.decrypt(model(client.encrypt(images))), module(images), atol=1e-3)


def test_values_at_the_bound_do_not_wrap_around() -> None:
    """All inputs and weights at their largest, so that outputs are what the first prime was chosen for.

    In all slots: what wraps around are a polynomial's coefficients, and one of them is the mean of the slots.
    """
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.full((2, 4), 3.0)
    layer.bias.data = torch.tensor([1.0, -1.0])
    model = EncryptedModel(nn.Sequential(layer, Square()), (4,), input_bound=5.0)
    client = Client(model.public_description)
    for sign, expected in ((1, [61.0, 59.0]), (-1, [59.0, 61.0])):
        outputs = client.decrypt(model(client.encrypt(torch.full((client.most_images, 4), sign * 5.0))))
        assert outputs.numpy() == pytest.approx(np.tile(np.square(expected), (client.most_images, 1)), rel=1e-4)


def test_squares_at_the_end_that_could_wrap_around_are_refused() -> None:
    """Primes of 24 bits are far apart, and the scale of a square is off by what its prime is off."""
    linear = nn.Linear(1, 1, bias=False)
    last = nn.Linear(1, 1, bias=False)
    linear.weight.data, last.weight.data = torch.ones(1, 1), torch.full((1, 1), (2.0**35 / 1.1 * 0.999) ** 0.5)
    layers = [linear, Square(), linear, Square(), last, Square()]
    with pytest.raises(ModelError, match="squares at the end"):
        EncryptedModel(nn.Sequential(*layers), (1,))
    model = EncryptedModel(nn.Sequential(*layers, linear), (1,))
    client = Client(model.public_description)
    outputs = client.decrypt(model(client.encrypt(torch.ones(client.most_images, 1))))
    assert outputs.numpy() == pytest.approx(2.0**35 / 1.1 * 0.999, rel=2e-2)


def test_an_output_that_depends_on_nothing_is_its_bias() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 1e-12]])
    layer.bias.data = torch.tensor([0.5, 0.0])
    model = EncryptedModel(layer, (3,))
    client = Client(model.public_description)
    outputs = client.decrypt(model(client.encrypt(torch.tensor([[1.0, -1.0, 1.0]]))))
    assert outputs.numpy() == pytest.approx(np.array([[0.5, -2.0]]), abs=1e-4)


def test_all_slots_are_images(linear: EncryptedModel, client: Client) -> None:
    images = torch.rand(client.most_images, 1, 2, 2)
    assert client.most_images == linear.public_description.parameters.poly_degree // 2
    assert torch.allclose(client.decrypt(linear(client.encrypt(images))), _linear()(images), atol=1e-4)


def test_a_request_is_as_long_for_one_image_as_for_many(client: Client) -> None:
    """Up to compression, which does not see the images: ciphertexts look random."""
    lengths = [len(client.encrypt(torch.rand(n, 1, 2, 2))) for n in (1, 1, 500, 2048)]
    assert max(lengths) - min(lengths) < 0.002 * max(lengths)


def test_two_clients_use_one_model_and_replies_may_come_in_any_order(linear: EncryptedModel) -> None:
    clients = [Client(linear.public_description) for _ in range(2)]
    batches = [IMAGES[:2], IMAGES[2:]]
    replies = {(c, b): linear(client.encrypt(x)) for c, client in enumerate(clients) for b, x in enumerate(batches)}
    for c, b in ((1, 1), (0, 0), (1, 0), (0, 1)):
        assert torch.allclose(clients[c].decrypt(replies[c, b]), _linear()(batches[b]), atol=1e-4)


# Who holds the key --------------------------------------------------------------------------------------------------

SECRETS = (seal.SecretKey, seal.Decryptor, seal.KeyGenerator, seal.Encryptor)


def _everything_in(thing: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """All objects that can be reached through attributes and containers."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    yield thing
    inner = list(vars(thing).values()) if hasattr(thing, "__dict__") and not isinstance(thing, type) else []
    inner += list(thing.values()) if isinstance(thing, dict) else []
    inner += list(thing) if isinstance(thing, (list, tuple, set)) else []
    for one in inner:
        yield from _everything_in(one, seen)


def test_the_server_holds_no_key_and_the_client_does(linear: EncryptedModel, client: Client) -> None:
    linear(client.encrypt(IMAGES))
    assert not [one for one in _everything_in(linear) if isinstance(one, SECRETS)]
    assert [one for one in _everything_in(client) if isinstance(one, SECRETS)]


def test_a_request_holds_relinearisation_keys_and_ciphertexts_and_only_its_client_reads_them(
    linear: EncryptedModel, client: Client
) -> None:
    request = wire.decode(client.encrypt(IMAGES), Request)
    scheme, n_primes = Scheme(linear.public_description.parameters), 2
    scheme.relinearisation_keys(request.relinearisation_keys)
    values = scheme.values(request.inputs, 4, n_primes)
    pixels = IMAGES.reshape(5, -1).T.numpy()
    read = np.array([client._decrypted(value)[:5] for value in values])
    assert read == pytest.approx(pixels, abs=1e-4)
    other = Client(linear.public_description)
    guessed = np.array([other._decrypted(value)[:5] for value in values])
    assert np.abs(guessed).min() > 1.0
    with pytest.raises(ProtocolError):
        scheme._loaded(seal.SecretKey, request.relinearisation_keys)


def test_a_secret_key_is_neither_pickled_nor_saved_nor_shown(linear: EncryptedModel, client: Client) -> None:
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(client)
    with pytest.raises(TypeError, match="stays where it was made"):
        to_bytes(seal.KeyGenerator(Scheme(linear.public_description.parameters).context).secret_key())
    assert "0x" in repr(client)


def test_the_same_image_twice_gives_nothing_alike(client: Client) -> None:
    first, second = (wire.decode(client.encrypt(IMAGES), Request) for _ in range(2))
    assert first.id != second.id
    windows = [
        {one[at : at + 12] for one in request.inputs for at in range(200, len(one) - 12, 3)}
        for request in (first, second)
    ]
    assert not windows[0] & windows[1]


def test_the_description_tells_depth_shapes_and_a_bound_only(linear: EncryptedModel) -> None:
    """Weights that differ give the same description, while their outputs' bounds take as many bits."""
    others = _linear()
    others[1].weight.data *= -0.99
    assert EncryptedModel(others, (1, 2, 2)).public_description == linear.public_description
    assert pickle.loads(pickle.dumps(linear.public_description)) == linear.public_description


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        Parameters(4096, 40, 10, 1),
        Parameters(2048, 20, 4, 1),
        Parameters(8192, 60, 1, 1),
        Parameters(4096, 0, 30, 1),
        Parameters(4096, -3, 30, 1),
        Parameters(4096, 10, 0, 1),
    ],
)
def test_a_client_refuses_a_description_with_weak_parameters(linear: EncryptedModel, parameters: Parameters) -> None:
    with pytest.raises(ConfigError, match="128 bits"):
        Client(replace(linear.public_description, parameters=parameters))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(1, 2, 2), "shape"),
        (torch.zeros(0, 1, 2, 2), "shape"),
        (torch.zeros(3, 4), "shape"),
        (torch.zeros(2049, 1, 2, 2), "1 to 2048"),
        (torch.full((1, 1, 2, 2), 1.001), "beyond 1"),
        (torch.full((1, 1, 2, 2), float("nan")), "not finite"),
        (torch.full((1, 1, 2, 2), -float("inf")), "not finite"),
    ],
)
def test_images_that_do_not_fit_are_refused(client: Client, images: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        client.encrypt(images)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_an_input_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(ModelError, match="input_bound"):
        EncryptedModel(_linear(), (1, 2, 2), bound)


def test_malformed_requests_are_refused(linear: EncryptedModel, client: Client) -> None:
    good = client.encrypt(IMAGES)
    request = wire.decode(good, Request)
    reply = wire.decode(linear(good), Reply)
    deep = EncryptedModel(_cnn(), (1, 4, 4))
    foreign = wire.decode(Client(deep.public_description).encrypt(torch.zeros(1, 1, 4, 4)), Request)
    cases = [
        {"inputs": request.inputs[:-1]},
        {"inputs": [*request.inputs, request.inputs[0]]},
        {"inputs": []},
        {"inputs": [b"", *request.inputs[1:]]},
        {"inputs": [b"garbage" * 100, *request.inputs[1:]]},
        {"inputs": [request.inputs[0][:-1], *request.inputs[1:]]},
        {"inputs": [request.relinearisation_keys, *request.inputs[1:]]},
        {"inputs": [*reply.outputs, reply.outputs[0]]},
        {"inputs": foreign.inputs[:4]},
        {"relinearisation_keys": b""},
        {"relinearisation_keys": request.inputs[0]},
    ]
    for case in cases:
        with pytest.raises(ProtocolError) as error:
            linear(wire.encode(_changed(request, **case)))
        assert error.value.__cause__ is None
    for message in (b"", good[:-1], b"x" + good, linear(good)):
        with pytest.raises(ProtocolError):
            linear(message)


def _changed(request: Request, **fields: Any) -> Request:
    kept = {"id": request.id, "relinearisation_keys": request.relinearisation_keys, "inputs": request.inputs}
    return Request(**{**kept, **fields})


def test_a_ciphertext_of_another_scale_is_refused(linear: EncryptedModel, client: Client) -> None:
    """It would be read as other values."""
    request = wire.decode(client.encrypt(IMAGES), Request)
    plain = seal.Plaintext()
    client._scheme.encoder.encode([0.5], client._scheme.parameters.scale * 2, plain)
    larger = to_bytes(client._encryptor.encrypt_symmetric(plain))
    with pytest.raises(ProtocolError, match="another scale"):
        linear(wire.encode(_changed(request, inputs=[larger, *request.inputs[1:]])))


def test_keys_of_another_client_give_nonsense_to_the_asker_alone() -> None:
    """The server cannot tell; whoever mixes keys reads noise."""
    model = EncryptedModel(nn.Sequential(nn.Linear(2, 2), Square()), (2,))
    one, other = Client(model.public_description), Client(model.public_description)
    asked, wrong = (wire.decode(client.encrypt(torch.ones(2000, 2)), Request) for client in (one, other))
    outputs = one.decrypt(model(wire.encode(_changed(asked, relinearisation_keys=wrong.relinearisation_keys))))
    assert (outputs - outputs[0]).abs().mean() > 1


def test_malformed_and_unasked_replies_are_refused(linear: EncryptedModel, client: Client) -> None:
    good = linear(client.encrypt(IMAGES))
    reply = wire.decode(good, Reply)
    for outputs in ([], reply.outputs[:-1], [b"", *reply.outputs[1:]], [b"garbage" * 99, *reply.outputs[1:]]):
        with pytest.raises(ProtocolError):
            client.decrypt(wire.encode(Reply(reply.id, outputs)))
    with pytest.raises(ProtocolError, match="no open request"):
        client.decrypt(wire.encode(Reply(bytes(16), reply.outputs)))
    assert client.decrypt(good).shape == (5, 3)
    with pytest.raises(ProtocolError, match="no open request"):
        client.decrypt(good)
