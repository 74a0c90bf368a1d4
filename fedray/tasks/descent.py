"""Local descent in two halves: which rows make up each step is drawn first, how their gradients are made comes after.

So an owner's draws are its own, whether it is trained by itself or in one computation with many others. Here are the
shapes of both halves, and the descent without privacy: shuffled minibatches, and the optimizer as it is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from fedray.tasks.losses import Loss
from fedray.values import Assignment, Work


@dataclass(frozen=True, repr=False)
class Clipping:
    """What makes the gradients of a step private: every row's is clipped, noise is added to the sum.

    Attributes:
        clip: norm to which each row's gradient is clipped.
        noise_multiplier: deviation of the noise over ``clip``.
        expected_batch_size: what the noised sum is divided by.
        noise: where the noise is drawn from; secret.
    """

    clip: float
    noise_multiplier: float
    expected_batch_size: float
    noise: np.random.Generator


@dataclass(frozen=True, repr=False)
class Draws:
    """One owner's rows of one round.

    Attributes:
        batches: numbers of the rows of every step, of shape ``(n,)``; drawn as they are asked for.
        n_steps: how many there are.
        clipping: what makes their gradients private; None where nothing does.
    """

    batches: Iterator[Tensor]
    n_steps: int
    clipping: Clipping | None = None


@dataclass(frozen=True)
class Steps:
    """How one owner makes steps by itself: a model to call and an optimizer to step."""

    model: Callable[[Tensor], Tensor]
    optimizer: Optimizer

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad()

    def backward(self, loss: Loss, features: Tensor, targets: Tensor) -> None:
        """Leave the gradient of a batch's mean loss where the optimizer looks for it."""
        loss(self.model(features), targets).backward()

    def step(self) -> None:
        """Move the parameters."""
        self.optimizer.step()


class BareSteps(Steps):
    """The same steps without what PyTorch puts around each: profiling, hooks that there are none of, its compiler."""

    def clear(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for pull in self.optimizer._optimizer_step_pre_hooks.values():
            pull(self.optimizer, (), {})
        inspect.unwrap(type(self.optimizer).step)(self.optimizer)


def steps_of(model: nn.Module, optimizer: Optimizer) -> Steps:
    """Steps of an optimizer, bare where that gives the same."""
    return BareSteps(model, optimizer) if is_bare(optimizer) else Steps(model, optimizer)


def is_bare(optimizer: Optimizer) -> bool:
    """Whether ``BareSteps`` may take its steps: PyTorch's own SGD or Adam, with no hooks but its own before a step."""
    hooks = _global_optimizer_pre_hooks or _global_optimizer_post_hooks or optimizer._optimizer_step_post_hooks
    return type(optimizer) in (SGD, Adam) and not hooks


def spare_the_compiler() -> None:
    """Keep PyTorch from importing its compiler, 1.3 s and 70 MB, for the first optimizer that a process makes.

    These methods are marked as not to be compiled, and the mark is made by the compiler on their first call. It is kept
    in an attribute of the method; a method that finds itself there is called as it is.
    """
    for method in (Optimizer.add_param_group, Optimizer.zero_grad):
        plain = inspect.unwrap(method)
        if plain is not method and "torch._dynamo" not in sys.modules:
            plain.__dynamo_disable = plain


class Descent(Protocol):
    """How batches are drawn and how losses become steps."""

    def count(self, assignment: Assignment, n_rows: int) -> int:
        """Steps that the assignment's work takes; nothing is drawn."""

    def draw(self, assignment: Assignment, n_rows: int, seed: int) -> Draws:
        """The rows of every step of one round; what they cost is charged here."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module in the form in which ``steps`` wants it; done once for all descents of one class."""

    def steps(self, model: nn.Module, optimizer: Optimizer, draws: Draws) -> Steps:
        """How gradients of the draws become steps, for an owner that is trained by itself."""

    @property
    def releases_statistics(self) -> bool:
        """Whether buffers and frozen parameters leave the owner too, and not only what was trained."""

    def end(self, assignment: Assignment, n_steps: int) -> None:
        """Called with the number of steps that were really taken."""

    def rehearsal(self, n_rows: int) -> Descent:
        """The same for made-up rows: costs nobody anything, and draws the same whenever it is asked."""


def count_steps(work: Work, n_rows: int, batch_size: int) -> int:
    """Optimizer steps that a round's work takes over ``n_rows``."""
    return work.amount if work.unit == "steps" else work.amount * -(-n_rows // batch_size)


class ShuffledDescent:
    """Every epoch a new permutation, cut into batches; the last batch of an epoch may be smaller."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def count(self, assignment: Assignment, n_rows: int) -> int:
        """The assignment's steps, or its epochs' batches."""
        return count_steps(assignment.work, n_rows, self._batch_size)

    def draw(self, assignment: Assignment, n_rows: int, seed: int) -> Draws:
        """Batches for the assignment's work, in an order that only the seed decides."""
        n_steps = self.count(assignment, n_rows)
        return Draws(self._batches(n_rows, n_steps, seed), n_steps)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def steps(self, model: nn.Module, optimizer: Optimizer, draws: Draws) -> Steps:  # noqa: ARG002
        """Model and optimizer as they are."""
        return steps_of(model, optimizer)

    @property
    def releases_statistics(self) -> bool:
        return True

    def end(self, assignment: Assignment, n_steps: int) -> None:
        """Nothing to settle."""

    def rehearsal(self, n_rows: int) -> ShuffledDescent:  # noqa: ARG002
        """This one."""
        return self

    def _batches(self, n_rows: int, n_steps: int, seed: int) -> Iterator[Tensor]:
        order = torch.Generator().manual_seed(seed)
        while n_steps > 0:
            batches = torch.randperm(n_rows, generator=order).split(self._batch_size)[:n_steps]
            yield from batches
            n_steps -= len(batches)
