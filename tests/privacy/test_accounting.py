"""Epsilon against dp-accounting used directly and on finer grids, Opacus's own accountants, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dp_accounting
import numpy as np
import pytest
from dp_accounting import NeighboringRelation, pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import optimize, stats

from fedray.errors import ConfigError
from fedray.privacy.accounting import ORDERS, calibrate, merge, renyi, spent
from fedray.privacy.dp_sgd import DpSgdPlan
from fedray.privacy.events import (
    Charge,
    Concentrated,
    Event,
    FixedSizeGaussian,
    Gaussian,
    SampledGaussian,
    Skellam,
    Tree,
    at_example_level,
)
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


def steps(rate: float, noise: float, n_steps: int) -> Charge:
    return Charge(SampledGaussian(rate, noise), n_steps)


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
    """By dp-accounting's accountant, composed event by event instead of curve by curve."""
    accountant = rdp.RdpAccountant()
    for rate, noise, n_steps in history:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), n_steps)
    return float(accountant.get_epsilon(delta))


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact delta of a Gaussian mechanism of sensitivity over deviation ``mu``."""
    upper = stats.norm.cdf(mu / 2 - epsilon / mu)
    return float(upper - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu))


def gaussian_epsilon(mu: float, delta: float = DELTA) -> float:
    return float(optimize.brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 1e-9, 100))


@pytest.mark.parametrize(("rate", "noise", "n_steps"), SETTINGS)
def test_epsilon_is_a_tight_upper_bound(rate: float, noise: float, n_steps: int) -> None:
    """Never below the figure of a finer grid, within a percent of it, and below Renyi's by Opacus."""
    found = spent([steps(rate, noise, n_steps)], DELTA)
    finer = pld_epsilon([(rate, noise, n_steps)], grid=1e-4)
    assert finer * (1 - 1e-6) <= found.epsilon <= finer * 1.01
    assert found.epsilon <= found.epsilon_rdp
    assert found.epsilon <= opacus_epsilon([(rate, noise, n_steps)]) * (1 + 1e-9)
    assert found.epsilon_rdp == pytest.approx(renyi_epsilon([(rate, noise, n_steps)]), rel=0.02)
    assert found.delta == DELTA


def test_without_sampling_epsilon_is_the_analytic_gaussians() -> None:
    """n steps of noise z are one of noise z / sqrt(n)."""
    noise, n_steps = 3.0, 10
    exact = gaussian_epsilon(math.sqrt(n_steps) / noise)
    for event in (Gaussian(noise), SampledGaussian(1.0, noise)):
        found = spent([Charge(event, n_steps)], DELTA).epsilon
        assert exact * (1 - 1e-6) <= found <= exact * 1.005


@settings(deadline=None, max_examples=8)
@given(parts=st.lists(st.integers(1, 12), min_size=1, max_size=4), order=st.randoms())
def test_how_steps_are_split_into_charges_does_not_matter(parts: list[int], order: object) -> None:
    charges = [steps(0.2, 1.5, n) for n in parts] + [steps(0.4, 2.0, 3)]
    shuffled = list(charges)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    whole = spent([steps(0.2, 1.5, sum(parts)), steps(0.4, 2.0, 3)], DELTA)
    assert spent(charges, DELTA) == whole == spent(shuffled, DELTA)


def test_mixed_noise_is_composed_and_not_replaced_by_the_last() -> None:
    history = [(0.2, 1.0, 10), (0.4, 4.0, 5), (0.2, 2.0, 10)]
    found = spent([steps(*entry) for entry in history], DELTA)
    assert found.epsilon == pytest.approx(pld_epsilon(history, grid=5e-4), rel=0.01)
    assert found.epsilon > pld_epsilon(history[:1], grid=5e-4)
    assert found.epsilon_rdp == pytest.approx(renyi_epsilon(history), rel=0.02)


def test_nothing_released_costs_nothing() -> None:
    assert (spent([], DELTA).epsilon, spent([steps(0.5, 1.0, 0)], DELTA).epsilon_rdp) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("epsilon", "rate", "n_steps"), [(0.5, 0.1, 20), (1.0, 0.25, 30), (3.0, 0.25, 30), (8.0, 0.5, 60), (12.0, 1.0, 5)]
)
def test_calibrated_noise_just_meets_the_budget(epsilon: float, rate: float, n_steps: int) -> None:
    noise = calibrate(lambda z: [steps(rate, z, n_steps)], epsilon, DELTA)
    assert spent([steps(rate, noise, n_steps)], DELTA).epsilon <= epsilon
    assert pld_epsilon([(rate, noise, n_steps)], grid=2e-4) <= epsilon
    assert spent([steps(rate, noise * 0.995, n_steps)], DELTA).epsilon > epsilon * 0.98
    assert spent([steps(rate, noise / 1.002, n_steps)], DELTA).epsilon > epsilon


