"""A module becomes affine maps and squares that compute the same; another layer is refused by its name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedray.encrypted.parameters import LONGEST_CHAIN, ROOM, SCALE_BITS, Parameters, parameters_for
from fedray.encrypted.square import Square
from fedray.encrypted.stages import Affine, Network, network_of
from fedray.errors import ModelError


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        Square(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.9),
        nn.Sequential(nn.Linear(12, 5), Square(), nn.Identity()),
        nn.Linear(5, 4, bias=False),
    )


def _computed(network: Network, inputs: Tensor) -> np.ndarray:
    """Stages one by one, in numpy."""
    values = inputs.double().reshape(len(inputs), -1).numpy()
    for stage in network.stages:
        values = values @ stage.weights.T + stage.bias if isinstance(stage, Affine) else values**2
    return values.reshape(len(inputs), *network.output_shape)


MODULES = {
    "linear": (nn.Sequential(nn.Linear(6, 3)), (6,), 1),
    "a layer alone": (nn.Linear(6, 3), (6,), 1),
    "two linear ones are one": (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), (6,), 1),
    "a square first and last": (nn.Sequential(Square(), nn.Linear(6, 3), Square()), (6,), 3),
    "two squares": (nn.Sequential(nn.Linear(6, 3), Square(), Square()), (6,), 3),
    "flattening last": (nn.Sequential(nn.Conv2d(1, 2, 2), Square(), nn.Flatten()), (1, 3, 3), 2),
    "an image as output": (nn.Sequential(nn.Conv2d(1, 2, 2, padding=1), Square()), (1, 3, 3), 2),
    "a small CNN": (_cnn(), (2, 8, 8), 5),
}


@pytest.mark.parametrize(("module", "shape", "depth"), MODULES.values(), ids=MODULES)
def test_stages_compute_what_the_module_does(module: nn.Module, shape: tuple[int, ...], depth: int) -> None:
    torch.manual_seed(0)
    for _ in range(3):
        module.train()(torch.randn(8, *shape))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = network_of(module, shape)
    assert len(network.stages) == depth
    assert module.training
    inputs = torch.randn(10, *shape)
    expected = module.eval().double()(inputs.double())
    assert _computed(network, inputs) == pytest.approx(expected.detach().numpy(), abs=1e-9)
    assert network.output_shape == expected.shape[1:]
    assert all(torch.equal(before[name].double(), value.double()) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.Sigmoid(), nn.MaxPool2d(2), nn.LSTM(3, 3), nn.Softmax(1), nn.LayerNorm(3)], ids=str
)
def test_another_layer_is_refused_by_its_name_and_what_is_allowed_is_said(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(6, 3), nn.Sequential(Square(), layer))
    with pytest.raises(ModelError) as error:
        network_of(module, (6,))
    assert error.value.found == f"layer 1.1 ({type(layer).__name__})"
    for allowed in ("Linear", "Conv2d", "AvgPool2d", "Square", "Flatten"):
        assert allowed in error.value.expected


class _Own(nn.Linear):
    """Could compute anything in its ``forward``."""


@pytest.mark.parametrize("module", [_Own(6, 3), nn.ModuleList([nn.Linear(6, 3)])])
def test_a_model_of_another_type_is_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match=f"a model of type {type(module).__name__}"):
        network_of(module, (6,))


def test_layers_that_do_not_fit_are_refused_by_their_name() -> None:
    with pytest.raises(ModelError, match=r"layer 2 \(Linear\) that does not take values of shape \(3,\)"):
        network_of(nn.Sequential(nn.Linear(6, 3), Square(), nn.Linear(4, 2)), (6,))
    with pytest.raises(ModelError, match=r"layer 0 \(Conv2d\)"):
        network_of(nn.Sequential(nn.Conv2d(3, 1, 2)), (1, 4, 4))


def test_too_many_values_weights_that_are_not_finite_and_nothing_at_all_are_refused() -> None:
    with pytest.raises(ModelError, match="5000 values"):
        network_of(nn.Sequential(nn.Linear(2, 5000)), (2,))
    broken = nn.Linear(2, 2)
    broken.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        network_of(nn.Sequential(broken), (2,))
    with pytest.raises(ModelError, match="computes nothing"):
        network_of(nn.Sequential(nn.Flatten()), (1, 2, 2))


# Bounds and parameters ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), bound=st.floats(0.1, 4.0))
def test_no_value_at_any_place_is_beyond_the_bound(seed: int, bound: float) -> None:
    """Corners of the input's cube, where affine maps are largest, and points inside."""
    torch.manual_seed(seed)
    network = network_of(nn.Sequential(nn.Linear(5, 4), Square(), nn.Linear(4, 3), Square(), nn.Linear(3, 2)), (5,))
    corners = torch.cartesian_prod(*[torch.tensor([-bound, bound], dtype=torch.float64)] * 5)
    values = torch.cat([corners, (torch.rand(200, 5, dtype=torch.float64) * 2 - 1) * bound]).numpy()
    promised = network.bound(bound)
    for stage in network.stages:
        values = values @ stage.weights.T + stage.bias if isinstance(stage, Affine) else values**2
        assert np.abs(values).max() <= promised * (1 + 1e-12)


def test_the_bound_of_one_map_is_reached() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 4.0]])
    layer.bias.data = torch.tensor([0.25, -1.0])
    assert network_of(layer, (3,)).bound(2.0) == 9.0
    assert network_of(nn.Sequential(layer, Square()), (3,)).bound(2.0) == 81.0


STANDARD = {4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Homomorphic Encryption Standard (2018), table 1: 128 bits, ternary secrets, classical attacks."""


@given(depth=st.integers(1, 12), bound=st.floats(1e-6, 1e9))
def test_chosen_parameters_are_secure_deep_enough_and_wide_enough(depth: int, bound: float) -> None:
    try:
        chosen = parameters_for(depth, bound)
    except ModelError:
        assert (depth + 2) * SCALE_BITS[1] + 2 * (math.log2(bound * ROOM) + 1) > 800 or bound > 2**30
        return
    bits = chosen.coefficient_bits
    assert sum(bits) <= STANDARD[chosen.poly_degree] * 0.985
    assert len(bits) == depth + 2
    assert max(bits) == bits[0] == bits[-1] <= 60
    assert 24 <= chosen.scale_bits <= 40
    assert bound * chosen.scale * 1.05 < 2 ** (bits[0] - 1)
    assert chosen.is_secure
    assert chosen.poly_degree == 4096 or not _fits_below(chosen, depth, bound)


def _fits_below(chosen: Parameters, depth: int, bound: float) -> bool:
    """Whether the next smaller ring has room for the shortest scale."""
    shortest = Parameters(chosen.poly_degree // 2, SCALE_BITS[0] - 16, chosen.value_bits, depth)
    return shortest.is_secure


def test_a_model_that_is_too_deep_or_too_large_is_refused() -> None:
    with pytest.raises(ModelError, match="40 multiplications"):
        parameters_for(40, 1.0)
    with pytest.raises(ModelError, match="1e\\+20"):
        parameters_for(1, 1e20)


def test_no_chain_is_longer_than_the_standard_has_it() -> None:
    assert all(chain < STANDARD[degree] for degree, chain in LONGEST_CHAIN.items())
    assert not Parameters(4096, 40, 10, 1).is_secure
    assert not Parameters(2048, 24, 2, 1).is_secure
    assert not Parameters(32768, 40, 21, 1).is_secure
