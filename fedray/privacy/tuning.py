"""What a search costs that looked at private data in every trial.

Two figures of one search. ``composed`` holds for whoever learns of every trial, and is what owners' ledgers charge.
``selected`` holds for whoever sees the best trial alone, where the number of trials was drawn at random: N. Papernot
and T. Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", ICLR 2022, Theorem 2 (truncated negative
binomial distributions, of which the geometric and the logarithmic are two) and Theorem 6 (Poisson). Every trial draws
its settings anew from one distribution, and the number of trials stays secret. Deviation: where samplers are not
exact, so is each trial, and the distance to exact ones counts as often as trials are expected.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

import msgspec
import numpy as np
from dp_accounting import rdp
from dp_accounting.rdp import rdp_privacy_accountant
from numpy.typing import NDArray
from scipy.optimize import brentq

from fedray.privacy.accounting import ORDERS, merge, renyi, spent
from fedray.privacy.events import Charge
from fedray.values import Spent

Distribution = Literal["geometric", "logarithmic", "poisson"]

Charges = Mapping[str, tuple[Charge, ...]]
"""Owner's name to all that one run cost it."""

Curve = NDArray[np.float64]
"""Renyi DP at each of ``ORDERS``, shape ``(len(ORDERS),)``."""

_KEPT = 0.01
"""Share of delta for samplers that are not exact."""
_MOST_EVENTS = 32
"""Distinct events beyond which the figure by privacy loss distributions takes too long; that by Renyi DP holds too."""


def decoded(text: str) -> tuple[Charge, ...] | None:
    """Charges from a record's JSON; None where it holds none.

    What an owner says of itself is text that anyone may have written.
    """
    try:
        return msgspec.json.decode(text, type=tuple[Charge, ...])
    except msgspec.DecodeError:
        return None


def composed(runs: Iterable[Charges], delta: float) -> Spent:
    """What all runs together have cost the owner that spent most.

    Owners are tried by their figures by Renyi DP, the largest first, until none that is left can have spent more.
    """
    totals = {merge(charges) for charges in _by_owner(runs).values()}
    bounds = sorted(((_by_renyi(charges, delta), charges) for charges in totals), key=lambda pair: -pair[0].epsilon)
    worst = spent((), delta)
    for bound, charges in bounds:
        if bound.epsilon <= worst.epsilon:
            break
        found = bound if len(charges) > _MOST_EVENTS else spent(charges, delta)
        worst = max(worst, found, key=lambda one: one.epsilon)
    return worst


def _by_owner(runs: Iterable[Charges]) -> dict[str, list[Charge]]:
    totals: dict[str, list[Charge]] = {}
    for owner, charges in chain.from_iterable(run.items() for run in runs):
        totals.setdefault(owner, []).extend(charges)
    return totals


def _by_renyi(charges: Sequence[Charge], delta: float) -> Spent:
    epsilon = _epsilon(renyi(charges), _failure(charges), delta)
    return Spent(epsilon, "RDP", epsilon, delta)


@dataclass(frozen=True)
class RandomStopping:
    """How many trials there are: a secret, drawn before the first.

    Attributes:
        distribution: of the number of trials.
        mean: expected number of trials, above 1.
    """

    distribution: Distribution
    mean: float

    def draw(self) -> int:
        """A number of trials, from the operating system's generator. Poisson's may be 0."""
        draws = np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
        match self.distribution:
            case "geometric":
                return int(draws.geometric(self._gamma))
            case "logarithmic":
                return int(draws.logseries(-math.expm1(math.log(self._gamma))))
            case "poisson":
                return int(draws.poisson(self.mean))

    def best_of(self, curve: Curve) -> Curve:
        """Renyi DP of the best trial's result, from that of any one trial; both of shape ``(len(ORDERS),)``."""
        orders = np.asarray(ORDERS)
        picked = curve + math.log(self.mean) / (orders - 1)
        if self.distribution == "poisson":
            deltas = [rdp_privacy_accountant.compute_delta(ORDERS, curve, math.log1p(1 / (a - 1)))[0] for a in ORDERS]
            picked += self.mean * np.array(deltas)
        else:
            shape = 1 if self.distribution == "geometric" else 0
            picked += (1 + shape) * np.min((1 - 1 / orders) * curve - math.log(self._gamma) / orders)
        return np.asarray(np.minimum.accumulate(picked[::-1])[::-1])

    @cached_property
    def _gamma(self) -> float:
        """The paper's gamma, from the mean: 1/gamma, or (1/gamma - 1)/log(1/gamma) where it is logarithmic."""
        if self.distribution == "geometric":
            return 1 / self.mean
        top = 2 * math.log(self.mean) + 2
        return math.exp(-brentq(lambda t: math.expm1(t) / t - self.mean, 1e-12, top, rtol=1e-12))


def selected(trials: Iterable[Charges], stopping: RandomStopping, delta: float) -> Spent:
    """What the best of a random number of trials tells of the owner that it tells most of.

    Args:
        trials: what trials have cost; where they differ, the largest figure at each order counts.
        stopping: how their number was drawn.
        delta: failure probability.
    """
    by_owner: dict[str, set[tuple[Charge, ...]]] = {}
    for owner, charges in chain.from_iterable(trial.items() for trial in trials):
        by_owner.setdefault(owner, set()).add(merge(charges))
    figures = [_best_of(found, stopping, delta) for found in {frozenset(one) for one in by_owner.values()}]
    epsilon = max(figures, default=0.0)
    return Spent(epsilon, "RDP", epsilon, delta)


def _best_of(trials: Iterable[tuple[Charge, ...]], stopping: RandomStopping, delta: float) -> float:
    curve = np.max([renyi(charges) for charges in trials], axis=0)
    if not curve.any():
        return 0.0
    failure = stopping.mean * max(_failure(charges) for charges in trials)
    return _epsilon(stopping.best_of(curve), failure, delta)


def _epsilon(curve: Curve, failure: float, delta: float) -> float:
    """Infinite where what samplers fall short of exact ones does not fit into delta."""
    if not curve.any():
        return 0.0
    if not failure:
        return float(rdp.compute_epsilon(ORDERS, curve, delta)[0])
    epsilon = float(rdp.compute_epsilon(ORDERS, curve, delta * (1 - _KEPT))[0])
    is_covered = (1 + math.exp(min(epsilon, 700.0))) * failure <= delta * _KEPT
    return epsilon if is_covered else math.inf


def _failure(charges: Iterable[Charge]) -> float:
    return math.fsum(charge.count * getattr(charge.event, "failure", 0.0) for charge in charges)
