"""A lower bound on epsilon from one run with many canaries.

T. Steinke, M. Nasr, M. Jagielski, "Privacy Auditing with One (1) Training Run", 2023: Algorithm 1 with the p-value of
Theorem 5.2 (Appendix D). Each of m canaries is in the run or not by a fair coin of its own; afterwards the auditor
scores all of them, says "in" of the k highest, "out" of the k lowest and abstains on the rest. Under
(epsilon, delta)-DP the number of right guesses is, but for a term in delta, at most binomial with the odds of
randomised response. Nothing is assumed of the mechanism, nor of how canaries act on each other.

The bound holds for a number of guesses that depends neither on scores nor on coins. ``planned_guesses`` therefore
takes it from the claim alone: the number that would bound epsilon best if the noise were half of what the claim needs.
(To try several numbers and keep the best takes a correction, which costs a tenth to a third of the bound here.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm

from fedray.auditing.gaussian import mu_of
from fedray.errors import ConfigError

_TOLERANCE = 1e-6
_FEWEST = 4
"""Guesses of a kind."""


def p_value(n_canaries: int, n_guesses: int, n_correct: int, epsilon: float, delta: float) -> float:
    """Largest probability of so many right guesses under (epsilon, delta)-DP."""
    within = np.arange(n_correct + 1)
    tails = binom.sf(n_correct - 1 - within, n_guesses, expit(epsilon))
    beta = float(tails[0])
    alpha = float(np.max((tails[1:] - beta) / within[1:], initial=0.0))
    return min(1.0, beta + 2 * n_canaries * delta * alpha)


def epsilon_lower_bound(
    n_canaries: int, n_guesses: int, n_correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Epsilon that a mechanism has at least, with probability ``confidence`` over the run.

    Args:
        n_canaries: canaries with a coin each, those without a guess included.
        n_guesses: guesses made; fixed without a look at scores and coins.
        n_correct: right ones among them.
        delta: at which epsilon is bounded.
        confidence: probability with which the bound holds.

    Raises:
        ConfigError: the counts are not ``0 <= n_correct <= n_guesses <= n_canaries``, or delta or confidence is no
            probability.
    """
    _require(n_canaries, n_guesses, n_correct, delta, confidence)

    def is_refuted(epsilon: float) -> bool:
        return p_value(n_canaries, n_guesses, n_correct, epsilon, delta) <= 1 - confidence

    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class Guesses:
    """How many canaries are said to be in, by the highest scores, and how many out, by the lowest."""

    n_in: int
    n_out: int

    @property
    def total(self) -> int:
        return self.n_in + self.n_out


def planned_guesses(
    n_canaries: int, epsilon: float, delta: float, confidence: float = 0.95, *, is_sampled: bool = False
) -> Guesses:
    """How many guesses to make, from the claim alone: those that would best expose half the noise.

    Scores are taken for normal here; where they are not, the number may serve less well, and the bound still holds.

    Args:
        n_canaries: canaries with a coin each.
        epsilon: the claim.
        delta: of the claim.
        confidence: of the bound.
        is_sampled: whether a canary that is in takes part by chance. A low score then says little, and nothing is
            guessed to be out.
    """
    mu, n_sides = 2 * mu_of(epsilon, delta), 1 if is_sampled else 2

    def expected_bound(n_each: int) -> float:
        n_guesses = n_sides * n_each
        n_correct = math.floor(n_guesses * _accuracy(mu, n_each / n_canaries))
        return epsilon_lower_bound(n_canaries, n_guesses, n_correct, delta, confidence)

    halvings = [n_canaries >> power for power in range(1, n_canaries.bit_length())]
    n_each = max([count for count in halvings if count >= _FEWEST], key=expected_bound, default=n_canaries // 2)
    return Guesses(n_each, 0 if is_sampled else n_each)


def count_correct(scores: NDArray[np.float64], coins: NDArray[np.bool_], guesses: Guesses) -> int:
    """Right ones among the guesses.

    Args:
        scores: shape ``(n_canaries,)``; higher where the canary seems to be in.
        coins: which canaries were in, shape ``(n_canaries,)``.
        guesses: how many to make.
    """
    by_score = coins[np.argsort(scores, kind="stable")]
    return int(by_score[len(coins) - guesses.n_in :].sum() + (~by_score[: guesses.n_out]).sum())


def _accuracy(mu: float, share: float) -> float:
    """How often "in" is right of the highest ``share`` of scores, half of them N(0, 1) (out) and half N(mu, 1) (in)."""
    threshold = brentq(lambda t: (norm.sf(t - mu) + norm.sf(t)) / 2 - share, -40.0, 40.0 + mu)
    return float(norm.sf(threshold - mu) / 2 / share)


def _require(n_canaries: int, n_guesses: int, n_correct: int, delta: float, confidence: float) -> None:
    if not 0 <= n_correct <= n_guesses <= n_canaries:
        raise ConfigError(
            f"{n_correct} right of {n_guesses} guesses on {n_canaries} canaries",
            "0 <= n_correct <= n_guesses <= n_canaries",
            "check the counts",
        )
    if not (0 <= delta <= 1 and 0 < confidence < 1):
        raise ConfigError(f"delta {delta} and confidence {confidence}", "probabilities", "correct them")
