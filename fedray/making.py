"""From an experiment to what is learned, and how: model, loss, metrics, optimizer, task, and the server's strategy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fedray import data
from fedray.config import Experiment
from fedray.config import learning as config
from fedray.config.fields import reference_name, resolve
from fedray.config.privacy import ExamplePrivacy
from fedray.errors import ModelError
from fedray.protocols import Strategy, Task
from fedray.strategies import FedAvg, FedProx
from fedray.tasks.descent import Descent
from fedray.tasks.losses import LOSSES, METRICS, SINGLE_OUTPUT, Loss, Metric
from fedray.tasks.modules import build_module
from fedray.tasks.torch_task import TorchTask
from fedray.values import Schema, Vector
from fedray.vectors import Layout


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that the experiment names."""
    section = experiment.strategy
    shared: dict[str, Any] = {
        "work": experiment.work,
        "weighting": section.weighting,
        "server_lr": section.server_lr,
        "server_momentum": section.server_momentum,
    }
    return FedProx(mu=section.mu, **shared) if isinstance(section, config.FedProx) else FedAvg(**shared)


def any_task(experiment: Experiment, schema: Schema, descent: Descent, device: str = "cpu") -> Task:
    """The user's own task where there is one."""
    if experiment.task is not None:
        task: Task = resolve(experiment.task)(schema)
        return task
    return make_task(experiment, schema, descent, device)


def make_task(experiment: Experiment, schema: Schema, descent: Descent, device: str = "cpu") -> TorchTask:
    """The task that model, loss, metrics and train describe."""
    return TorchTask(
        make_module=partial(module_of, experiment, schema),
        loss=loss_of(experiment),
        metrics=_metrics(experiment),
        make_optimizer=_optimizer(experiment.train.optimizer),
        descent=descent,
        device=device,
    )


def make_module(experiment: Experiment) -> nn.Module:
    """The model, with random initial parameters."""
    return module_of(experiment, data.schema_of(experiment.data))


def state_dict(experiment: Experiment, vector: Vector) -> dict[str, torch.Tensor]:
    """The model's named tensors, as ``torch.nn.Module.load_state_dict`` takes them; ``vector`` for a custom task.

    Tied parameters are written once a name: a file of tensors cannot share memory.
    """
    if experiment.task is not None:
        return {"vector": torch.from_numpy(vector.copy())}
    module = make_module(experiment)
    Layout(module).write(vector)
    return {name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}


def module_of(experiment: Experiment, schema: Schema) -> nn.Module:
    """The model for data of this schema, with random initial parameters."""
    module = build_module(experiment.model, schema, _n_outputs(experiment, schema))
    if isinstance(experiment.privacy, ExamplePrivacy):
        from fedray.privacy.private_modules import make_private

        return make_private(module)
    return module


def _n_outputs(experiment: Experiment, schema: Schema) -> int:
    if experiment.loss == "binary_cross_entropy" and schema.n_classes not in (None, 2):
        raise ModelError(
            f"loss binary_cross_entropy on {schema.n_classes} classes", "2 classes", "use loss: cross_entropy"
        )
    if experiment.loss in SINGLE_OUTPUT or schema.n_classes is None:
        return max(1, math.prod(schema.target_shape))
    return schema.n_classes


def loss_of(experiment: Experiment) -> Loss:
    """The loss that the experiment names."""
    if isinstance(experiment.loss, str) and experiment.loss in LOSSES:
        return LOSSES[experiment.loss]
    found = resolve(experiment.loss)
    loss: Loss = found() if isinstance(found, type) else found
    return loss


def _metrics(experiment: Experiment) -> dict[str, Metric]:
    return {
        name: METRICS[reference_name(metric)] if reference_name(metric) in METRICS else resolve(metric)
        for name, metric in zip(experiment.metric_names, experiment.metrics, strict=True)
    }


def _optimizer(section: config.Optimizer) -> Callable[..., torch.optim.Optimizer]:
    if isinstance(section, config.Adam):
        return partial(torch.optim.Adam, lr=section.lr, weight_decay=section.weight_decay)
    return partial(torch.optim.SGD, lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay)
