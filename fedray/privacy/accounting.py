"""Epsilon of composed events by dp-accounting, and the noise that a budget allows.

Two accountants, both upper bounds: privacy loss distributions (PLD: Koskela et al. 2020; Doroshenko et al. 2022, whose
discretisation errs upwards), for Gaussian sums, trees of them, Poisson samples and randomised response; and Renyi DP
(RDP: Mironov 2017) for all events. The smaller figure is reported, with its name. The central-limit figure of Gaussian
DP is no upper bound under subsampling and is not offered.

RDP curves add up for one relation of neighbours. That is "zero-out" here; where dp-accounting knows an event only for
units that are replaced by any other, its larger curve is taken: Gaussian sums over samples of fixed size, in which a
unit that is left out makes room for another, so that twice the clip is at stake; and randomised response.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, reduce

import dp_accounting
import msgspec
import numpy as np
from dp_accounting import NeighboringRelation, rdp
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    from_randomized_response,
)
from dp_accounting.rdp import rdp_privacy_accountant
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.privacy.distributed.bounds import skellam_rdp
from fedray.privacy.events import (
    Charge,
    Concentrated,
    Event,
    FixedSizeGaussian,
    Gaussian,
    RandomisedResponse,
    SampledGaussian,
    Skellam,
    Tree,
)
from fedray.values import Spent

ORDERS: tuple[float, ...] = tuple(rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
"""Renyi orders."""

_COARSEST = 1e-5
"""Grid of the privacy loss over epsilon, for large epsilons: keeps memory bounded."""
_LARGEST_NOISE = 1e5
_KEPT = 0.01
"""Share of delta for samplers that are not exact."""


def spent(charges: Iterable[Charge], delta: float) -> Spent:
    """What the composition of charges costs at ``delta``: the smaller figure of two accountants.

    Where samplers are not exact, being within tau in total variation of what is accounted for, a part of delta is kept
    for that: it costs (1 + exp(epsilon)) tau. Epsilon is infinite where that part does not do.
    """
    merged = merge(charges)
    text = msgspec.json.encode(merged).decode()
    if failure := sum(charge.count * _failure(charge.event) for charge in merged):
        by_rdp = _epsilon_rdp(merged, delta * (1 - _KEPT))
        is_covered = (1 + math.exp(min(by_rdp, 700.0))) * failure <= delta * _KEPT
        by_rdp = by_rdp if is_covered else math.inf
        return Spent(by_rdp, "RDP", by_rdp, delta, text)
    by_rdp, by_pld = _epsilon_rdp(merged, delta), _epsilon_pld(merged, delta)
    if by_pld is None or by_rdp < by_pld:
        return Spent(by_rdp, "RDP", by_rdp, delta, text)
    return Spent(by_pld, "PLD", by_rdp, delta, text)


def spent_by_renyi(charges: Iterable[Charge], delta: float) -> Spent:
    """The same by Renyi DP alone: looser by a tenth or so, and a thousand times as fast where owners differ in size."""
    merged = merge(charges)
    if any(_failure(charge.event) for charge in merged):
        return spent(merged, delta)
    by_rdp = _epsilon_rdp(merged, delta)
    return Spent(by_rdp, "RDP", by_rdp, delta, msgspec.json.encode(merged).decode())


def calibrate(charges_at: Callable[[float], Sequence[Charge]], epsilon: float, delta: float) -> float:
    """Smallest noise multiplier, to one part in a thousand and never below, that keeps to a budget.

    Args:
        charges_at: all charges of the planned work, for a noise multiplier.
        epsilon: the budget.
        delta: failure probability.

    Raises:
        ConfigError: no noise multiplier up to 100,000 reaches the budget.
    """

    def affordable(noise_multiplier: float) -> bool:
        return spent(charges_at(noise_multiplier), delta).epsilon <= epsilon

    low, high = 0.05, 1.0
    while not affordable(high):
        low, high = high, high * 2
        if high > _LARGEST_NOISE:
            raise ConfigError(
                f"privacy.epsilon {epsilon:g} at delta {delta:g}, which no noise reaches",
                "a budget that some noise can meet",
                "raise epsilon, or train for fewer rounds, epochs or steps",
            )
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if affordable(middle) else (middle, high)
    return high


def renyi(charges: Iterable[Charge]) -> NDArray[np.float64]:
    """Renyi DP of the composition at each of ``ORDERS``, shape ``(len(ORDERS),)``."""
    curves = [charge.count * _renyi_of_one(charge.event) for charge in merge(charges)]
    return np.sum(curves, axis=0) if curves else np.zeros(len(ORDERS))


def merge(charges: Iterable[Charge]) -> tuple[Charge, ...]:
    """The same charges, each event once."""
    counts: dict[Event, int] = {}
    for charge in charges:
        counts[charge.event] = counts.get(charge.event, 0) + charge.count
    merged = [Charge(event, count) for event, count in counts.items() if count]
    return tuple(sorted(merged, key=repr))


@lru_cache(maxsize=4096)
def _epsilon_rdp(charges: tuple[Charge, ...], delta: float) -> float:
    if not charges:
        return 0.0
    return float(rdp.compute_epsilon(ORDERS, renyi(charges), delta)[0])


@lru_cache(maxsize=4096)
def _epsilon_pld(charges: tuple[Charge, ...], delta: float) -> float | None:
    """None where an event has no privacy loss distribution; infinite where epsilon is beyond what they can hold."""
    if not charges:
        return 0.0
    events = [_as_gaussian(charge.event) for charge in charges]
    if any(not isinstance(event, Gaussian | SampledGaussian | RandomisedResponse) for event in events):
        return None
    if math.isinf(by_rdp := _epsilon_rdp(charges, delta)):
        return _epsilon_pure(charges)
    grid = max(min(_interval(event) for event in events), _COARSEST * by_rdp)
    losses = [_losses(event, charge.count, grid) for event, charge in zip(events, charges, strict=True)]
    with np.errstate(over="ignore"):
        epsilon = float(reduce(PrivacyLossDistribution.compose, losses).get_epsilon_for_delta(delta))
    return min(epsilon, _epsilon_pure(charges))


def _epsilon_pure(charges: Sequence[Charge]) -> float:
    """The sum of pure epsilons (Dwork et al. 2006), which no grid rounds up; infinite where one needs a delta."""
    return sum(
        charge.count * charge.event.epsilon if isinstance(charge.event, RandomisedResponse) else math.inf
        for charge in charges
    )


def _losses(event: Event, count: int, grid: float) -> PrivacyLossDistribution:
    """The privacy loss of so many of one event, as dp-accounting's accountant composes them."""
    if isinstance(event, SampledGaussian):
        return _losses_of_one(event, grid).self_compose(count)
    if isinstance(event, RandomisedResponse):
        loss = from_randomized_response(_rate_of_noise(event), event.n_classes, value_discretization_interval=grid)
        return loss.self_compose(count)
    assert isinstance(event, Gaussian)
    deviation = event.noise_multiplier / math.sqrt(count)
    return from_gaussian_mechanism(deviation, value_discretization_interval=grid)


