"""What one participation in a noisy sum costs in privacy.

Neighbours differ in one owner's vector, which is zero in one of them; its noise and its count stay. Server and
colluding owners may know the noise of all but ``n_honest`` owners, of which the owner in question is one.

Discrete Gaussian: Kairouz, Liu, Steinke 2021, *The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation*. By their theorem the sum P of n discrete Gaussians is as likely as one discrete Gaussian Q of
variance n sigma**2, at every integer, up to a factor of exp(+-tau / 2), where

    tau = 10 * sum over k < n of exp(-2 pi**2 sigma**2 k / (k + 1)),   sigma >= 1/2.

From there on, for a shift by s of L1 and L2 norms s_1, s_2 over d coordinates and every order alpha > 1:

* In one coordinate, the ratio of shifted to unshifted P is that of Q up to exp(+-tau). P is sub-Gaussian with variance
  n sigma**2, so E_P exp((alpha - 1) (2 z s + s**2) / (2 n sigma**2)) has the Gaussian's bound, and
  D_alpha <= alpha s_2**2 / (2 n sigma**2) + tau d <= alpha (s_2**2 / (2 n sigma**2) + tau d).
* From shifted P over shifted Q and Q to P, square roots of concentrated DP add up (Bun and Steinke 2016), and a ratio
  within exp(+-e) is e**2 / 2: rho = sum_j (|s_j| / (sqrt(n) sigma) + tau)**2 / 2
  <= s_2**2 / (2 n sigma**2) + s_1 tau / (sqrt(n) sigma) + tau**2 d / 2.

rho is the smaller of the two. Deviation: the first keeps tau d for every order, so that one rho holds for all of them;
a third branch of the paper is never below the second. From 3 steps of noise on, tau is below 1e-37 and rho the
Gaussian's.

Skellam: Agarwal, Kairouz, Liu 2021, *The Skellam Mechanism for Differentially Private Federated Learning*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.privacy.distributed import rounding
from fedray.privacy.distributed.laws import DiscreteGaussianNoise, SkellamNoise
from fedray.privacy.distributed.noisy_integers import NoisyIntegers
from fedray.privacy.events import Concentrated, Event, Skellam


def event(encoding: NoisyIntegers, n_honest: int) -> Event:
    """One participation of one owner, if ``n_honest`` owners' noise, its own among them, is in the sum and secret.

    Raises:
        ConfigError: ``n_honest`` is not from 1 to the encoding's ``n_owners``.
    """
    if not 1 <= n_honest <= encoding.n_owners:
        raise ConfigError(f"{n_honest} honest owners", f"1 to {encoding.n_owners}", "count those whose noise is secret")
    squared_l2, length = encoding.squared_l2_bound, encoding.rotation.length
    l1 = rounding.l1_bound(squared_l2, length)
    match encoding.noise:
        case DiscreteGaussianNoise(sigma):
            return Concentrated(discrete_gaussians_rho(squared_l2, l1, length, sigma, n_honest))
        case SkellamNoise(sigma):
            return Skellam(l1, math.sqrt(squared_l2), n_honest * sigma**2)


def draws_error(encoding: NoisyIntegers) -> float:
    """Total variation distance of one owner's noise of one round from the exact law.

    Where n_honest owners are counted on in each of T rounds, add ``(1 + exp(epsilon)) * n_honest * T`` times this to
    delta.
    """
    return encoding.rotation.length * encoding.noise.table.error


def tau(sigma: float, n: int) -> float:
    """Bound on the log ratio of a shifted to an unshifted sum of ``n`` discrete Gaussians, beyond a single one's."""
    k = np.arange(1, n)
    return 10 * float(np.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)).sum())


def discrete_gaussians_rho(squared_l2: float, l1: float, length: int, sigma: float, n: int) -> float:
    """Concentrated DP of an integer vector under the sum of ``n`` discrete Gaussians in each coordinate.

    Args:
        squared_l2: largest squared L2 norm of one unit's part, in squared integer steps.
        l1: largest L1 norm.
        length: coordinates.
        sigma: parameter of each of the discrete Gaussians, at least 1/2.
        n: how many are summed.
    """
    gaussian, excess = squared_l2 / (2 * n * sigma**2), tau(sigma, n)
    return gaussian + min(excess * length, l1 * excess / (math.sqrt(n) * sigma) + excess**2 * length / 2)


def skellam_rdp(event: Skellam, orders: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Renyi DP at each order above 1 (Corollary 4.1), shape ``(n_orders,)``.

    The corollary is for integers; between two of them, (order - 1) times the divergence is convex in the order (van
    Erven and Harremoes 2014) and lies below the chord, which is taken.
    """
    found = np.asarray(orders, dtype=np.float64)
    below, above = np.floor(found), np.floor(found) + 1
    chord = (above - found) * _skellam_log_moment(event, below) + (found - below) * _skellam_log_moment(event, above)
    return np.asarray(chord / (found - 1), dtype=np.float64)


def _skellam_log_moment(event: Skellam, order: NDArray[np.float64]) -> NDArray[np.float64]:
    """(order - 1) times the corollary's bound at whole orders from 1 on; 0 at 1."""
    squared, variance = event.l2**2, event.variance
    second = ((2 * order - 1) * squared + 6 * event.l1) / (4 * variance**2)
    rdp = order * squared / (2 * variance) + np.minimum(second, 3 * event.l1 / (2 * variance))
    return np.asarray((order - 1) * rdp, dtype=np.float64)
