"""The bound from one run, held against the paper's figures, another library's, slow plain sums, and simulation."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedray.auditing.gaussian import epsilon_of
from fedray.auditing.one_run import Guesses, count_correct, epsilon_lower_bound, p_value, planned_guesses
from fedray.errors import ConfigError

COUNTS = st.integers(1, 60).flatmap(
    lambda n: st.integers(1, n).flatmap(lambda r: st.tuples(st.just(n), st.just(r), st.integers(0, r)))
)


def _slow_p_value(n_canaries: int, n_guesses: int, n_correct: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 as it is written: sums of binomial probabilities, term by term."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))

    def probability(low: int, high: int) -> float:
        """Of low <= W < high."""
        counts = range(max(0, low), min(high, n_guesses + 1))
        return math.fsum(math.comb(n_guesses, w) * right**w * (1 - right) ** (n_guesses - w) for w in counts)

    beta = probability(n_correct, n_guesses + 1)
    alpha = max(2 / i * probability(n_correct - i, n_correct) for i in range(1, n_canaries + 1))
    return min(1.0, beta + alpha * n_canaries * delta)


@pytest.mark.parametrize(
    ("n_canaries", "n_guesses", "n_correct", "delta", "published"),
    [(1_000, 100, 75, 1e-4, 0.673), (100_000, 1_510, 1_439, 1e-5, 2.675)],
)
def test_the_bound_is_the_one_that_steinke_nasr_and_jagielski_print(
    n_canaries: int, n_guesses: int, n_correct: int, delta: float, published: float
) -> None:
    assert epsilon_lower_bound(n_canaries, n_guesses, n_correct, delta) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize(
    ("n_canaries", "n_guesses", "n_correct", "delta", "theirs"),
    [
        (2_000, 400, 330, 1e-5, 1.32750),
        (20_000, 312, 296, 1e-5, 2.42053),
        (500, 500, 300, 1e-4, 0.24926),
        (5_000, 64, 64, 1e-6, 3.02418),
    ],
)
def test_the_bound_is_the_one_of_jax_privacy_2_0(
    n_canaries: int, n_guesses: int, n_correct: int, delta: float, theirs: float
) -> None:
    assert epsilon_lower_bound(n_canaries, n_guesses, n_correct, delta) == pytest.approx(theirs, abs=2e-5)


@given(COUNTS, st.floats(0, 5), st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0]))
def test_the_p_value_is_the_theorems_term_by_term(counts: tuple[int, int, int], epsilon: float, delta: float) -> None:
    assert p_value(*counts, epsilon, delta) == pytest.approx(_slow_p_value(*counts, epsilon, delta), abs=1e-9)


def test_without_delta_the_bound_is_the_binomial_tail_by_hand() -> None:
    """All of ten right: q^10 = 0.05. All but one: 10 q^9 (1 - q) + q^10 = 0.05. Three are too few: 1/2^3 > 0.05."""
    assert epsilon_lower_bound(3, 3, 3, 0.0) == 0.0
    q = 0.05 ** (1 / 10)
    assert epsilon_lower_bound(10, 10, 10, 0.0) == pytest.approx(math.log(q / (1 - q)), abs=2e-6)
    found = epsilon_lower_bound(20, 10, 9, 0.0)
    q = math.exp(found) / (1 + math.exp(found))
    assert found > 0
    assert 10 * q**9 * (1 - q) + q**10 == pytest.approx(0.05, abs=1e-6)


@given(COUNTS, st.sampled_from([0.0, 1e-4, 1e-2]))
@settings(max_examples=50)
def test_one_more_right_guess_never_lowers_the_bound(counts: tuple[int, int, int], delta: float) -> None:
    n_canaries, n_guesses, n_correct = counts
    assume(n_correct < n_guesses)
    before = epsilon_lower_bound(n_canaries, n_guesses, n_correct, delta)
    assert epsilon_lower_bound(n_canaries, n_guesses, n_correct + 1, delta) >= before


@given(COUNTS, st.sampled_from([1e-4, 1e-2]), st.sampled_from([0.9, 0.99]))
@settings(max_examples=50)
def test_every_epsilon_below_the_bound_is_refuted(
    counts: tuple[int, int, int], delta: float, confidence: float
) -> None:
    bound = epsilon_lower_bound(*counts, delta, confidence)
    for share in (0.0, 0.3, 0.6, 0.9):
        assert bound == 0 or _slow_p_value(*counts, share * bound, delta) <= 1 - confidence + 1e-9


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (2.0, 0.0), (1.0, 1e-3)])
def test_the_bound_passes_the_truth_in_no_more_than_a_twentieth_of_runs(epsilon: float, delta: float) -> None:
    """Randomised response that gives the coin away with probability delta, audited 2,000 times.

    The tolerance is four deviations of the count; for pure responses the share is also near a twentieth, so that a
    bound that were much too low would fail too.
    """
    n_canaries, n_runs = 200, 2_000
    rng = np.random.default_rng(5)
    bound = cache(lambda n_correct: epsilon_lower_bound(n_canaries, 100, n_correct, delta))

    def passes() -> bool:
        coins = rng.random(n_canaries) < 0.5
        is_true = rng.random(n_canaries) < math.exp(epsilon) / (1 + math.exp(epsilon))
        given_away = rng.random(n_canaries) < delta
        scores = np.where(given_away, 2.0, 1.0) * np.where(coins == (is_true | given_away), 1.0, -1.0)
        return bound(count_correct(scores, coins, Guesses(50, 50))) > epsilon

    share = sum(passes() for _ in range(n_runs)) / n_runs
    assert share <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / n_runs)
    assert delta > 0 or share > 0.01


def test_guesses_go_to_both_ends_and_the_middle_is_left_alone() -> None:
    scores = np.array([0.0, 9.0, -9.0, 5.0, -5.0, 1.0])
    coins = np.array([True, True, False, False, True, True])
    assert count_correct(scores, coins, Guesses(1, 1)) == 2
    assert count_correct(scores, coins, Guesses(2, 2)) == 2
    assert count_correct(scores, coins, Guesses(3, 0)) == 2
    assert count_correct(scores, coins, Guesses(0, 3)) == 1
    assert count_correct(scores, coins, Guesses(0, 0)) == 0


@pytest.mark.parametrize("mu", [0.3, 0.5, 1.0])
def test_planned_guesses_expose_half_the_noise_and_spare_the_whole(mu: float) -> None:
    """Scores of a Gaussian mechanism; 20,000 canaries, or 100,000 for the larger claim."""
    n_canaries, delta = (100_000, 1e-6) if mu == 1.0 else (20_000, 1e-5)
    rng = np.random.default_rng(11)
    claim = epsilon_of(mu, delta)
    guesses = planned_guesses(n_canaries, claim, delta)
    coins = rng.random(n_canaries) < 0.5
    noise = rng.normal(size=n_canaries)
    bounds = [
        epsilon_lower_bound(n_canaries, guesses.total, count_correct(noise + shift * coins, coins, guesses), delta)
        for shift in (mu, 2 * mu)
    ]
    assert bounds[0] < claim < bounds[1]


def test_nothing_is_guessed_to_be_out_under_sampling() -> None:
    assert planned_guesses(1_000, 1.0, 1e-5, is_sampled=True).n_out == 0
    assert planned_guesses(1_000, 1.0, 1e-5, is_sampled=True).n_in > 0
    assert planned_guesses(5, 1.0, 1e-5) == Guesses(2, 2)


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="right of"):
        epsilon_lower_bound(*counts, 1e-5)


@pytest.mark.parametrize(("delta", "confidence"), [(-0.1, 0.95), (1.1, 0.95), (1e-5, 0.0), (1e-5, 1.0)])
def test_what_is_no_probability_is_refused(delta: float, confidence: float) -> None:
    with pytest.raises(ConfigError, match="probabilities"):
        epsilon_lower_bound(10, 5, 5, delta, confidence)
