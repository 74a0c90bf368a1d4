"""Every task keeps the Task contract."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from contracts.task import TaskCase, TaskContract
from toys import MODELS, TABLE, shard, study, torch_task


@pytest.mark.parametrize("model", MODELS)
class TestTorchTask(TaskContract):
    @pytest.fixture
    def case(self, model: str) -> TaskCase:
        return TaskCase(partial(torch_task, model), shard(schema=MODELS[model][1]))


class TestTorchTaskWithMomentum(TaskContract):
    @pytest.fixture
    def case(self) -> TaskCase:
        return TaskCase(partial(torch_task, "mlp", partial(torch.optim.SGD, lr=0.1, momentum=0.9)), shard())


class TestTorchTaskWithAdam(TaskContract):
    @pytest.fixture
    def case(self) -> TaskCase:
        return TaskCase(partial(torch_task, "mlp", partial(torch.optim.Adam, lr=0.01)), shard())


class TestTorchTaskWithDropout(TaskContract):
    @pytest.fixture
    def case(self) -> TaskCase:
        return TaskCase(partial(torch_task, _dropout), shard())


class TestSoftmaxRegressionInNumpy(TaskContract):
    @pytest.fixture
    def case(self) -> TaskCase:
        return TaskCase(partial(study("fedprox_synthetic").SoftmaxRegression, TABLE), shard(25))


def _dropout() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(8, 3))
