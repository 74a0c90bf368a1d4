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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.optim import Optimizer

from fedray import seeds
from fedray.errors import ModelError
from fedray.privacy.account import Account
from fedray.privacy.accounting import calibrate
from fedray.privacy.events import Charge, SampledGaussian
from fedray.tasks.descent import Batch, Steps, count_steps
from fedray.tasks.losses import Loss
from fedray.values import Assignment, Schema, Work

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


class PrivateDescent:
    """Poisson batches and Opacus's optimizer; every round is charged to the owner's account before it starts.

    Args:
        plan: how this owner trains.
        account: the owner's account.
        unsafe_replay_seed: for tests only; makes batches and noise a function of it and of the round's seed.
    """

    def __init__(self, plan: DpSgdPlan, account: Account, unsafe_replay_seed: int | None = None) -> None:
        self._plan = plan
        self._account = account
        self._unsafe_replay_seed = unsafe_replay_seed
        self._wrapped: GradSampleModule | None = None

    def begin(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        features: Tensor,
        targets: Tensor,
        assignment: Assignment,
        seed: int,
    ) -> Steps:
        """Charge the account, then hand out the steps.

        Raises:
            BudgetExhausted: the round would overspend.
        """
        plan = self._plan
        n_steps = count_steps(assignment.work, plan.n_rows, plan.batch_size)
        self._account.charge(assignment.plan.round, plan.charge(n_steps))
        if self._wrapped is None:
            self._wrapped = GradSampleModule(module)
        private = _NoisyOptimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip,
            expected_batch_size=plan.sample_rate * plan.n_rows,
            noise=self._generator(seed, "noise"),
        )
        coins = self._generator(seed, "batches")
        return Steps(self._wrapped, private, _batches(coins, plan.sample_rate, n_steps, features, targets), n_steps)

    @property
    def releases_statistics(self) -> bool:
        return False

    def end(self, assignment: Assignment, n_steps: int) -> None:
        self._account.settle(assignment.plan.round, n_steps)

    def _generator(self, seed: int, purpose: str) -> np.random.Generator:
        if self._unsafe_replay_seed is None:
            return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
        return seeds.generator(self._unsafe_replay_seed, purpose, seed)


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus's optimizer with noise from a generator of numpy's."""

    def __init__(self, optimizer: Optimizer, *, noise: np.random.Generator, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self._noise = noise

    def pre_step(self, closure: Any = None) -> bool | None:
        """Clip and add noise; an empty batch has no gradients, and one that is not finite counts as none."""
        for parameter in self.params:
            if parameter.grad_sample is None:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            parameter.grad_sample = torch.nan_to_num(parameter.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
        ready: bool | None = super().pre_step(closure)
        return ready

    def add_noise(self) -> None:
        """Put clipped and summed gradients plus noise of deviation z C into ``grad``."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(self._noise.standard_normal(tuple(parameter.shape), dtype=np.float32))
            parameter.grad = parameter.summed_grad.view_as(parameter) + deviation * noise.to(parameter.device)


def _batches(
    coins: np.random.Generator, sample_rate: float, n_steps: int, features: Tensor, targets: Tensor
) -> Iterator[Batch]:
    """Poisson batches: each row is in each batch with the same probability; a batch may be empty."""
    for _ in range(n_steps):
        chosen = torch.from_numpy(np.flatnonzero(coins.random(len(targets)) < sample_rate)).to(targets.device)
        yield features[chosen], targets[chosen]


def make_private(module: nn.Module) -> nn.Module:
    """The module in a form that Opacus can take per-example gradients of.

    Recurrent and attention layers are replaced by Opacus's own, which compute the same from the same parameters.

    Raises:
        ModelError: the module mixes examples of a batch (BatchNorm) or keeps statistics of them.
    """
    statistical = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    culprits = sorted(
        {
            type(part).__name__
            for part in module.modules()
            if isinstance(part, statistical)
            and (isinstance(part, nn.modules.batchnorm._BatchNorm) or part.track_running_stats)
        }
    )
    if culprits:
        raise ModelError(
            f"a model with {', '.join(culprits)} under example-level privacy",
            "layers that treat every example by itself: a batch statistic mixes them, so that no example's share "
            "of the gradient can be bounded",
            "use GroupNorm (model.norm: group for the built-in cnn), or return "
            "opacus.validators.ModuleValidator.fix(model) from your factory",
        )
    fixer = ModuleValidator.FIXERS.get(type(module))
    if fixer is not None:
        private: nn.Module = fixer(module)
        return private
    for name, part in list(module.named_children()):
        setattr(module, name, make_private(part))
    return module


