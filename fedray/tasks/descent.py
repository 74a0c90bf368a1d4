"""Local descent without privacy: shuffled minibatches, and the optimizer as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedray.tasks.losses import Loss
from fedray.values import Assignment, Work

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Steps:
    """What the training loop walks through: a model to call, an optimizer to step, batches to do it on."""

    model: Callable[[Tensor], Tensor]
    optimizer: Optimizer
    batches: Iterator[Batch]
    n_steps: int

    def backward(self, loss: Loss, features: Tensor, targets: Tensor) -> None:
        """Leave the gradient of a batch's mean loss where the optimizer looks for it."""
        loss(self.model(features), targets).backward()


class Descent(Protocol):
    """How batches are drawn and how losses become steps."""

    def begin(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        features: Tensor,
        targets: Tensor,
        assignment: Assignment,
        seed: int,
    ) -> Steps:
        """The steps of one round."""

    @property
    def releases_statistics(self) -> bool:
        """Whether buffers and frozen parameters leave the owner too, and not only what was trained."""

    def end(self, assignment: Assignment, n_steps: int) -> None:
        """Called with the number of steps that were really taken."""


def count_steps(work: Work, n_rows: int, batch_size: int) -> int:
    """Optimizer steps that a round's work takes over ``n_rows``."""
    return work.amount if work.unit == "steps" else work.amount * -(-n_rows // batch_size)


class ShuffledDescent:
    """Every epoch a new permutation, cut into batches; the last batch of an epoch may be smaller."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def begin(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        features: Tensor,
        targets: Tensor,
        assignment: Assignment,
        seed: int,
    ) -> Steps:
        """Batches for the assignment's work, in an order that only the seed decides."""
        n_steps = count_steps(assignment.work, len(targets), self._batch_size)
        return Steps(module, optimizer, self._batches(features, targets, n_steps, seed), n_steps)

    @property
    def releases_statistics(self) -> bool:
        return True

    def end(self, assignment: Assignment, n_steps: int) -> None:
        """Nothing to settle."""

    def _batches(self, features: Tensor, targets: Tensor, n_steps: int, seed: int) -> Iterator[Batch]:
        order = torch.Generator().manual_seed(seed)
        while n_steps > 0:
            permutation = torch.randperm(len(targets), generator=order).to(targets.device)
            batches = zip(
                features[permutation].split(self._batch_size),
                targets[permutation].split(self._batch_size),
                strict=True,
            )
            for batch, _ in zip(batches, range(n_steps), strict=False):
                yield batch
                n_steps -= 1
