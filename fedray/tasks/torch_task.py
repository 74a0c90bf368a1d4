"""The task of an ordinary PyTorch user: a module, a loss, metrics, an optimizer.

Training is a pure function of (vector, assignment, shard, seed): one thread, own generators, fresh optimizer state. So
it gives the same bits in any process, on any number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from functools import cached_property

import torch
from torch import nn
from torch.optim import Optimizer

from fedray.errors import ModelError
from fedray.tasks.descent import Descent, Draws, spare_the_compiler
from fedray.tasks.device import rows_on
from fedray.tasks.losses import Loss, Metric
from fedray.tasks.proximal import pull_to_start
from fedray.tasks.randomness import own_randomness
from fedray.values import Assignment, Examples, Schema, Shard, Tally, Update, Vector
from fedray.vectors import Layout

OptimizerFactory = Callable[[Iterator[nn.Parameter]], Optimizer]


class Bench:
    """One module, and what trains on it: many owners may share it, one after the other.

    Args:
        make_module: returns the module.
        device: where it computes.
        wrap: gives the module the form that descents want.
    """

    def __init__(
        self, make_module: Callable[[], nn.Module], device: torch.device, wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        with own_randomness(0, device):
            self.module = make_module().to(device)
        self.layout = Layout(self.module)
        self._wrap = wrap

    @cached_property
    def model(self) -> nn.Module:
        """The module as descents want it."""
        return self._wrap(self.module)


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
        spare_the_compiler()
        self.make_module = make_module
        self.loss = loss
        self.metrics = dict(metrics)
        self.make_optimizer = make_optimizer
        self.descent = descent
        self.device = torch.device(device)
        self.evaluation_batch_size = evaluation_batch_size
        self.rows = rows_on(self.device)
        self._benches: dict[type[Descent], Bench] = {}
        self.n_parameters = self.bench.layout.n_parameters

    @property
    def bench(self) -> Bench:
        """The module that this task trains; one a kind of descent, since Opacus leaves its hooks on a module."""
        kind = type(self.descent)
        if kind not in self._benches:
            self._benches[kind] = Bench(self.make_module, self.device, self.descent.wrap)
        return self._benches[kind]

    def sharing(self, descent: Descent) -> TorchTask:
        """Another owner's task on the same module and the same rows in memory.

        Args:
            descent: the owner's own.
        """
        other = copy(self)
        other.descent = descent
        return other

    def initial(self, seed: int) -> Vector:
        """The values of a module made right after ``torch.manual_seed(seed)``, shape ``(n_values,)``."""
        with own_randomness(seed, self.device):
            return Layout(self.make_module()).read()

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        """Train on the shard's training rows; stop where the assignment's deadline passes.

        Raises:
            BudgetExhausted: the descent is private and the work would overspend.
        """
        with own_randomness(seed, self.device):
            bench = self.bench
            bench.layout.write(vector)
            draws = self.descent.draw(assignment, len(shard.train), seed)
            try:
                n_taken = self._descend(bench, draws, assignment, shard.train)
            except BaseException:
                del self._benches[type(self.descent)]  # it may hold what this owner's step left half done
                raise
            self.descent.end(assignment, n_taken)
            delta = bench.layout.read() - vector
        if not self.descent.releases_statistics:
            delta[~bench.layout.is_trained] = 0.0
        return update_of(delta, assignment, shard, n_taken, draws.n_steps)

    def _descend(self, bench: Bench, draws: Draws, assignment: Assignment, examples: Examples) -> int:
        """Number of steps that were taken before the deadline."""
        optimizer = self.make_optimizer(bench.module.parameters())
        pull_to_start(optimizer, list(bench.module.parameters()), assignment.plan.proximal_mu)
        steps = self.descent.steps(bench.model.train(), optimizer, draws)
        features, targets = self.rows.of(examples)
        stops_at = time.monotonic() + (assignment.deadline_s or math.inf)
        n_taken = 0
        for batch in draws.batches:
            if time.monotonic() > stops_at:
                break
            steps.clear()
            if len(batch):
                rows = batch.to(self.device)
                steps.backward(self.loss, features.index_select(0, rows), targets.index_select(0, rows))
            steps.step()
            n_taken += 1
        return n_taken

    @torch.no_grad()
    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        """Sums of the loss and of every metric over the examples."""
        sums = dict.fromkeys(("loss", *self.metrics), 0.0)
        bench = self.bench
        with own_randomness(0, self.device):
            bench.layout.write(vector)
            bench.module.eval()
            features, targets = self.rows.of(examples)
            for x, y in zip(
                features.split(self.evaluation_batch_size),
                targets.split(self.evaluation_batch_size),
                strict=True,
            ):
                if len(y):
                    outputs = bench.module(x)
                    sums["loss"] += float(self.loss(outputs, y)) * len(y)
                    for name, metric in self.metrics.items():
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
        module = self.bench.module.eval()
        with own_randomness(0, self.device):
            try:
                outputs = module(features.to(self.device))
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise _misfit(f"the model fails on features of shape {schema.feature_shape}", error) from error
            if schema.n_classes is not None and outputs.shape[-1] not in (1, schema.n_classes):
                raise ModelError(
                    f"the model's output has shape {tuple(outputs.shape[1:])}",
                    f"{schema.n_classes} scores, one a class",
                    "change the width of the last layer",
                )
            try:
                self.loss(outputs, targets.to(self.device))
                values = {name: metric(outputs, targets.to(self.device)) for name, metric in self.metrics.items()}
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                raise _misfit(f"loss or metrics fail on outputs of shape {tuple(outputs.shape[1:])}", error) from error
        for name, value in values.items():
            if tuple(value.shape) != (2,):
                raise ModelError(
                    f"metric {name!r} returned shape {tuple(value.shape)} for 2 examples",
                    "a value an example, shape (2,)",
                    "do not take the mean in the metric: fedray takes it once, over all owners",
                )


def update_of(delta: Vector, assignment: Assignment, shard: Shard, n_taken: int, n_steps: int) -> Update:
    """What an owner's training of ``n_taken`` steps out of ``n_steps`` gives."""
    return Update(
        delta=delta,
        weight=len(shard.train) if assignment.plan.weighting == "examples" else 1,
        n_steps=n_taken,
        is_complete=n_taken == n_steps and not assignment.is_partial,
    )


def _misfit(found: str, error: Exception) -> ModelError:
    return ModelError(
        f"{found}: {error}", "model, loss and metrics that fit the data's schema", "see docs/own-model.md"
    )
