"""Gaussian mechanisms by one number, held against dp-accounting, and the estimate against the truth it estimates."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from fedray.auditing.gaussian import delta_of, epsilon_of, gaussian_estimate, mu_of


@pytest.mark.parametrize(("mu", "delta"), [(0.2, 1e-3), (0.5, 1e-5), (1.0, 1e-6), (3.0, 1e-5)])
def test_epsilon_is_dp_accountings(mu: float, delta: float) -> None:
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(1 / mu))
    assert epsilon_of(mu, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-3)
    assert delta_of(mu, epsilon_of(mu, delta)) == pytest.approx(delta, rel=1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 1e-5), (1.0, 1e-5), (10.0, 1e-3), (200.0, 1e-5)])
def test_mu_is_the_inverse_of_epsilon(epsilon: float, delta: float) -> None:
    assert epsilon_of(mu_of(epsilon, delta), delta) == pytest.approx(epsilon, rel=1e-5)


def test_no_shift_is_no_epsilon() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_the_estimate_finds_the_mechanism_that_made_the_scores(mu: float) -> None:
    rng = np.random.default_rng(3)
    coins = rng.random(200_000) < 0.5
    scores = 7.0 * (rng.normal(size=len(coins)) + mu * coins) - 100.0
    assert gaussian_estimate(scores, coins, 1e-5) == pytest.approx(epsilon_of(mu, 1e-5), rel=0.05)


def test_scores_without_spread_are_taken_at_their_word() -> None:
    coins = np.array([True, False, True, False])
    assert gaussian_estimate(np.where(coins, 1.0, 0.0), coins, 1e-5) == math.inf
    assert gaussian_estimate(np.zeros(4), coins, 1e-5) == 0.0
    assert gaussian_estimate(np.where(coins, 0.0, 1.0), coins, 1e-5) == 0.0
    assert gaussian_estimate(np.arange(4.0), np.ones(4, dtype=bool), 1e-5) == 0.0
