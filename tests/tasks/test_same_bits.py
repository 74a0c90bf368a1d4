"""Training gives the bits of the same training written plainly, with PyTorch's own seeding, shuffling and steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toys import IMAGE, MODELS, ROOT, TABLE, assignment, make_module, plan, shard, torch_task

from fedray.tasks.descent import BareSteps, ShuffledDescent, is_bare
from fedray.tasks.losses import cross_entropy
from fedray.tasks.proximal import pull_to_start
from fedray.tasks.randomness import own_randomness
from fedray.values import Schema, Shard, Vector, Work
from fedray.vectors import Layout

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
}


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))


def _half_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    module[0].requires_grad_(False)
    return module


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return scores


MODULES: dict[str, tuple[Callable[[], nn.Module], Schema]] = {
    **{name: (partial(make_module, name), schema) for name, (_, schema) in MODELS.items()},
    "dropout": (_dropout, TABLE),
    "half frozen": (_half_frozen, TABLE),
    "tied": (Tied, TABLE),
}


def _plainly(
    make: Callable[[], nn.Module], optimizer: str, vector: Vector, rows: Shard, batch: int, work: Work, seed: int
) -> Vector:
    """A loop as a PyTorch user would write it."""
    module = make()
    layout = Layout(module)
    layout.write(vector)
    module.train()
    stepper = OPTIMIZERS[optimizer](module.parameters())
    x, y = torch.from_numpy(rows.train.features), torch.from_numpy(rows.train.targets)
    order, n_left = torch.Generator().manual_seed(seed), work.amount
    torch.manual_seed(seed)
    while n_left > 0:
        permutation = torch.randperm(len(y), generator=order)
        for features, targets in zip(x[permutation].split(batch), y[permutation].split(batch), strict=True):
            if n_left > 0:
                stepper.zero_grad()
                cross_entropy(module(features), targets).backward()
                stepper.step()
            n_left -= work.unit == "steps"
        n_left -= work.unit == "epochs"
    return layout.read() - vector


@pytest.mark.parametrize("model", MODULES)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    n=st.sampled_from([4, 9, 12]),
    batch=st.sampled_from([2, 4, 5, 20]),
    work=st.builds(Work, st.integers(1, 4), st.sampled_from(["epochs", "steps"])),
)
def test_training_gives_the_bits_of_a_plain_loop(model: str, optimizer: str, n: int, batch: int, work: Work) -> None:
    make, schema = MODULES[model]
    if model == "batchnorm" and n % batch == 1:
        return
    rows = shard(n, 1, schema)
    task = torch_task(make, OPTIMIZERS[optimizer], batch_size=batch)
    vector = task.initial(3)
    update = task.train(vector, assignment(plan(work.amount, work.unit)), rows, 7)
    assert update.delta.tobytes() == _plainly(make, optimizer, vector, rows, batch, work, 7).tobytes()


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_seeding_gives_the_stream_of_torchs_own(seed: int) -> None:
    torch.manual_seed(5)
    expected_after = torch.rand(3)
    torch.manual_seed(seed)
    expected = torch.rand(3), torch.randn(20), torch.randperm(9)
    torch.manual_seed(5)
    with own_randomness(seed, torch.device("cpu")):
        found = torch.rand(3), torch.randn(20), torch.randperm(9)
        assert torch.get_num_threads() == 1
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.rand(3), expected_after)


def _optimizer(kind: Any = torch.optim.SGD) -> torch.optim.Optimizer:
    return kind([nn.Parameter(torch.ones(2))], lr=0.1)


def test_only_known_optimizers_without_hooks_step_without_torchs_profiling() -> None:
    class Own(torch.optim.SGD):
        pass

    hooked, pulled = _optimizer(), _optimizer()
    hooked.register_step_post_hook(lambda *_: None)
    pull_to_start(pulled, pulled.param_groups[0]["params"], 0.5)
    assert is_bare(_optimizer())
    assert is_bare(_optimizer(torch.optim.Adam))
    assert is_bare(pulled)
    assert not any(map(is_bare, (hooked, _optimizer(Own), _optimizer(torch.optim.RMSprop))))
    everywhere = register_optimizer_step_pre_hook(lambda *_: None)
    assert not is_bare(_optimizer())
    everywhere.remove()
    draws = ShuffledDescent(2).draw(assignment(plan()), 4, 0)
    module = nn.Linear(2, 2)
    assert isinstance(ShuffledDescent(2).steps(module, _optimizer(), draws), BareSteps)
    assert not isinstance(ShuffledDescent(2).steps(module, hooked, draws), BareSteps)


def test_training_does_not_load_torchs_compiler() -> None:
    """1.3 s and 70 MB in every process of owners."""
    script = (
        "import sys; from toys import assignment, plan, shard, torch_task; task = torch_task(); "
        "task.train(task.initial(0), assignment(plan(mu=0.5)), shard(), 0); "
        "assert 'torch.optim' in sys.modules; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT / "tests", timeout=120)


@pytest.mark.parametrize("model", ["cnn", "batchnorm"])
def test_the_order_of_weights_in_memory_changes_no_result_beyond_rounding(model: str) -> None:
    def in_order() -> nn.Module:
        return make_module(model).to(memory_format=torch.contiguous_format)

    rows, asked = shard(24, schema=IMAGE), assignment(plan(3))
    task, plain = (torch_task(module) for module in (model, in_order))
    assert task.initial(3).tobytes() == plain.initial(3).tobytes()
    found, expected = (one.train(one.initial(3), asked, rows, 5).delta for one in (task, plain))
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_read_only_rows_train_without_a_warning() -> None:
    rows = shard(12)
    task = torch_task()
    vector = task.initial(0)
    expected = task.train(vector, assignment(plan()), rows, 1).delta
    for array in (rows.train.features, rows.train.targets):
        array.flags.writeable = False
    assert np.array_equal(task.train(vector, assignment(plan()), rows, 1).delta, expected)
