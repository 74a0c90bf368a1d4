"""Handles of shared tensors: what they show, what they share with each other, when the parties may forget."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_parties import PlainParties
from torch import Tensor, nn

from fedray.errors import ConfigError, DataError, ModelError, ProtocolError
from fedray.mpc.conducting import opened
from fedray.mpc.held import FORGOTTEN_AT_ONCE
from fedray.mpc.keys import Reader
from fedray.mpc.local import LocalParties
from fedray.mpc.modules import secure
from fedray.mpc.registry import NoSecureVersion
from fedray.mpc.sharing import share
from fedray.mpc.tensor import SecureTensor

VALUES = torch.tensor([[1.5, -2.25, 0.125], [3.0, 4.0, -5.5]])


@pytest.fixture(scope="module")
def local() -> Iterator[LocalParties]:
    with LocalParties() as parties:
        yield parties


@pytest.fixture
def plain() -> PlainParties:
    return PlainParties()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=20))
def test_what_is_shared_is_revealed_to_half_a_unit_of_the_last_place(local: LocalParties, values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    found = share(tensor, local).reveal()
    assert found.dtype == torch.float64
    assert torch.all((found - tensor).abs() <= 2.0**-21)


@pytest.mark.parametrize("tensor", [torch.arange(6).view(2, 3), torch.tensor([True, False]), torch.tensor(7)])
def test_whole_numbers_and_truth_values_keep_their_type(local: LocalParties, tensor: Tensor) -> None:
    shared = share(tensor, local)
    assert (shared.dtype, shared.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(shared.reveal(), tensor)


def test_fractions_are_float32_whatever_they_were(plain: PlainParties) -> None:
    shared = share(VALUES.double(), plain)
    assert shared.dtype == (shared @ VALUES.double().t()).dtype == torch.float32


def test_a_handle_shows_no_values(plain: PlainParties) -> None:
    shared = share(VALUES, plain).requires_grad_()
    assert repr(shared) == "SecureTensor(shape=(2, 3), dtype=torch.float32, requires_grad=True)"
    assert f"{shared}" == str(shared) == repr(shared)
    assert "1.5" not in str(vars(shared))


class SentParties(PlainParties):
    """Parties that are the same ones wherever they are sent."""

    def __reduce__(self) -> str:
        return "_sent_parties"


_sent_parties = SentParties()


def test_a_handle_is_sent_without_values_and_freed_once() -> None:
    shared = share(VALUES, _sent_parties)
    sent = pickle.dumps(shared)
    assert VALUES.numpy().tobytes() not in sent
    assert VALUES.double().numpy().tobytes() not in sent
    first, second = pickle.loads(sent), pickle.loads(sent)
    del shared, first
    for _ in range(2 * FORGOTTEN_AT_ONCE):
        second + 1
    assert torch.equal(second.reveal(), VALUES.double())
    assert (second.shape, second.dtype) == (VALUES.shape, VALUES.dtype)


def test_a_module_of_shares_is_sent_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2).requires_grad_(False))
    secured = secure(module, _sent_parties)
    sent = pickle.loads(pickle.dumps(secured))
    assert [type(value) for value in sent.parameters()] == [SecureTensor] * 4
    assert [isinstance(value, nn.Parameter) for value in sent.parameters()] == [True] * 4
    assert [value.requires_grad for value in sent.parameters()] == [True, True, False, False]
    found = sent(share(VALUES, _sent_parties)).detach().reveal()
    torch.testing.assert_close(found, module(VALUES).detach().double(), atol=1e-5, rtol=1e-5)


def test_a_reader_opens_what_the_caller_may_not(local: LocalParties) -> None:
    doctor = Reader()
    theirs = share(VALUES, local, readers=[doctor.public])
    ours = share(VALUES, local, readers=[doctor.public, local.reader.public])
    both = theirs + ours
    assert torch.equal(opened(both.sealed(doctor.public), doctor), 2 * VALUES.double())
    assert torch.equal(ours.reveal(), VALUES.double())
    with pytest.raises(ProtocolError, match="a reader who may not learn this value"):
        both.reveal()
    with pytest.raises(ProtocolError):
        opened(both.sealed(doctor.public), Reader())


def test_tensors_of_different_parties_do_not_meet(plain: PlainParties) -> None:
    with pytest.raises(ConfigError, match="tensors of 2 groups of parties"):
        share(VALUES, plain) + share(VALUES, PlainParties())


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 1e12])
def test_a_public_number_beyond_fixed_point_is_refused_before_anything_runs(plain: PlainParties, number: float) -> None:
    shared = share(VALUES, plain)
    for public in (number, torch.full((3,), number)):
        with pytest.raises(DataError, match="not finite or too large"):
            shared * public
    assert plain.called == []


# What handles share with each other ---------------------------------------------------------------------------------


def test_a_change_in_place_is_seen_by_handles_of_the_same_memory(plain: PlainParties) -> None:
    shared = share(VALUES, plain)
    same, other = shared.detach(), shared.clone()
    shared += 1
    shared.mul_(2)
    assert torch.equal(same.reveal(), (VALUES.double() + 1) * 2)
    assert torch.equal(other.reveal(), VALUES.double())
    assert shared.zero_().reveal().abs().sum() == 0
    assert torch.equal(shared.copy_(other).reveal(), VALUES.double())


def test_a_view_is_neither_changed_in_place_nor_read_after_what_it_shows_was(plain: PlainParties) -> None:
    shared = share(VALUES, plain)
    row, corner = shared[0], shared.t()[:1]
    with pytest.raises(ModelError, match="a view of a shared tensor to be changed in place"):
        row += 1
    assert torch.equal(corner.reveal(), VALUES.double().t()[:1])
    shared += 1
    for stale in (row, corner):
        with pytest.raises(ModelError, match="a view of a shared tensor that was changed in place"):
            stale.reveal()
    assert torch.equal(shared[0].reveal(), VALUES[0].double() + 1)


def test_a_view_of_what_is_gone_is_a_tensor_of_its_own(plain: PlainParties) -> None:
    row = (share(VALUES, plain) * 2)[0].detach()
    row += 1
    assert torch.equal(row.reveal(), VALUES[0].double() * 2 + 1)


def test_an_activation_in_place_changes_its_argument(plain: PlainParties) -> None:
    shared = share(VALUES, plain)
    assert nn.ReLU(inplace=True)(shared) is shared
    assert torch.equal(shared.reveal(), VALUES.double().relu())
    assert torch.equal(torch.clamp_(shared, 1, 2).reveal(), VALUES.double().clamp(1, 2))
    assert torch.equal(shared.reveal(), VALUES.double().clamp(1, 2))


def test_a_copy_of_a_module_of_shares_goes_its_own_way(plain: PlainParties) -> None:
    module = nn.Linear(3, 2)
    module.weight = nn.Parameter(share(VALUES, plain))
    copied = copy.deepcopy(module)
    with torch.no_grad():
        module.weight += 1
    assert isinstance(copied.weight, nn.Parameter)
    assert isinstance(copied.weight, SecureTensor)
    assert copied.weight.requires_grad
    assert torch.equal(copied.weight.detach().reveal(), VALUES.double())


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.Linear(4, 3), (5, 4)), (nn.Conv2d(2, 3, 2), (2, 2, 4, 4))], ids=["linear", "convolution"]
)
def test_gradients_of_several_backward_passes_add_up(plain: PlainParties, module: nn.Module, shape: list[int]) -> None:
    torch.manual_seed(0)
    inputs, secured = torch.randn(shape), copy.deepcopy(module)
    for name, value in module.named_parameters():
        setattr(secured, name, nn.Parameter(share(value, plain)))
    for _ in range(3):
        module(inputs).square().sum().backward()
        secured(share(inputs, plain)).square().sum().backward()
    for ours, theirs in zip(secured.parameters(), module.parameters(), strict=True):
        assert isinstance(ours.grad, SecureTensor)
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.reveal(), theirs.grad.double(), rtol=1e-4, atol=1e-4)


def test_autograd_finds_what_was_changed_between_forward_and_backward(plain: PlainParties) -> None:
    weight = share(VALUES, plain).requires_grad_()
    total = (weight * weight).sum()
    with torch.no_grad():
        weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_inference_mode_and_no_grad_compute_the_same(plain: PlainParties) -> None:
    layer, found = nn.Linear(3, 2), []
    layer.weight = nn.Parameter(share(VALUES, plain))
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            found.append(layer(share(VALUES, plain)).relu().detach().reveal())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# What the parties keep ----------------------------------------------------------------------------------------------


def test_parties_forget_what_nobody_holds(plain: PlainParties) -> None:
    shared = share(VALUES, plain)
    for _ in range(20 * FORGOTTEN_AT_ONCE):
        shared = shared * 1
    gc.collect()
    assert len(plain.values) <= 2 * FORGOTTEN_AT_ONCE
    assert torch.equal(shared.reveal(), VALUES.double())


def test_a_graph_keeps_its_values_until_it_is_gone(plain: PlainParties) -> None:
    weight = share(VALUES, plain).requires_grad_()
    for _ in range(30):
        (weight * weight).relu().sum().backward()
        weight.grad = None
    gc.collect()
    (weight + 1).sum()
    assert len(plain.values) <= 2 * FORGOTTEN_AT_ONCE


def test_a_value_that_is_asked_for_is_not_there_to_be_shown(plain: PlainParties) -> None:
    shared = share(VALUES, plain)
    with pytest.raises(NoSecureVersion, match=r"to choose by a shared condition, use torch\.where"):
        assert shared.sum() > 0
    assert "is_negative" in plain.called
