"""Epsilon against dp-accounting on a finer grid, against Opacus's own accountant, and against closed forms."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy import optimize, stats

from fedray.config.learning import ExamplePrivacy
from fedray.errors import ConfigError
from fedray.privacy.accounting import Release, calibrate, spent
from fedray.privacy.dp_sgd import DpSgdPlan
from fedray.values import Work

DELTA = 1e-5
SETTINGS = [
    (0.5, 2.0, 40),
    (0.25, 1.0, 30),
    (0.1, 1.0, 100),
    (0.05, 1.2, 200),
    (0.02, 0.8, 300),
    (1.0, 3.0, 10),
    (0.25, 5.0, 50),
    (0.7, 0.8, 2),
]


def pld_epsilon(history: list[tuple[float, float, int]], grid: float = 1e-4, delta: float = DELTA) -> float:
    """Composition written out step by step, with dp-accounting's own defaults but for the grid."""
    accountant = pld.PLDAccountant(value_discretization_interval=grid)
    for rate, noise, n_steps in history:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), n_steps)
    return float(accountant.get_epsilon(delta))


def opacus_epsilon(history: list[tuple[float, float, int]], delta: float = DELTA) -> float:
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, n_steps) for rate, noise, n_steps in history]
    return float(accountant.get_epsilon(delta))


def renyi_epsilon(history: list[tuple[float, float, int]], delta: float = DELTA) -> float:
    """By dp-accounting's accountant; fedray's figure is made with Opacus's."""
    accountant = rdp.RdpAccountant()
    for rate, noise, n_steps in history:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), n_steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("rate", "noise", "n_steps"), SETTINGS)
def test_epsilon_is_a_tight_upper_bound(rate: float, noise: float, n_steps: int) -> None:
    """Never below the figure of a finer grid, within a percent of it, and below Renyi's by Opacus."""
    found = spent([Release(rate, noise, n_steps)], DELTA)
    finer = pld_epsilon([(rate, noise, n_steps)], grid=1e-4)
    assert finer * (1 - 1e-6) <= found.epsilon <= finer * 1.01
    assert found.epsilon <= found.epsilon_rdp
    assert found.epsilon <= opacus_epsilon([(rate, noise, n_steps)]) * (1 + 1e-9)
    assert found.epsilon_rdp == pytest.approx(renyi_epsilon([(rate, noise, n_steps)]), rel=0.02)
    assert found.delta == DELTA


def test_without_sampling_epsilon_is_the_analytic_gaussians() -> None:
    """Balle and Wang 2018, theorem 8: n steps of noise z are one of noise z / sqrt(n)."""
    noise, n_steps = 3.0, 10
    mu = math.sqrt(n_steps) / noise

    def excess(epsilon: float) -> float:
        upper = stats.norm.cdf(mu / 2 - epsilon / mu)
        return float(upper - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu) - DELTA)

    exact = optimize.brentq(excess, 0.1, 20)
    found = spent([Release(1.0, noise, n_steps)], DELTA).epsilon
    assert exact * (1 - 1e-6) <= found <= exact * 1.005


@settings(deadline=None, max_examples=8)
@given(parts=st.lists(st.integers(1, 12), min_size=1, max_size=4), order=st.randoms())
def test_how_steps_are_split_into_releases_does_not_matter(parts: list[int], order: object) -> None:
    releases = [Release(0.2, 1.5, n) for n in parts] + [Release(0.4, 2.0, 3)]
    shuffled = list(releases)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    whole = spent([Release(0.2, 1.5, sum(parts)), Release(0.4, 2.0, 3)], DELTA)
    assert spent(releases, DELTA) == whole == spent(shuffled, DELTA)


def test_mixed_noise_is_composed_and_not_replaced_by_the_last() -> None:
    history = [(0.2, 1.0, 10), (0.4, 4.0, 5), (0.2, 2.0, 10)]
    found = spent([Release(*entry) for entry in history], DELTA)
    assert found.epsilon == pytest.approx(pld_epsilon(history, grid=5e-4), rel=0.01)
    assert found.epsilon > pld_epsilon(history[:1], grid=5e-4)
    assert found.epsilon_rdp == pytest.approx(renyi_epsilon(history), rel=0.02)


def test_nothing_released_costs_nothing() -> None:
    assert (spent([], DELTA).epsilon, spent([Release(0.5, 1.0, 0)], DELTA).epsilon_rdp) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("epsilon", "rate", "n_steps"), [(0.5, 0.1, 20), (1.0, 0.25, 30), (3.0, 0.25, 30), (8.0, 0.5, 60), (12.0, 1.0, 5)]
)
def test_calibrated_noise_just_meets_the_budget(epsilon: float, rate: float, n_steps: int) -> None:
    noise = calibrate(epsilon, DELTA, rate, n_steps)
    assert spent([Release(rate, noise, n_steps)], DELTA).epsilon <= epsilon
    assert pld_epsilon([(rate, noise, n_steps)], grid=2e-4) <= epsilon
    assert spent([Release(rate, noise * 0.995, n_steps)], DELTA).epsilon > epsilon * 0.98
    assert spent([Release(rate, noise / 1.002, n_steps)], DELTA).epsilon > epsilon


def test_a_budget_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        calibrate(1e-9, 1e-12, 1.0, 1000)


def test_a_plan_is_calibrated_for_all_steps_of_all_rounds() -> None:
    """100 rows in batches of 30 are 4 steps an epoch; 2 epochs over 5 rounds are 40 steps at rate 0.3."""
    plan = DpSgdPlan.within(2.0, DELTA, n_rows=100, batch_size=30, clip=1.5, work=Work(2, "epochs"), n_rounds=5)
    assert (plan.sample_rate, plan.clip) == (0.3, 1.5)
    assert 2.0 * 0.98 < pld_epsilon([(0.3, plan.noise_multiplier, 40)]) <= 2.0
    steps = DpSgdPlan.within(2.0, DELTA, n_rows=100, batch_size=30, clip=1.5, work=Work(8, "steps"), n_rounds=5)
    assert steps == plan


def test_a_batch_larger_than_the_shard_is_the_whole_shard() -> None:
    assert DpSgdPlan(20, 64, 1.0, 1.0).sample_rate == 1.0


def test_a_budget_is_given_once() -> None:
    assert ExamplePrivacy(epsilon=1.0).noise_multiplier is None
