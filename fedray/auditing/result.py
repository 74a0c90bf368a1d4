"""What an audit found, and how it follows from scores and coins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedray.auditing.gaussian import gaussian_estimate
from fedray.auditing.one_run import count_correct, epsilon_lower_bound, planned_guesses
from fedray.privacy.events import Unit

Verdict = Literal["consistent", "violated"]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """A claimed epsilon held against what canaries gave away.

    Attributes:
        unit: what is protected, ``example`` or ``owner``.
        claimed_epsilon: what the account says after the run.
        delta: at which both figures hold.
        empirical_epsilon: lower bound on the true epsilon.
        confidence: probability with which the bound holds.
        n_canaries: canaries with a coin each.
        n_guesses: canaries that were guessed to be in or out.
        n_correct: right guesses.
        estimated_epsilon: what the scores look like if they are normal; an estimate, no bound.
    """

    unit: Unit
    claimed_epsilon: float
    delta: float
    empirical_epsilon: float
    confidence: float
    n_canaries: int
    n_guesses: int
    n_correct: int
    estimated_epsilon: float

    @property
    def verdict(self) -> Verdict:
        """``violated`` where the lower bound is above the claim; that proves a bug, ``consistent`` proves nothing."""
        return "violated" if self.empirical_epsilon > self.claimed_epsilon else "consistent"

    @property
    def reach(self) -> float:
        """The bound if all guesses were right: a claim above it could not be refuted by this audit."""
        return epsilon_lower_bound(self.n_canaries, self.n_guesses, self.n_guesses, self.delta, self.confidence)


def judge(
    unit: Unit,
    claimed_epsilon: float,
    delta: float,
    scores: NDArray[np.float64],
    coins: NDArray[np.bool_],
    confidence: float = 0.95,
    *,
    is_sampled: bool = False,
) -> AuditResult:
    """Guess by scores, count right guesses, and hold the bound against the claim.

    Args:
        unit: what is protected.
        claimed_epsilon: what the account says; must not depend on scores or coins.
        delta: at which the claim is made.
        scores: shape ``(n_canaries,)``; higher where the canary seems to be in.
        coins: which canaries were in, shape ``(n_canaries,)``.
        confidence: of the bound.
        is_sampled: whether a canary that is in takes part by chance only.
    """
    guesses = planned_guesses(len(coins), claimed_epsilon, delta, confidence, is_sampled=is_sampled)
    n_correct = count_correct(scores, coins, guesses)
    return AuditResult(
        unit=unit,
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        empirical_epsilon=epsilon_lower_bound(len(coins), guesses.total, n_correct, delta, confidence),
        confidence=confidence,
        n_canaries=len(coins),
        n_guesses=guesses.total,
        n_correct=n_correct,
        estimated_epsilon=gaussian_estimate(scores, coins, delta),
    )
