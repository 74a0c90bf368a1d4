"""The two laws that owners draw their shares of noise from, and what is known of them.

Canonne, Kamath, Steinke 2020, *The Discrete Gaussian for Differential Privacy*; Agarwal, Kairouz, Liu 2021, *The
Skellam Mechanism for Differentially Private Federated Learning*. Sums of Skellam variables are Skellam variables; sums
of discrete Gaussians are discrete Gaussians only nearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedray.privacy.distributed import sampler


@dataclass(frozen=True, slots=True)
class DiscreteGaussianNoise:
    """The discrete Gaussian.

    Attributes:
        sigma: its parameter, in integer steps; its deviation is at most that, and equal to 1e-30 from 3 steps on.
    """

    sigma: float

    @property
    def table(self) -> sampler.Table:
        return sampler.discrete_gaussian(self.sigma)

    def log_moment(self, rate: float) -> float:
        """Bound on ``log E exp(rate * X)``: that of a Gaussian."""
        return (rate * self.sigma) ** 2 / 2


@dataclass(frozen=True, slots=True)
class SkellamNoise:
    """The difference of two Poisson variables of the same mean.

    Attributes:
        sigma: its deviation, in integer steps.
    """

    sigma: float

    @property
    def table(self) -> sampler.Table:
        return sampler.skellam(self.sigma**2)

    def log_moment(self, rate: float) -> float:
        """``log E exp(rate * X)``, with ``cosh(t) - 1`` written as ``2 * sinh(t / 2)**2``."""
        return 2 * (self.sigma * math.sinh(rate / 2)) ** 2


Noise = DiscreteGaussianNoise | SkellamNoise
LawName = Literal["discrete_gaussian", "skellam"]
LAWS: Mapping[LawName, Callable[[float], Noise]] = {
    "discrete_gaussian": DiscreteGaussianNoise,
    "skellam": SkellamNoise,
}
"""From a deviation in integer steps to the law."""
