"""A module as one flat vector and back, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from toys import MODELS, make_module

from fedray.errors import ModelError
from fedray.vectors import Layout


class Tied(nn.Module):
    """An embedding whose weight is also the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.output = nn.Linear(3, 7, bias=False)
        self.output.weight = self.embedding.weight


def _mixed() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    module.register_buffer("offset", torch.tensor(0.5))
    for parameter in module[0].parameters():
        parameter.requires_grad = False
    return module


MODULES: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: make_module(name)) for name in MODELS},
    "tied weights": Tied,
    "frozen layer and scalar buffer": _mixed,
    "transposed weight": lambda: _transposed(nn.Linear(3, 2)),
}


def _transposed(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(torch.randn(3, 2).T)
    return linear


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_writing_what_was_read_changes_nothing(make: Callable[[], nn.Module]) -> None:
    module = make()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    layout = Layout(module)
    layout.write(layout.read())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_vector_carries_a_module_to_another(make: Callable[[], nn.Module]) -> None:
    one, other = make(), make()
    for buffer in one.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    Layout(other).write(Layout(one).read())
    for (name, tensor), (_, copy) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(tensor, copy) or "num_batches_tracked" in name


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_parameters_come_first_and_every_number_once(make: Callable[[], nn.Module]) -> None:
    module = make()
    layout, flat = Layout(module), Layout(module).read()
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in dict.fromkeys(module.parameters())]).numpy()
    assert np.array_equal(flat[: layout.n_parameters], expected)
    assert flat.dtype == np.float32
    assert flat.shape == (layout.n_values,)
    n_buffers = sum(buffer.numel() for buffer in module.buffers() if buffer.is_floating_point())
    assert layout.n_values - layout.n_parameters == n_buffers


def test_batchnorm_has_buffers_and_keeps_its_counter() -> None:
    module = nn.BatchNorm1d(2)
    module(torch.randn(4, 2))
    layout = Layout(module)
    assert layout.n_values - layout.n_parameters == 4
    layout.write(np.zeros(layout.n_values, dtype=np.float32))
    assert int(module.num_batches_tracked) == 1
    assert torch.equal(module.running_var, torch.zeros(2))


def test_a_read_only_vector_is_accepted_and_not_shared() -> None:
    module = nn.Linear(2, 2)
    vector = np.arange(6, dtype=np.float32)
    vector.flags.writeable = False
    Layout(module).write(vector)
    with torch.no_grad():
        module.weight.zero_()
    assert vector.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_was_read_does_not_follow_the_module() -> None:
    module = nn.Linear(1, 1, bias=False)
    before = Layout(module).read()
    copy = before.copy()
    with torch.no_grad():
        module.weight.add_(1)
    assert np.array_equal(before, copy)


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2).double(), lambda: nn.Linear(2, 2).half()])
def test_other_precisions_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ModelError, match="float32"):
        Layout(make())


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameters"):
        Layout(nn.ReLU())


def test_a_vector_of_another_length_is_refused() -> None:
    for length in (1, 5, 7):
        with pytest.raises(ModelError, match=rf"\({length},\)"):
            Layout(nn.Linear(2, 2)).write(np.zeros(length, dtype=np.float32))
