"""The task of an ordinary PyTorch user: a module, a loss, metrics, an optimizer.

Training is a pure function of (vector, assignment, shard, seed): one thread, own generators, fresh optimizer state. So
it gives the same bits in any process, on any number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedray.errors import ModelError
from fedray.tasks.descent import Descent
from fedray.tasks.losses import Loss, Metric
from fedray.tasks.proximal import pull_to_start
from fedray.values import Assignment, Examples, Schema, Shard, Tally, Update, Vector
from fedray.vectors import Layout

OptimizerFactory = Callable[[Iterator[nn.Parameter]], Optimizer]


class TorchTask:
    """Trains any module whose parameters are float32.

    Args:
        make_module: returns the module, with random initial parameters drawn from torch's global generator.
        loss: mean loss of a batch.
        metrics: names to metrics.
        make_optimizer: returns a fresh optimizer for the module's parameters.
        descent: draws batches and turns losses into steps.
        device: where it computes, ``cpu`` or ``cuda``.
        evaluation_batch_size: rows evaluated at a time.

    Raises:
        ModelError: the module has no float32 parameters.
    """

    def __init__(
        self,
        make_module: Callable[[], nn.Module],
        loss: Loss,
        metrics: Mapping[str, Metric],
        make_optimizer: OptimizerFactory,
        descent: Descent,
        device: str = "cpu",
        evaluation_batch_size: int = 1024,
    ) -> None:
        self._make_module = make_module
        self._device = torch.device(device)
        with _own_randomness(0, self._device):
            self._module = make_module().to(self._device)
        self._loss = loss
        self._metrics = dict(metrics)
        self._make_optimizer = make_optimizer
        self._descent = descent
        self._evaluation_batch_size = evaluation_batch_size
        self._layout = Layout(self._module)

    @property
    def n_parameters(self) -> int:
        return self._layout.n_parameters

    def initial(self, seed: int) -> Vector:
        """The values of a module made right after ``torch.manual_seed(seed)``, shape ``(n_values,)``."""
        with _own_randomness(seed, self._device):
            return Layout(self._make_module()).read()

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        """Train on the shard's training rows; stop where the assignment's deadline passes.

        Raises:
            BudgetExhausted: the descent is private and the work would overspend.
        """
        with _own_randomness(seed, self._device):
            self._layout.write(vector)
            self._module.train()
            optimizer = self._make_optimizer(self._module.parameters())
            pull_to_start(optimizer, list(self._module.parameters()), assignment.plan.proximal_mu)
            features, targets = self._tensors(shard.train)
            steps = self._descent.begin(self._module, optimizer, features, targets, assignment, seed)
            stops_at = time.monotonic() + (assignment.deadline_s or math.inf)
            n_taken = 0
            for batch_features, batch_targets in steps.batches:
                if time.monotonic() > stops_at:
                    break
                steps.optimizer.zero_grad()
                if len(batch_targets):
                    steps.backward(self._loss, batch_features, batch_targets)
                steps.optimizer.step()
                n_taken += 1
            self._descent.end(assignment, n_taken)
            delta = self._layout.read() - vector
            if not self._descent.releases_statistics:
                delta[~self._layout.is_trained] = 0.0
        return Update(
            delta=delta,
            weight=len(shard.train) if assignment.plan.weighting == "examples" else 1,
            n_steps=n_taken,
            is_complete=n_taken == steps.n_steps and not assignment.is_partial,
        )

    @torch.no_grad()
    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        """Sums of the loss and of every metric over the examples."""
        sums = dict.fromkeys(("loss", *self._metrics), 0.0)
        with _own_randomness(0, self._device):
            self._layout.write(vector)
            self._module.eval()
            features, targets = self._tensors(examples)
            for x, y in zip(
                features.split(self._evaluation_batch_size),
                targets.split(self._evaluation_batch_size),
                strict=True,
            ):
                if len(y):
                    outputs = self._module(x)
                    sums["loss"] += float(self._loss(outputs, y)) * len(y)
                    for name, metric in self._metrics.items():
                        sums[name] += float(metric(outputs, y).double().sum())
        return Tally(sums, len(examples))

    def check(self, schema: Schema) -> None:
        """Run two rows of zeros, of the last class, through model, loss and metrics.

        Raises:
            ModelError: they do not fit the data's schema.
        """
        features = torch.zeros((2, *schema.feature_shape), dtype=getattr(torch, schema.feature_dtype))
        highest = (schema.n_classes or 1) - 1
        targets = torch.full((2, *schema.target_shape), highest, dtype=getattr(torch, schema.target_dtype))
        with _own_randomness(0, self._device):
            self._module.eval()
            try:
                outputs = self._module(features.to(self._device))
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise _misfit(f"the model fails on features of shape {schema.feature_shape}", error) from error
            if schema.n_classes is not None and outputs.shape[-1] not in (1, schema.n_classes):
                raise ModelError(
                    f"the model's output has shape {tuple(outputs.shape[1:])}",
                    f"{schema.n_classes} scores, one a class",
                    "change the width of the last layer",
                )
            try:
                self._loss(outputs, targets.to(self._device))
                values = {name: metric(outputs, targets.to(self._device)) for name, metric in self._metrics.items()}
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise _misfit(f"loss or metrics fail on outputs of shape {tuple(outputs.shape[1:])}", error) from error
        for name, value in values.items():
            if tuple(value.shape) != (2,):
                raise ModelError(
                    f"metric {name!r} returned shape {tuple(value.shape)} for 2 examples",
                    "a value an example, shape (2,)",
                    "do not take the mean in the metric: fedray takes it once, over all owners",
                )

    def _tensors(self, examples: Examples) -> tuple[Tensor, Tensor]:
        features = torch.from_numpy(np.asarray(examples.features)).to(self._device)
        return features, torch.from_numpy(np.asarray(examples.targets)).to(self._device)


def _misfit(found: str, error: Exception) -> ModelError:
    return ModelError(
        f"{found}: {error}", "model, loss and metrics that fit the data's schema", "see docs/own-model.md"
    )


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """One thread and a generator of our own; the caller's are as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
