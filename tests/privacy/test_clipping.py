"""The norm follows the quantile that it is told to, by steps that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedray.privacy.clipping import Constant, QuantileTracking

N_OWNERS, COUNT_NOISE, SPREAD, RATE = 100, 5.0, 0.5, 0.2
"""The default noise on the count is a twentieth of the cohort; 0.2 is the default rate."""


def tracked(quantile: float, first: float, seed: int, rounds: int = 100) -> float:
    """The norm after so many rounds of a cohort whose norms are log-normal, with noise on the count."""
    draw, tracking, clip = np.random.default_rng(seed), QuantileTracking(quantile, RATE), first
    for _ in range(rounds):
        n_unclipped = np.count_nonzero(np.exp(SPREAD * draw.standard_normal(N_OWNERS)) <= clip)
        clip = tracking.next(clip, (n_unclipped + COUNT_NOISE * draw.standard_normal()) / N_OWNERS)
    return clip


@pytest.mark.parametrize(
    ("quantile", "factors"),
    [(0.1, (1 / 3, 1.0, 10.0, 100.0)), (0.5, (0.01, 0.1, 1.0, 10.0, 100.0)), (0.9, (0.01, 0.1, 1.0, 3.0))],
)
def test_a_quantile_is_reached_within_a_tenth_in_a_hundred_rounds(quantile: float, factors: tuple[float, ...]) -> None:
    """From starts that a hundred steps can make up for: at most rate x quantile up and rate x (1 - quantile) down."""
    true = float(stats.lognorm(SPREAD).ppf(quantile))
    for factor in factors:
        errors = [tracked(quantile, factor * true, seed) / true - 1 for seed in range(20)]
        worst, middle = max(map(abs, errors)), float(np.median(errors))
        print(f"quantile {quantile}, start {factor:.2f} x: median error {middle:+.2%}, largest of 20 {worst:.2%}")
        assert worst < 0.1
        assert abs(middle) < 0.03


def test_steps_are_those_of_the_paper() -> None:
    """Andrew et al. 2021, Algorithm 1: C <- C exp(-eta (b - gamma))."""
    tracking = QuantileTracking(quantile=0.5, rate=0.2)
    assert tracking.next(2.0, 0.5) == 2.0
    assert tracking.next(2.0, 1.0) == pytest.approx(2.0 * 0.904837418)
    assert tracking.next(2.0, 0.0) == pytest.approx(2.0 * 1.105170918)
    assert tracking.next(1.0, 1.8) == pytest.approx(0.771051586)
    clip = 1.0
    for unclipped in (1.0, 0.75, 0.0):
        clip = tracking.next(clip, unclipped)
    assert math.log(clip) == pytest.approx(-0.2 * (0.5 + 0.25 - 0.5))


def test_the_norm_stays_where_nobody_was_asked_or_it_is_fixed() -> None:
    assert QuantileTracking(0.3, 0.2).next(1.7, None) == 1.7
    assert Constant().next(1.7, 0.9) == Constant().next(1.7, None) == 1.7