def test_a_budget_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        calibrate(lambda z: [steps(1.0, z, 1000)], 1e-9, 1e-12)


def test_a_plan_is_calibrated_for_all_steps_of_all_rounds() -> None:
    """100 rows in batches of 30 are 4 steps an epoch; 2 epochs over 5 rounds are 40 steps at rate 0.3."""
    plan = DpSgdPlan.within(2.0, DELTA, n_rows=100, batch_size=30, clip=1.5, work=Work(2, "epochs"), n_rounds=5)
    assert (plan.sample_rate, plan.clip) == (0.3, 1.5)
    assert 2.0 * 0.98 < pld_epsilon([(0.3, plan.noise_multiplier, 40)]) <= 2.0
    steps = DpSgdPlan.within(2.0, DELTA, n_rows=100, batch_size=30, clip=1.5, work=Work(8, "steps"), n_rounds=5)
    assert steps == plan


def test_a_batch_larger_than_the_shard_is_the_whole_shard() -> None:
    assert DpSgdPlan(20, 64, 1.0, 1.0).sample_rate == 1.0


# A table of settings against all accountants that know them ----------------------------------------------------------

History = list[tuple[float, float, int]]
"""(rate, noise, count) of Poisson-sampled Gaussian sums."""

LEFT_OUT, REPLACED, ZEROED = (
    NeighboringRelation.ADD_OR_REMOVE_ONE,
    NeighboringRelation.REPLACE_ONE,
    NeighboringRelation.REPLACE_SPECIAL,
)


@dataclass(frozen=True)
class Setting:
    """A composition in three notations, each written out by hand.

    Attributes:
        charges: fedray's.
        renyi: dp-accounting's: (relation of neighbours, event, count).
        history: as Gaussian sums, sampled or not, which Opacus and PLD know; None where it is none.
    """

    charges: tuple[Charge, ...]
    renyi: tuple[tuple[NeighboringRelation, dp_accounting.DpEvent, int], ...]
    history: History | None = None

    def by_renyi(self) -> float:
        """An accountant for each relation of neighbours; RDP curves add up."""
        curves = np.zeros(len(ORDERS))
        for relation, event, count in self.renyi:
            accountant = rdp.RdpAccountant(ORDERS, relation)
            accountant.compose(event, count)
            curves += accountant.rdp
        return float(rdp.compute_epsilon(ORDERS, curves, DELTA)[0])


def _gaussian(noise: float) -> dp_accounting.DpEvent:
    return dp_accounting.GaussianDpEvent(noise)


def _poisson(history: History) -> Setting:
    charges = tuple(steps(*entry) for entry in history)
    events = [(LEFT_OUT, dp_accounting.PoissonSampledDpEvent(rate, _gaussian(z)), n) for rate, z, n in history]
    return Setting(charges, tuple(events), history)


def _fixed_size(population: int, size: int, z: float) -> dp_accounting.DpEvent:
    """Of units that are replaced: one that is left out makes room for another, which is twice the clip."""
    return dp_accounting.SampledWithoutReplacementDpEvent(population, size, _gaussian(z / 2))


