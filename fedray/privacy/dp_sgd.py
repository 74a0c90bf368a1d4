"""Example-level differential privacy: DP-SGD inside one owner, by Opacus.

M. Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, Algorithm 1: Poisson batches, each example's
gradient clipped to norm C, Gaussian noise of deviation z C added to their sum, divided by the expected batch size.
Batches and noise come from Philox generators, each with a fresh 128-bit key of the operating system's: the secrecy of
the batches is what amplification by sampling rests on. (PyTorch's own CPU generator heeds 32 bits of its seed, which
can be searched.) Deviation: noise is floating-point, and attacks on its low bits (Mironov 2012) are not covered.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from fedray import seeds
from fedray.privacy.accounting import calibrate
from fedray.privacy.events import Charge, SampledGaussian
from fedray.privacy.private_modules import check_private, make_private
from fedray.tasks.descent import Clipping, Draws, Steps, count_steps
from fedray.tasks.randomness import reseed
from fedray.values import Assignment, Work

__all__ = ["DpSgdPlan", "NoisyOptimizer", "PrivateDescent", "check_private", "make_private"]

warnings.filterwarnings("ignore", message="Full backward hook is firing")
"""Opacus hooks the first layer, whose input needs no gradient; that is what it means to do."""


@dataclass(frozen=True)
class DpSgdPlan:
    """How one owner trains privately over the whole run.

    Attributes:
        n_rows: the owner's training rows; public.
        batch_size: expected rows of a batch.
        clip: norm to which each example's gradient is clipped.
        noise_multiplier: deviation of the noise over ``clip``.
    """

    n_rows: int
    batch_size: int
    clip: float
    noise_multiplier: float

    @property
    def sample_rate(self) -> float:
        return min(1.0, self.batch_size / self.n_rows)

    @classmethod
    def within(
        cls,
        epsilon: float,
        delta: float,
        *,
        n_rows: int,
        batch_size: int,
        clip: float,
        work: Work,
        n_rounds: int,
        besides: tuple[Charge, ...] = (),
    ) -> DpSgdPlan:
        """The plan whose epsilon after ``n_rounds`` rounds of ``work``, and all ``besides``, is the given one.

        Raises:
            ConfigError: no noise can meet the budget.
        """
        n_steps = max(1, n_rounds) * count_steps(work, n_rows, batch_size)
        noise_multiplier = _calibrated(epsilon, delta, min(1.0, batch_size / n_rows), n_steps, besides)
        return cls(n_rows, batch_size, clip, noise_multiplier)

    def charge(self, n_steps: int) -> Charge:
        """What so many steps cost."""
        return Charge(SampledGaussian(self.sample_rate, self.noise_multiplier), n_steps)


@lru_cache(maxsize=256)
def _calibrated(epsilon: float, delta: float, sample_rate: float, n_steps: int, besides: tuple[Charge, ...]) -> float:
    def charges_at(noise_multiplier: float) -> list[Charge]:
        return [Charge(SampledGaussian(sample_rate, noise_multiplier), n_steps), *besides]

    return calibrate(charges_at, epsilon, delta)


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus's optimizer with noise from a generator of numpy's."""

    def __init__(self, optimizer: Optimizer, *, noise: np.random.Generator, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self._noise = noise

    def add_noise(self) -> None:
        """Put clipped and summed gradients plus noise of deviation z C into ``grad``."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(self._noise.standard_normal(tuple(parameter.shape), dtype=np.float32))
            parameter.grad = parameter.summed_grad.view_as(parameter) + deviation * noise.to(parameter.device)


class _NoisyOptimizer(NoisyOptimizer):
    """Clips gradients that it is given example by example."""

    def pre_step(self, closure: Any = None) -> bool | None:
        """Clip and add noise; an empty batch has no gradients, and one that is not finite counts as none."""
        for parameter in self.params:
            if parameter.grad_sample is None:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = torch.nan_to_num(parameter.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
        ready: bool | None = super().pre_step(closure)
        return ready


class Charges(Protocol):
    """As much of an owner's account as training needs; see ``fedray.privacy.account``."""

    def charge(self, round: int, charge: Charge) -> None: ...

    def settle(self, round: int, count: int) -> None: ...


class NoCharges:
    """The account of made-up rows."""

    def charge(self, round: int, charge: Charge) -> None: ...

    def settle(self, round: int, count: int) -> None: ...


class PrivateDescent:
    """Poisson batches and Opacus's optimizer; every round is charged to the owner's account before it starts.

    Args:
        plan: how this owner trains.
        account: the owner's account.
        unsafe_replay_seed: for tests only; makes batches and noise a function of it and of the round's seed.
    """

    _optimizer: ClassVar[type[NoisyOptimizer]] = _NoisyOptimizer
    _steps: ClassVar[type[Steps]] = Steps

    def __init__(self, plan: DpSgdPlan, account: Charges, unsafe_replay_seed: int | None = None) -> None:
        self._plan = plan
        self._account = account
        self._unsafe_replay_seed = unsafe_replay_seed

    def count(self, assignment: Assignment, n_rows: int) -> int:  # noqa: ARG002  # the plan's rows are those charged
        """The assignment's steps, or its epochs' expected batches over the planned rows."""
        return count_steps(assignment.work, self._plan.n_rows, self._plan.batch_size)

    def draw(self, assignment: Assignment, n_rows: int, seed: int) -> Draws:
        """Charge the account, then hand out the batches, and what their noise is drawn from.

        Raises:
            BudgetExhausted: the round would overspend.
        """
        plan, n_steps = self._plan, self.count(assignment, n_rows)
        self._account.charge(assignment.plan.round, plan.charge(n_steps))
        noise, coins = self._generator(seed, "noise"), self._generator(seed, "batches")
        clipping = Clipping(plan.clip, plan.noise_multiplier, plan.sample_rate * plan.n_rows, noise)
        return Draws(_batches(coins, plan.sample_rate, n_steps, n_rows), n_steps, clipping)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with Opacus's hooks, which find every row's gradient."""
        wrapped: nn.Module = GradSampleModule(module)
        return wrapped

    def steps(self, model: nn.Module, optimizer: Optimizer, draws: Draws) -> Steps:
        """Opacus's optimizer around the given one.

        Dropout draws masks for a batch from PyTorch's generator, so that with a known seed one row more would move the
        masks of the others, and with them the sum by more than the clip: it is seeded in secret.
        """
        assert draws.clipping is not None
        private = self._optimizer(
            optimizer,
            noise_multiplier=draws.clipping.noise_multiplier,
            max_grad_norm=draws.clipping.clip,
            expected_batch_size=draws.clipping.expected_batch_size,
            noise=draws.clipping.noise,
        )
        if self._unsafe_replay_seed is None:
            reseed(secrets.randbits(63), next(model.parameters()).device)
        return self._steps(model, private)

    @property
    def releases_statistics(self) -> bool:
        return False

    def end(self, assignment: Assignment, n_steps: int) -> None:
        """Give back what a deadline cut off."""
        self._account.settle(assignment.plan.round, n_steps)

    def rehearsal(self, n_rows: int) -> PrivateDescent:
        """The same plan for made-up rows, on nobody's account and replayed."""
        return type(self)(replace(self._plan, n_rows=n_rows), NoCharges(), 0)

    def _generator(self, seed: int, purpose: str) -> np.random.Generator:
        if self._unsafe_replay_seed is None:
            return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
        return seeds.generator(self._unsafe_replay_seed, purpose, seed)


def _batches(coins: np.random.Generator, sample_rate: float, n_steps: int, n_rows: int) -> Iterator[Tensor]:
    """Poisson batches: each row is in each batch with the same probability; a batch may be empty."""
    for _ in range(n_steps):
        yield torch.from_numpy(np.flatnonzero(coins.random(n_rows) < sample_rate))
