"""The label holder's top model: fused embeddings to outputs, and its steps."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

from fedray import seeds
from fedray.errors import RunError
from fedray.tasks.randomness import own_randomness
from fedray.vertical.fusion import Fused
from fedray.vertical.labels import Labels
from fedray.vertical.models import TopMaker, made_optimizer, made_top, outputs_of, outputs_on_zeros
from fedray.vertical.plans import FitPlan

_CPU = torch.device("cpu")


class Top:
    """A top model in training.

    Args:
        maker: the model, or what makes it.
        width: of a fused embedding.
        labels: what it learns.
        seed: the run's.

    Raises:
        ModelError: it cannot take such embeddings, or its outputs are not of these labels.
    """

    def __init__(self, maker: TopMaker, width: int, labels: Labels, seed: int) -> None:
        with own_randomness(seeds.integer(seed, "top"), _CPU):
            self.network = made_top(maker, width, labels.n_outputs)
            labels.check(outputs_on_zeros(self.network, (width,), "a top model"), 2)
        self._labels = labels
        self._seed = seed
        self._noise = np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
        self.begin(FitPlan())

    def begin(self, plan: FitPlan) -> None:
        """Train by this plan from now on, with a new optimizer.

        Raises:
            ConfigError: the optimizer cannot be made.
        """
        self._cut = plan.cut
        self._optimizer = made_optimizer(plan.optimizer, self.network)

    def outputs(self, fused: Fused) -> Tensor:
        """Outputs for predictions."""
        with own_randomness(0, _CPU), torch.no_grad():
            found: Tensor = self.network.eval()(fused.value)
            return found

    def step(self, fused: Fused, targets: Tensor, epoch: int, batch: int) -> tuple[float, dict[str, bytes]]:
        """One step.

        Returns:
            The mean loss of the batch, and each owner's gradient as it is told: float32, shape ``(n, width)``.

        Raises:
            RunError: the loss is no longer finite.
        """
        with own_randomness(seeds.integer(self._seed, "top", epoch, batch), _CPU):
            loss = self._labels.loss(outputs_of(self.network.train(), fused.value), targets)
            self._descend(loss)
        if not torch.isfinite(loss):
            raise RunError(f"a loss of {loss.item()} in epoch {epoch}", "a finite loss", "lower the learning rate")
        return loss.item(), fused.gradients(lambda gradients: self._cut.applied(gradients, self._noise))

    def _descend(self, loss: Tensor) -> None:
        if self._optimizer:
            self._optimizer.zero_grad()
        loss.backward()
        if self._optimizer:
            self._optimizer.step()