@lru_cache(maxsize=64)
def _losses_of_one(event: SampledGaussian, grid: float) -> PrivacyLossDistribution:
    """Most of the time of an epsilon is in this; runs ask for the same event at every round."""
    return from_gaussian_mechanism(
        event.noise_multiplier, value_discretization_interval=grid, sampling_prob=event.sample_rate
    )


def _as_gaussian(event: Event) -> Event:
    """A tree is one Gaussian mechanism: a unit's part is in one node of each of its levels."""
    if isinstance(event, Tree):
        return Gaussian(event.noise_multiplier / math.sqrt(event.n_steps.bit_length()))
    return event


@lru_cache(maxsize=1024)
def _renyi_of_one(event: Event) -> NDArray[np.float64]:
    if isinstance(event, Skellam):
        return skellam_rdp(event, ORDERS)
    accountant = rdp.RdpAccountant(ORDERS, _relation(event))
    with _quiet():
        accountant.compose(_dp_event(event))
    return np.asarray(accountant.rdp, dtype=np.float64)


def _failure(event: Event) -> float:
    return event.failure if isinstance(event, Concentrated | Skellam) else 0.0


def _relation(event: Event) -> NeighboringRelation:
    match event:
        case FixedSizeGaussian() | RandomisedResponse():
            return NeighboringRelation.REPLACE_ONE
        case Tree():
            return NeighboringRelation.REPLACE_SPECIAL
        case _:
            return NeighboringRelation.ADD_OR_REMOVE_ONE


def _dp_event(event: Event) -> dp_accounting.DpEvent:
    match event:
        case Gaussian(z):
            return dp_accounting.GaussianDpEvent(z)
        case SampledGaussian(rate, z):
            return dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(z))
        case FixedSizeGaussian(population, size, z):
            return dp_accounting.SampledWithoutReplacementDpEvent(
                population, size, dp_accounting.GaussianDpEvent(z / 2)
            )
        case Tree(z, n_steps):
            return dp_accounting.SingleEpochTreeAggregationDpEvent(z, n_steps)
        case Concentrated(rho, _):
            return dp_accounting.ZCDpEvent(rho)
        case RandomisedResponse(_, n_classes):
            return dp_accounting.RandomizedResponseDpEvent(_rate_of_noise(event), n_classes)
    raise AssertionError(event)


def _rate_of_noise(event: RandomisedResponse) -> float:
    """How often randomised response draws a class at random, the true one included."""
    odds = math.exp(-event.epsilon)
    return event.n_classes * odds / (1 + (event.n_classes - 1) * odds)


def _interval(event: Event) -> float:
    """Grid of the privacy loss: a small part of one step's spread, about q/z. Coarser is safe but looser.

    Never so fine that a step's whole range, about 10/z + 1/(2 z^2), takes more than a million points.
    """
    if isinstance(event, RandomisedResponse):
        return 1e-3 * event.epsilon
    assert isinstance(event, Gaussian | SampledGaussian)
    noise = event.noise_multiplier
    rate = event.sample_rate if isinstance(event, SampledGaussian) else 1.0
    return max(min(1e-3, 0.05 * rate / noise), 1e-6 * (10 / noise + 0.5 / noise**2))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's warnings of single orders that it leaves out, which can only raise epsilon."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