TABLE = {
    "Poisson, half": _poisson([(0.5, 2.0, 40)]),
    "Poisson, a tenth": _poisson([(0.1, 1.0, 100)]),
    "Poisson, a fiftieth, little noise": _poisson([(0.02, 0.8, 300)]),
    "Poisson, much noise": _poisson([(0.25, 5.0, 50)]),
    "full participation": Setting((Charge(Gaussian(3.0), 10),), ((LEFT_OUT, _gaussian(3.0), 10),), [(1.0, 3.0, 10)]),
    "full participation, once": Setting((Charge(Gaussian(8.0)),), ((LEFT_OUT, _gaussian(8.0), 1),), [(1.0, 8.0, 1)]),
    "mixed noise": _poisson([(0.2, 1.0, 10), (0.4, 4.0, 5), (0.2, 2.0, 10)]),
    "mixed sampling": Setting(
        (Charge(SampledGaussian(0.1, 1.2), 60), Charge(Gaussian(6.0), 4)),
        (
            (LEFT_OUT, dp_accounting.PoissonSampledDpEvent(0.1, _gaussian(1.2)), 60),
            (LEFT_OUT, _gaussian(6.0), 4),
        ),
        [(0.1, 1.2, 60), (1.0, 6.0, 4)],
    ),
    "a tree of 64, 7 levels": Setting(
        (Charge(Tree(8.0, 64)),),
        ((ZEROED, dp_accounting.SingleEpochTreeAggregationDpEvent(8.0, 64), 1),),
        [(1.0, 8.0, 7)],
    ),
    "three trees of 7, 3 levels": Setting(
        (Charge(Tree(8.0, 7), 3),),
        ((ZEROED, dp_accounting.SingleEpochTreeAggregationDpEvent(8.0, 7), 3),),
        [(1.0, 8.0, 9)],
    ),
    "a tree of 16 and figures": Setting(
        (Charge(Tree(6.0, 16)), Charge(Gaussian(10.0), 5)),
        ((ZEROED, dp_accounting.SingleEpochTreeAggregationDpEvent(6.0, 16), 1), (LEFT_OUT, _gaussian(10.0), 5)),
        [(1.0, 6.0, 5), (1.0, 10.0, 5)],
    ),
    "fixed size": Setting((Charge(FixedSizeGaussian(100, 10, 4.0), 50),), ((REPLACED, _fixed_size(100, 10, 4.0), 50),)),
    "fixed size, of many": Setting(
        (Charge(FixedSizeGaussian(5000, 50, 2.5), 200),), ((REPLACED, _fixed_size(5000, 50, 2.5), 200),)
    ),
    "zCDP": Setting((Charge(Concentrated(0.01), 20),), ((LEFT_OUT, dp_accounting.ZCDpEvent(0.01), 20),)),
    "fixed size, zCDP and a tree": Setting(
        (Charge(FixedSizeGaussian(100, 10, 4.0), 20), Charge(Concentrated(0.02), 3), Charge(Tree(9.0, 8), 2)),
        (
            (REPLACED, _fixed_size(100, 10, 4.0), 20),
            (LEFT_OUT, dp_accounting.ZCDpEvent(0.02), 3),
            (ZEROED, dp_accounting.SingleEpochTreeAggregationDpEvent(9.0, 8), 2),
        ),
    ),
}
PRV_ERROR = 1e-3


def prv_epsilon(history: History, delta: float = DELTA) -> float:
    """Gopi et al. 2021 by Opacus: an upper bound, at most two ``PRV_ERROR`` above the truth."""
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, n_steps) for rate, noise, n_steps in history]
    with np.errstate(divide="ignore"):
        return float(accountant.get_epsilon(delta, eps_error=PRV_ERROR))


@pytest.mark.parametrize("setting", TABLE.values(), ids=TABLE)
def test_epsilon_is_never_below_the_tightest_accountant_and_at_the_one_that_it_names(setting: Setting) -> None:
    """Of PLD on a grid five times as fine as that of ``spent``, the error is nothing beside that of the latter."""
    found = spent(setting.charges, DELTA)
    references = {"RDP": setting.by_renyi()}
    least = [references["RDP"] * (1 - 1e-9)]
    if setting.history is not None:
        references["PLD"] = pld_epsilon(setting.history, grid=2e-4)
        prv, opacus = prv_epsilon(setting.history), opacus_epsilon(setting.history)
        least += [references["PLD"] * (1 - 1e-6), prv - 2 * PRV_ERROR, opacus]
        assert found.accountant == "PLD"
        assert found.epsilon <= min(prv * 1.002, opacus)
    assert found.epsilon >= min(least)
    assert found.epsilon == pytest.approx(references[found.accountant], rel=0.01)
    assert found.epsilon_rdp == pytest.approx(references["RDP"], rel=1e-9)
    assert found.epsilon <= found.epsilon_rdp


def test_one_event_without_a_loss_distribution_leaves_renyi_for_all() -> None:
    """Concentrated differential privacy bounds divergences, and says nothing of a distribution."""
    mixed = [Charge(Gaussian(5.0), 4), Charge(Concentrated(0.02), 3)]
    assert spent(mixed, DELTA).accountant == "RDP"
    assert spent(mixed[:1], DELTA).accountant == "PLD"


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_at_little_noise_a_coarser_grid_errs_upwards_still(noise: float) -> None:
    exact = gaussian_epsilon_of_little_noise(noise)
    assert exact <= spent([Charge(Gaussian(noise))], DELTA).epsilon <= exact * 1.001