def check_private(module: nn.Module, loss: Loss, schema: Schema) -> None:
    """Hold Opacus's per-example gradients of model and loss on a few rows against each row's own gradient.

    Random layers are switched off for it; where randomness remains, only the shapes can be checked.

    Raises:
        ModelError: Opacus cannot take them, rows or losses are mixed, or the model keeps statistics of rows.
    """
    features, targets = _probe(schema)
    for part in module.modules():
        part.train(not isinstance(part, nn.modules.dropout._DropoutNd))
    _require_still_buffers(module, features)
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    try:
        alone = [
            _gradients(module, loss, trained, features[i : i + 1], targets[i : i + 1]) for i in range(len(targets))
        ]
        again = _gradients(module, loss, trained, features[:1], targets[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss(GradSampleModule(module)(features), targets).backward()
    except (NotImplementedError, RuntimeError, IndexError, ValueError, TypeError) as error:
        raise _untreatable(str(error)) from error
    is_repeatable = all(torch.equal(first, second) for first, second in zip(alone[0], again, strict=True))
    shapes = {name: getattr(getattr(parameter, "grad_sample", None), "shape", ()) for name, parameter in trained}
    if missing := [name for name, parameter in trained if shapes[name] != (len(targets), *parameter.shape)]:
        raise _untreatable(f"no per-example gradient for {', '.join(missing)}")
    for place, (name, parameter) in enumerate(trained):
        found: Tensor = getattr(parameter, "grad_sample")  # noqa: B009  # set by Opacus
        expected = torch.stack([gradients[place] for gradients in alone])
        tolerance = 1e-4 * (1 + float(expected.abs().max()))
        if is_repeatable and not torch.allclose(found, expected, rtol=1e-2, atol=tolerance):
            raise ModelError(
                f"a model or loss under example-level privacy in which rows act on each other (seen at {name})",
                "a model that treats every row by itself, and a loss that is the mean over rows",
                "take out what mixes rows: means over the batch, class weights, sums, contrastive losses",
            )


def _probe(schema: Schema) -> tuple[Tensor, Tensor]:
    """Three rows unlike each other, with targets: random features (tokens 0 and 1), classes in turn."""
    draw, n = torch.Generator().manual_seed(0), 3
    if schema.feature_dtype == "int64":
        features = torch.randint(0, 2, (n, *schema.feature_shape), generator=draw)
    else:
        features = torch.randn((n, *schema.feature_shape), generator=draw)
    if schema.n_classes is None:
        return features, torch.randn((n, *schema.target_shape), generator=draw)
    return features, torch.randint(0, schema.n_classes, (n, *schema.target_shape), generator=draw)


def _gradients(
    module: nn.Module, loss: Loss, trained: Sequence[tuple[str, nn.Parameter]], features: Tensor, targets: Tensor
) -> tuple[Tensor, ...]:
    parameters = [parameter for _, parameter in trained]
    total = loss(module(features), targets)
    return torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)


@torch.no_grad()
def _require_still_buffers(module: nn.Module, features: Tensor) -> None:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        module(features)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise _untreatable(str(error)) from error
    if moved := [name for name, buffer in module.named_buffers() if not torch.equal(before[name], buffer)]:
        raise ModelError(
            f"a model that changes its buffers {', '.join(moved)} in training, under example-level privacy",
            "buffers that stay: they would be released without noise",
            "leave such statistics out, or make them constants",
        )


def _untreatable(detail: str) -> ModelError:
    return ModelError(
        f"Opacus cannot take this model's per-example gradients: {detail}",
        "a model all of whose trainable parameters act on one example at a time",
        "freeze the parameters in question, or register a grad sampler with opacus.grad_sample",
    )
