"""Epsilon of Poisson-subsampled Gaussian steps, and the noise that a budget allows.

Reported is dp-accounting's figure by privacy loss distributions (PLD: Koskela et al. 2020; Doroshenko et al. 2022,
whose discretisation gives an upper bound), beside it Opacus's by Renyi DP (Mironov 2017). Both are for neighbouring
shards of which one has nothing in place of one example (accounted as an example added or removed). The central-limit
figure of Gaussian DP is no upper bound under subsampling and is not offered.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting
import numpy as np
from dp_accounting import pld
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis import rdp

from fedray.errors import ConfigError
from fedray.values import Spent

_ORDERS = (*RDPAccountant.DEFAULT_ALPHAS, 128, 256, 512, 1024)
"""Opacus's Renyi orders, and some larger ones for small budgets."""

_COARSEST = 1e-5
"""Grid of the privacy loss over epsilon, for large epsilons: keeps memory bounded."""


@dataclass(frozen=True, slots=True)
class Release:
    """Some steps of one subsampled Gaussian mechanism.

    Attributes:
        sample_rate: probability q of each example to be in a batch.
        noise_multiplier: deviation of the noise over the clipping norm.
        n_steps: number of steps.
    """

    sample_rate: float
    noise_multiplier: float
    n_steps: int


def spent(releases: Iterable[Release], delta: float) -> Spent:
    """What the composition of releases costs at ``delta``, by both accountants."""
    merged = _merge(releases)
    return Spent(_epsilon_pld(merged, delta), _epsilon_rdp(merged, delta), delta)


@lru_cache(maxsize=256)
def calibrate(epsilon: float, delta: float, sample_rate: float, n_steps: int) -> float:
    """Smallest noise multiplier, to one part in a thousand and never below, whose PLD epsilon is at most ``epsilon``.

    Raises:
        ConfigError: no noise multiplier up to 10,000 reaches the budget.
    """

    def affordable(noise_multiplier: float) -> bool:
        return _epsilon_pld((Release(sample_rate, noise_multiplier, n_steps),), delta) <= epsilon

    low, high = 0.05, 1.0
    while not affordable(high):
        low, high = high, high * 2
        if high > 10_000:
            raise ConfigError(
                f"privacy.epsilon {epsilon} at delta {delta} over {n_steps} steps",
                "a budget that some noise can meet",
                "raise epsilon, or train for fewer rounds, epochs or steps",
            )
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if affordable(middle) else (middle, high)
    return high


def _merge(releases: Iterable[Release]) -> tuple[Release, ...]:
    steps: dict[tuple[float, float], int] = {}
    for release in releases:
        key = (release.sample_rate, release.noise_multiplier)
        steps[key] = steps.get(key, 0) + release.n_steps
    return tuple(Release(rate, noise, n) for (rate, noise), n in sorted(steps.items()) if n)


@lru_cache(maxsize=4096)
def _epsilon_pld(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    grid = max(min(_interval(release) for release in releases), _COARSEST * _epsilon_rdp(releases, delta))
    accountant = pld.PLDAccountant(value_discretization_interval=grid)
    accountant.compose(_event(releases))
    return float(accountant.get_epsilon(delta))


def _epsilon_rdp(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    curve = sum(release.n_steps * _rdp_of_a_step(release.sample_rate, release.noise_multiplier) for release in releases)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(rdp.get_privacy_spent(orders=_ORDERS, rdp=curve, delta=delta)[0])


@lru_cache(maxsize=1024)
def _rdp_of_a_step(sample_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Renyi DP of one step at each of the orders; of n steps it is n times that."""
    found = rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_ORDERS)
    return np.asarray(found, dtype=np.float64)


def _event(releases: tuple[Release, ...]) -> dp_accounting.DpEvent:
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(
                    release.sample_rate, dp_accounting.GaussianDpEvent(release.noise_multiplier)
                ),
                release.n_steps,
            )
            for release in releases
        ]
    )


def _interval(release: Release) -> float:
    """Grid of the privacy loss: a small part of one step's spread, about q/z. Coarser is safe but looser.

    Never so fine that a step's whole range, about 10/z + 1/(2 z^2), takes more than a million points.
    """
    rate, noise = release.sample_rate, release.noise_multiplier
    return max(min(1e-3, 0.05 * rate / noise), 1e-6 * (10 / noise + 0.5 / noise**2))
