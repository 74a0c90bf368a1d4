"""The bounds on privacy against Renyi divergences that are added up number by number."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp

from fedray.errors import ConfigError
from fedray.privacy.distributed import choose, draws_error, event
from fedray.privacy.distributed.bounds import discrete_gaussians_rho, skellam_rdp, tau
from fedray.privacy.distributed.rounding import l1_bound
from fedray.privacy.events import Concentrated, Skellam

KEY = bytes(16)
ORDERS = (1.001, 1.1, 1.5, 2.0, 3.0, 7.5, 16.0, 40.0)
REACH = 420


@cache
def _sum_of_gaussians(sigma: float, n: int) -> NDArray[np.float64]:
    """Log probabilities of -REACH to REACH under the sum of ``n`` discrete Gaussians, convolved in logarithms."""
    k = np.arange(-2 * REACH, 2 * REACH + 1)
    one = -(k**2) / (2 * sigma**2)
    one = one - logsumexp(one)
    total = one[REACH:-REACH]
    shifted = np.lib.stride_tricks.sliding_window_view(one, 2 * REACH + 1)[::-1]
    for _ in range(n - 1):
        total = logsumexp(shifted + total, axis=1)[::-1]
    return np.asarray(total)


def _divergence(log_law: NDArray[np.float64], shift: int, order: float) -> float:
    """Renyi divergence of the law shifted from the law."""
    if shift == 0:
        return 0.0
    return float(logsumexp(order * log_law[:-shift] + (1 - order) * log_law[shift:])) / (order - 1)


# Sums of discrete Gaussians -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_sum_is_one_discrete_gaussian_up_to_half_of_tau(sigma: float, n: int) -> None:
    k = np.arange(-REACH, REACH + 1)
    single = -(k**2) / (2 * n * sigma**2)
    ratio = _sum_of_gaussians(sigma, n) - (single - logsumexp(single))
    central = np.abs(ratio[np.abs(k) <= 6 * sigma * math.sqrt(n)]).max()
    assert central <= tau(sigma, n) / 2
    if n == 2:
        assert central >= tau(sigma, n) / 6


def test_tau_by_hand() -> None:
    assert tau(1.0, 1) == 0
    assert tau(1.0, 2) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert tau(0.7, 3) == pytest.approx(10 * (math.exp(-0.49 * math.pi**2) + math.exp(-0.98 * math.pi**2 * 2 / 3)))
    assert tau(3.0, 10**5) < 1e-32


@pytest.mark.parametrize("sigma", [0.5, 0.6, 0.8, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("shift", [(1,), (2,), (5,), (1, 1, 1), (3, 0, 1, 0, 2)])
def test_rho_bounds_every_divergence(sigma: float, n: int, shift: tuple[int, ...]) -> None:
    squared, l1 = sum(s * s for s in shift), sum(shift)
    rho = discrete_gaussians_rho(squared, l1, len(shift), sigma, n)
    law = _sum_of_gaussians(sigma, n)
    for order in ORDERS:
        found = sum(_divergence(law, s, order) for s in shift)
        assert found <= rho * order * (1 + 1e-9)
    if sigma >= 1:
        assert rho == pytest.approx(squared / (2 * n * sigma**2), rel=1e-2)


def test_each_branch_of_rho_is_taken_where_it_is_smaller() -> None:
    """At n = 2 and sigma 1/2, tau is 0.848: one unit in one coordinate or in many; four units in one."""
    excess = 10 * math.exp(-(math.pi**2) / 4)
    assert discrete_gaussians_rho(1, 1, 1, 0.5, 2) == pytest.approx(1 + excess)
    few = 10 * math.exp(-(math.pi**2))
    spread = 0.25 + few / math.sqrt(2) + few**2 * 1000 / 2
    assert discrete_gaussians_rho(1, 1, 1000, 1.0, 2) == pytest.approx(spread)
    assert spread < 0.25 + 1000 * few


def test_an_event_is_what_the_encoding_bounds_and_falls_with_honest_noise() -> None:
    encoding = choose(1000, 10, "discrete_gaussian", 1.0, KEY)
    found = event(encoding, 4)
    assert isinstance(found, Concentrated)
    assert found.rho == pytest.approx(encoding.squared_l2_bound / (2 * 4 * encoding.noise.sigma**2), rel=1e-12)
    assert found.rho == pytest.approx(1 / 8, rel=2e-3)
    assert found.rho > 1 / 8
    alone = event(encoding, 1)
    assert isinstance(alone, Concentrated)
    assert alone.rho == pytest.approx(4 * found.rho)


@pytest.mark.parametrize("n_honest", [0, 11])
def test_more_honest_owners_than_a_sum_has_are_refused(n_honest: int) -> None:
    with pytest.raises(ConfigError, match="honest owners"):
        event(choose(1000, 10, "skellam", 1.0, KEY), n_honest)


def test_draws_cost_next_to_nothing() -> None:
    encoding = choose(10**6, 10, "discrete_gaussian", 0.3, KEY)
    assert draws_error(encoding) == 2**20 * encoding.noise.table.error
    assert draws_error(encoding) < 1e-27


# Skellam ------------------------------------------------------------------------------------------------------------


@cache
def _skellam_law(variance: float, reach: int) -> NDArray[np.float64]:
    """Log probabilities of -reach to reach, from ratios of Bessel functions by their continued fraction."""
    ratios, ratio = np.zeros(reach + 1), 0.0
    for k in range(reach + 60, 0, -1):
        ratio = 1 / (2 * k / variance + ratio)
        if k <= reach:
            ratios[k] = ratio
    upper = np.concatenate([[0.0], np.cumsum(np.log(ratios[1:]))])
    law = np.concatenate([upper[:0:-1], upper])
    return np.asarray(law - logsumexp(law))


SKELLAM_ORDERS = (1.01, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 8.0, 16.5, 32.0, 64.0, 256.0)


@pytest.mark.parametrize("variance", [0.05, 0.5, 1.0, 4.0, 9.0, 100.0, 400.0])
@pytest.mark.parametrize("shift", [(1,), (2,), (5,), (15,), (1, 1, 1, 1), (3, 0, 1, 2)])
def test_skellam_rdp_bounds_every_divergence(variance: float, shift: tuple[int, ...]) -> None:
    """Also of vectors, whose divergence is the sum over coordinates, and at orders between the integers."""
    bound = skellam_rdp(Skellam(sum(shift), math.sqrt(sum(s * s for s in shift)), variance), SKELLAM_ORDERS)
    for order, limit in zip(SKELLAM_ORDERS, bound, strict=True):
        reach = int(300 + 40 * math.sqrt(variance) + 4 * order * max(shift) / min(1, math.sqrt(variance)))
        law = _skellam_law(variance, reach)
        found = sum(_divergence(law, s, order) for s in shift)
        assert found <= limit * (1 + 1e-9)
        if variance >= 400 and order.is_integer() and order < 10:
            assert found > 0.95 * limit


def test_the_corollary_by_hand() -> None:
    """Norms 2 and 3 at variance 10: 3 * 9 / 20 + min((5 * 9 + 12) / 400, 6 / 20); between 2 and 3, the chord."""
    found = skellam_rdp(Skellam(2.0, 3.0, 10.0), [2.0, 3.0, 2.5])
    second, third = 0.9 + (27 + 12) / 400, 1.35 + (45 + 12) / 400
    np.testing.assert_allclose(found, [second, third, (second + 2 * third) / 2 / 1.5])
    far = skellam_rdp(Skellam(2.0, 3.0, 10.0), [100.0])
    np.testing.assert_allclose(far, [100 * 9 / 20 + 0.3])


def test_a_skellam_event_is_in_integer_steps_and_sums_variances() -> None:
    encoding = choose(1000, 10, "skellam", 1.0, KEY)
    found = event(encoding, 4)
    assert isinstance(found, Skellam)
    squared = encoding.squared_l2_bound
    assert found.l2 == math.sqrt(squared)
    assert found.l1 == l1_bound(squared, 1024) == math.sqrt(1024 * squared)
    assert found.variance == pytest.approx(4 * encoding.noise.sigma**2)
    rdp = skellam_rdp(found, [8.0])
    assert 8 / 8 < rdp[0] < 1.003


def test_the_bound_of_real_encodings_is_close_to_the_gaussians() -> None:
    for n_values, n_owners in ((10**6, 10), (10**5, 1000)):
        sigma = 1 / math.sqrt(n_owners)
        skellam = event(choose(n_values, n_owners, "skellam", sigma, KEY), n_owners)
        gaussian = event(choose(n_values, n_owners, "discrete_gaussian", sigma, KEY), n_owners)
        assert isinstance(skellam, Skellam)
        assert isinstance(gaussian, Concentrated)
        np.testing.assert_allclose(skellam_rdp(skellam, [2.0, 16.0]), gaussian.rho * np.array([2.0, 16.0]), rtol=0.01)
