"""Modules on shares: the same outputs and the same training as torch's, and what is refused before it runs."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from plain_parties import PlainParties
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedray.errors import DataError, ModelError
from fedray.mpc.engine import Parties
from fedray.mpc.local import LocalParties
from fedray.mpc.modules import secure
from fedray.mpc.sharing import share
from fedray.mpc.tensor import SecureTensor


def tolerance(parties: Parties) -> float:
    return 1e-5 if isinstance(parties, PlainParties) else 2e-3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.LogSoftmax(dim=1),
    )


def used(module: nn.Module) -> nn.Module:
    """Batch statistics that are not those of the start."""
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 1, 8, 8) * 2 + 1)
    return module.eval()


def outputs(module: nn.Module, inputs: Tensor, parties: Parties) -> tuple[Tensor, Tensor]:
    """On shares, and in the clear."""
    with torch.no_grad():
        return secure(module, parties)(share(inputs, parties)).reveal(), module(inputs).double()


def test_a_perceptron_on_shares_gives_what_it_gives(parties: Parties) -> None:
    torch.manual_seed(0)
    found, expected = outputs(mlp(), torch.randn(5, 6), parties)
    torch.testing.assert_close(found, expected, atol=tolerance(parties), rtol=0)


def test_a_convolutional_network_on_shares_gives_what_it_gives(parties: Parties) -> None:
    torch.manual_seed(0)
    found, expected = outputs(used(cnn()), torch.randn(2, 1, 8, 8), parties)
    torch.testing.assert_close(found, expected, atol=tolerance(parties), rtol=0)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)], ids=["affine", "not affine"])
def test_batch_normalisation_is_folded_before_it_is_shared(norm: nn.BatchNorm1d) -> None:
    torch.manual_seed(0)
    plain = PlainParties()
    norm(torch.randn(30, 4) * 3 + 2)
    secured, inputs = secure(norm.eval(), plain), torch.randn(5, 4)
    torch.testing.assert_close(secured(share(inputs, plain)).detach().reveal(), norm(inputs).detach().double())
    assert isinstance(secured.weight, SecureTensor)
    assert isinstance(secured.bias, SecureTensor)
    assert torch.equal(secured.running_mean, torch.zeros(4))
    assert norm.running_mean.abs().sum() > 0.1


def test_shared_inputs_meet_public_weights_and_public_inputs_shared_weights(parties: Parties) -> None:
    torch.manual_seed(0)
    module, inputs = mlp(), torch.randn(5, 6)
    for found in (module(share(inputs, parties)), secure(module, parties)(inputs)):
        torch.testing.assert_close(found.detach().reveal(), module(inputs).detach().double(), atol=1e-4, rtol=0)


def test_a_module_is_left_as_it_is_and_its_copy_is_of_its_class() -> None:
    module = used(cnn())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    secured = secure(module, PlainParties())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert type(secured) is type(module)
    assert {name for name, _ in secured.named_parameters()} == {name for name, _ in module.named_parameters()}
    assert all(isinstance(value, SecureTensor) for value in secured.parameters())
    assert all(isinstance(value, nn.Parameter) for value in secured.parameters())


def test_weights_that_are_one_stay_one_and_frozen_ones_frozen() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    module[2].weight.requires_grad_(False)
    secured = secure(module, PlainParties())
    assert secured[0].weight is secured[1].weight
    assert [value.requires_grad for value in secured.parameters()] == [True, False, True]


def test_buffers_with_fractions_are_shared() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0, 3.0]))
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    plain = PlainParties()
    secured = secure(Scaled(), plain)
    assert isinstance(secured.scale, SecureTensor)
    assert type(secured.calls) is Tensor
    assert torch.equal(secured(share(torch.ones(2), plain)).reveal(), torch.tensor([2.0, 3.0]).double())


# What is refused ----------------------------------------------------------------------------------------------------


def test_every_operation_without_a_secure_version_is_named_with_its_place_before_anything_runs() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Softplus())
    module = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), act=nn.GELU(), block=block, norm=nn.LayerNorm(4)))
    plain = PlainParties()
    secured = secure(module, plain)
    with pytest.raises(ModelError) as caught:
        secured(share(torch.ones(2, 4), plain))
    assert "gelu in act (GELU); softplus in block.1 (Softplus); native_layer_norm in norm (LayerNorm)" in str(
        caught.value
    )
    assert plain.called == []


def test_a_forward_that_branches_on_shared_values_is_refused_before_anything_runs() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    plain = PlainParties()
    with pytest.raises(ModelError, match=r"__bool__ in the module \(Branching\)"):
        secure(Branching(), plain)(share(torch.ones(2), plain))
    assert plain.called == []


def test_misshapen_inputs_raise_before_anything_runs() -> None:
    plain = PlainParties()
    secured = secure(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), plain)
    with pytest.raises(RuntimeError, match="reduction dim"):
        secured(share(torch.ones(2, 5), plain))
    assert plain.called == []


def test_a_module_is_rehearsed_again_in_another_mode() -> None:
    plain = PlainParties()
    secured, inputs = secure(nn.Dropout(), plain), share(torch.ones(2), plain)
    secured.eval()(inputs)
    with pytest.raises(ModelError, match="dropout in training"):
        secured.train()(inputs)


def test_a_module_is_rehearsed_once_for_inputs_of_one_shape() -> None:
    class Counting(nn.Module):
        n_calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.n_calls += 1
            return x

    plain = PlainParties()
    secured = secure(Counting(), plain)
    for n in (2, 2, 3, 2, 3):
        secured(share(torch.ones(n), plain))
    assert Counting.n_calls == 5 + 2


def test_a_parameter_that_is_not_finite_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.bias.data[0] = float("nan")
    with LocalParties() as local, pytest.raises(DataError, match="not finite"):
        secure(module, local)


# Training -----------------------------------------------------------------------------------------------------------


def trained(module: nn.Module, inputs: Tensor, targets: Tensor, n_steps: int) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-3, nesterov=True)
    for _ in range(n_steps):
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), targets).backward()
        optimizer.step()


def test_sgd_on_shares_takes_the_steps_that_it_takes(parties: Parties) -> None:
    torch.manual_seed(0)
    module, inputs, targets = mlp(), torch.randn(20, 6), torch.randint(3, (20,))
    secured = secure(module, parties)
    trained(module, inputs, F.one_hot(targets, 3).float(), 6)
    trained(secured, share(inputs, parties), share(F.one_hot(targets, 3).float(), parties), 6)
    for ours, theirs in zip(secured.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.detach().reveal(), theirs.detach().double(), atol=tolerance(parties), rtol=0)


def test_a_convolutional_network_learns_on_shares(parties: Parties) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    inputs, targets = torch.randn(8, 1, 6, 6), torch.randint(2, (8,))
    secured = secure(module, parties)
    trained(module, inputs, targets, 3)
    trained(secured, share(inputs, parties), targets, 3)
    for ours, theirs in zip(secured.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.detach().reveal(), theirs.detach().double(), atol=tolerance(parties), rtol=0)


def test_optimizers_that_take_roots_are_refused_by_name() -> None:
    plain = PlainParties()
    secured = secure(nn.Linear(2, 1), plain)
    optimizer = torch.optim.Adam(secured.parameters())
    secured(share(torch.ones(3, 2), plain)).square().sum().backward()
    with pytest.raises(ModelError, match="has no secure version"):
        optimizer.step()
