"""Gaussian mechanisms by one number, and the epsilon that scores look like.

A mechanism of Gaussian DP mu tells N(0, 1) from N(mu, 1) at best; its epsilon at delta is exact by B. Balle, Y.-X.
Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018, Theorem 8.

``gaussian_estimate`` follows G. Andrew, P. Kairouz, S. Oh, A. Oprea, H. B. McMahan, V. Suriyakumar, "One-shot
Empirical Privacy Estimation for Federated Learning", 2023, Algorithm 1: canaries' scores are taken for normal, and
epsilon is read off their means. Deviations: scores of canaries that were left out stand in for the law that the paper
derives from random directions, and both groups share one variance. It is an estimate and no bound: it can lie on either
side of the truth.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

_FAR = 40.0
"""Deviations beyond which a normal variable never is."""


def delta_of(mu: float, epsilon: float) -> float:
    """The exact delta of a Gaussian mechanism at ``epsilon``."""
    high, low = norm.logcdf(mu / 2 - epsilon / mu), norm.logcdf(-mu / 2 - epsilon / mu)
    return float(math.exp(high) - math.exp(epsilon + low))


def epsilon_of(mu: float, delta: float) -> float:
    """The exact epsilon of a Gaussian mechanism at ``delta`` in (0, 1)."""
    if mu == 0 or delta_of(mu, 0.0) <= delta:
        return 0.0
    return float(brentq(lambda epsilon: delta_of(mu, epsilon) - delta, 0.0, mu * (mu / 2 + _FAR)))


def mu_of(epsilon: float, delta: float) -> float:
    """The Gaussian mechanism of just this ``(epsilon, delta)``, delta in (0, 1)."""
    farthest = 2 * _FAR + math.sqrt(2 * epsilon)
    return float(brentq(lambda mu: delta_of(mu, epsilon) - delta, 1e-9, farthest))


def gaussian_estimate(scores: NDArray[np.float64], coins: NDArray[np.bool_], delta: float) -> float:
    """The epsilon that the scores look like; an estimate, no bound. Infinite where scores have no spread.

    Args:
        scores: shape ``(n_canaries,)``.
        coins: which canaries were in, shape ``(n_canaries,)``.
        delta: at which epsilon is estimated.
    """
    groups = scores[coins], scores[~coins]
    if min(map(len, groups)) == 0:
        return 0.0
    shift = float(groups[0].mean() - groups[1].mean())
    deviation = math.sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / len(scores))
    if deviation <= 1e-9 * abs(shift):
        return math.inf if shift > 0 else 0.0
    return epsilon_of(max(0.0, shift / deviation), delta)