def gaussian_epsilon_of_little_noise(noise: float) -> float:
    """In logarithms, since exp(epsilon) overflows."""
    mu = 1 / noise

    def excess(epsilon: float) -> float:
        upper = stats.norm.logcdf(mu / 2 - epsilon / mu)
        lower = epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
        return float(upper + math.log1p(-math.exp(lower - upper)) - math.log(DELTA))

    return float(optimize.brentq(excess, mu**2 / 2, mu**2 * 2))


def test_zcdp_is_between_the_gaussian_that_it_fits_and_its_closed_form() -> None:
    """A Gaussian of noise z is 1 / (2 z**2)-zCDP; Bun and Steinke 2016, proposition 1.3, is a looser conversion."""
    rho = 0.2
    found = spent([Charge(Concentrated(rho / 20), 20)], DELTA).epsilon
    assert gaussian_epsilon(math.sqrt(2 * rho)) < found < rho + 2 * math.sqrt(rho * math.log(1 / DELTA))


def test_curves_of_charges_add_up() -> None:
    charges = [
        steps(0.2, 1.5, 7),
        Charge(Tree(5.0, 8), 2),
        Charge(Skellam(40.0, 8.0, 900.0), 3),
        Charge(Concentrated(0.1)),
    ]
    alone = [charge.count * renyi([Charge(charge.event)]) for charge in charges]
    np.testing.assert_allclose(renyi(charges), np.sum(alone, axis=0), rtol=1e-12)
    assert renyi([]).tolist() == [0.0] * len(ORDERS)


# Charges that are the same event --------------------------------------------------------------------------------------

EVENTS: tuple[Event, ...] = (
    Gaussian(2.0),
    Gaussian(3.0),
    SampledGaussian(0.1, 2.0),
    FixedSizeGaussian(50, 5, 2.0),
    Tree(2.0, 8),
    Concentrated(0.5),
    Concentrated(0.5, 1e-12),
    Skellam(30.0, 6.0, 400.0),
)


@given(charges=st.lists(st.builds(Charge, st.sampled_from(EVENTS), st.integers(0, 9))), order=st.randoms())
def test_merged_charges_hold_each_event_once_with_all_its_counts(charges: list[Charge], order: object) -> None:
    merged = merge(charges)
    assert len({one.event for one in merged}) == len(merged)
    for event in EVENTS:
        total = sum(one.count for one in charges if one.event == event)
        assert [one.count for one in merged if one.event == event] == ([total] if total else [])
    order.shuffle(charges)  # type: ignore[attr-defined]
    assert merge(charges) == merged == merge(merged)


# Owners' events for an example ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Gaussian(3.0), Gaussian(1.5)),
        (SampledGaussian(0.1, 3.0), Gaussian(1.5)),
        (FixedSizeGaussian(100, 10, 3.0), Gaussian(1.5)),
        (Tree(3.0, 8), Tree(1.5, 8)),
        (Concentrated(0.25, 1e-13), Concentrated(1.0, 1e-13)),
        (Skellam(30.0, 6.0, 400.0, 1e-13), Skellam(60.0, 12.0, 400.0, 1e-13)),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_changed_row_moves_its_owners_part_by_up_to_twice_the_clip(event: Event, expected: Event) -> None:
    """From one vector within the clip to another; a sampler that may leave the owner out does not help the row."""
    assert at_example_level(event) == expected
    assert spent([Charge(at_example_level(event), 5)], DELTA).epsilon > spent([Charge(event, 5)], DELTA).epsilon


def test_at_the_level_of_examples_a_gaussian_sum_costs_what_twice_its_sensitivity_does() -> None:
    found = spent([Charge(at_example_level(Gaussian(6.0)), 10)], DELTA).epsilon
    exact = gaussian_epsilon(2 * math.sqrt(10) / 6.0)
    assert exact * (1 - 1e-6) <= found <= exact * 1.005


# Samplers that are not exact ------------------------------------------------------------------------------------------


def _inexact(failure: float, rho: float = 0.01) -> list[Charge]:
    return [Charge(Concentrated(rho, failure), 20)]


def test_a_hundredth_of_delta_is_kept_for_samplers_that_are_not_exact() -> None:
    exact = spent([Charge(Concentrated(0.01), 20)], DELTA * 0.99)
    found = spent(_inexact(1e-12), DELTA)
    assert (found.epsilon, found.epsilon_rdp) == (exact.epsilon, exact.epsilon_rdp)
    assert (found.delta, found.accountant) == (DELTA, "RDP")
    assert found.epsilon > spent([Charge(Concentrated(0.01), 20)], DELTA).epsilon


def test_what_is_said_of_an_inexact_sampler_is_true_of_the_worst_one() -> None:
    """Move tau of P to where Q has nothing, and tau of Q from under P: delta grows by (1 + exp(epsilon)) tau."""
    epsilon = spent(_inexact(1e-12), DELTA).epsilon
    least = DELTA / 100 / (1 + math.exp(epsilon)) / 20
    found = spent(_inexact(least * (1 - 1e-9)), DELTA).epsilon
    moved = (1 + math.exp(found)) * 20 * least
    assert moved == pytest.approx(DELTA / 100)
    assert gaussian_delta(found, math.sqrt(2 * 20 * 0.01)) + moved <= DELTA


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_where_the_kept_part_does_not_do_epsilon_is_infinite(delta: float) -> None:
    epsilon = spent(_inexact(1e-30), delta).epsilon
    least = delta / 100 / (1 + math.exp(epsilon)) / 20
    assert spent(_inexact(least * (1 - 1e-9)), delta).epsilon == epsilon
    beyond = spent(_inexact(least * (1 + 1e-9)), delta)
    assert (beyond.epsilon, beyond.epsilon_rdp) == (math.inf, math.inf)


def test_failures_of_all_events_and_rounds_add_up() -> None:
    def charges(one: float, other: float) -> list[Charge]:
        return [
            Charge(Concentrated(0.01, one), 4),
            Charge(Skellam(30.0, 6.0, 40_000.0, other), 4),
            Charge(Gaussian(30.0), 4),
        ]

    kept = DELTA / 100 / (1 + math.exp(spent(charges(1e-30, 0.0), DELTA).epsilon))
    assert math.isfinite(spent(charges(kept * 0.24, 1e-30), DELTA).epsilon)
    assert math.isfinite(spent(charges(1e-30, kept * 0.24), DELTA).epsilon)
    assert math.isfinite(spent(charges(kept * 0.12, kept * 0.12), DELTA).epsilon)
    assert math.isinf(spent(charges(kept * 0.13, kept * 0.13), DELTA).epsilon)


def test_an_epsilon_beyond_what_floats_hold_is_infinite_where_a_sampler_may_fail() -> None:
    assert math.isinf(spent([Charge(Concentrated(5000.0, 1e-300))], DELTA).epsilon)
    assert math.isfinite(spent([Charge(Concentrated(5000.0))], DELTA).epsilon)


# Calibration of several kinds of charges ------------------------------------------------------------------------------


def _sum_of_kinds(z: float) -> Sequence[Charge]:
    return [steps(0.1, z, 50), Charge(Gaussian(2 * z), 3), Charge(Tree(4 * z, 8)), Charge(Gaussian(20.0), 5)]


def _with_inexact_noise(z: float) -> Sequence[Charge]:
    return [Charge(Concentrated(1 / (2 * z**2), 1e-13), 10), Charge(FixedSizeGaussian(100, 10, z), 20)]


@pytest.mark.parametrize(
    ("charges_at", "epsilon"), [(_sum_of_kinds, 1.0), (_sum_of_kinds, 4.0), (_with_inexact_noise, 3.0)]
)
def test_noise_of_several_mechanisms_together_just_meets_the_budget(
    charges_at: Callable[[float], Sequence[Charge]], epsilon: float
) -> None:
    noise = calibrate(charges_at, epsilon, DELTA)
    assert spent(charges_at(noise), DELTA).epsilon <= epsilon
    assert spent(charges_at(noise / 1.002), DELTA).epsilon > epsilon


def test_a_budget_that_something_else_has_spent_is_refused() -> None:
    """Whatever the noise on the rest."""
    with pytest.raises(ConfigError, match=r"privacy\.epsilon 2 at delta 1e-05, which no noise reaches"):
        calibrate(lambda z: [Charge(Gaussian(z)), Charge(Concentrated(0.5), 20)], 2.0, DELTA)
