"""What a search costs: composition against the ledger's own figures, random stopping against another library."""

from __future__ import annotations

import math
from collections import Counter

import dp_accounting
import msgspec
import numpy as np
import pytest
from dp_accounting import dp_event, rdp
from scipy import stats

from fedray.privacy.accounting import ORDERS, renyi, spent
from fedray.privacy.events import Charge, Concentrated, Gaussian, SampledGaussian, Skellam
from fedray.privacy.tuning import Distribution, RandomStopping, composed, decoded, selected

DELTA = 1e-5
SGD = Charge(SampledGaussian(0.1, 1.5), 100)
SHAPES = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}


def test_all_trials_cost_what_one_long_run_of_them_costs() -> None:
    found = composed([{"a": (SGD,)}] * 5, DELTA)
    assert found == spent([Charge(SGD.event, 500)], DELTA)
    assert found.epsilon < 5 * spent([SGD], DELTA).epsilon


def test_the_owner_that_spent_most_over_all_runs_counts() -> None:
    small, large = Charge(Gaussian(20.0)), Charge(Gaussian(5.0))
    runs = [{"a": (small,), "b": (large,)}, {"a": (large,), "b": (small,)}, {"a": (large,)}]
    assert composed(runs, DELTA) == spent([small, large, large], DELTA)
    assert composed([], DELTA).epsilon == 0


def test_very_many_different_trials_are_composed_by_renyi_dp() -> None:
    many = [{"a": (Charge(Gaussian(10.0 + place)),)} for place in range(40)]
    alike = Gaussian(sum((10.0 + place) ** -2 for place in range(40)) ** -0.5)
    found = composed(many, DELTA)
    assert found.accountant == "RDP"
    assert found.epsilon == pytest.approx(spent([Charge(alike)], DELTA).epsilon_rdp)


@pytest.mark.parametrize("distribution", SHAPES)
@pytest.mark.parametrize("mean", [1.5, 10.0, 200.0])
@pytest.mark.parametrize("charge", [SGD, Charge(Gaussian(4.0), 3), Charge(Concentrated(0.01), 2)])
def test_random_stopping_costs_what_dp_accounting_says(distribution: Distribution, mean: float, charge: Charge) -> None:
    match charge.event:
        case Gaussian(z):
            event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(z)
        case SampledGaussian(rate, z):
            event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(z))
        case _:
            event = dp_accounting.ZCDpEvent(0.01)
    trial = dp_accounting.SelfComposedDpEvent(event, charge.count)
    accountant = rdp.RdpAccountant(ORDERS)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(trial, mean, SHAPES[distribution]))
    found = selected([{"a": (charge,)}], RandomStopping(distribution, mean), DELTA)
    assert found.epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_the_bound_of_random_stopping_holds_for_a_mechanism_whose_losses_are_known() -> None:
    # Trials answer 0 or 1, and 1 wins. Randomised response with p against 1 - p: the best of K answers 1 with
    # probability 1 - f(1 - p), f being K's probability generating function; Renyi divergences are then sums.
    p, stopping = 0.6, RandomStopping("geometric", 10.0)

    def best(p: float) -> tuple[float, float]:
        loses = 0.1 * (1 - p) / (1 - 0.9 * (1 - p))
        return loses, 1 - loses

    def divergence(a: tuple[float, float], b: tuple[float, float], order: float) -> float:
        return math.log(sum(x**order * y ** (1 - order) for x, y in zip(a, b, strict=True))) / (order - 1)

    def largest(a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
        return np.array([max(divergence(a, b, order), divergence(b, a, order)) for order in ORDERS[:60]])

    bound = stopping.best_of(np.pad(largest((p, 1 - p), (1 - p, p)), (0, len(ORDERS) - 60), mode="edge"))
    assert (largest(best(p), best(1 - p)) <= bound[:60]).all()


def test_random_stopping_beats_composition_for_many_trials_and_costs_more_than_one() -> None:
    trials = [{"a": (SGD,)}] * 30
    one = spent([SGD], DELTA).epsilon
    found = selected(trials, RandomStopping("geometric", 30.0), DELTA).epsilon
    assert one < found < composed(trials, DELTA).epsilon
    assert found < 3.5 * one


def test_trials_that_differ_count_with_the_larger_figure_at_every_order() -> None:
    other = Charge(Gaussian(1.2))
    stopping = RandomStopping("logarithmic", 8.0)
    found = selected([{"a": (SGD,)}, {"a": (other,)}], stopping, DELTA).epsilon
    assert found >= max(selected([{"a": (one,)}], stopping, DELTA).epsilon for one in (SGD, other))
    curve = np.maximum(renyi([SGD]), renyi([other]))
    assert found == pytest.approx(rdp.compute_epsilon(ORDERS, stopping.best_of(curve), DELTA)[0])


def test_samplers_that_are_not_exact_cost_delta_as_often_as_they_are_expected_to_run() -> None:
    event = Skellam(l1=200.0, l2=20.0, variance=200.0**2, failure=1e-12)
    exact = msgspec.structs.replace(event, failure=0.0)
    stopping = RandomStopping("geometric", 10.0)
    found = selected([{"a": (Charge(event, 5),)}], stopping, DELTA).epsilon
    assert found == pytest.approx(selected([{"a": (Charge(exact, 5),)}], stopping, 0.99 * DELTA).epsilon)
    coarse = msgspec.structs.replace(event, failure=1e-8)
    assert math.isinf(selected([{"a": (Charge(coarse, 5),)}], stopping, DELTA).epsilon)
    assert math.isinf(composed([{"a": (Charge(coarse, 5),)}], DELTA).epsilon)


def probability(stopping: RandomStopping, k: int) -> float:
    mean = stopping.mean
    match stopping.distribution:
        case "geometric":
            return float(stats.geom.pmf(k, 1 / mean))
        case "poisson":
            return float(stats.poisson.pmf(k, mean))
        case "logarithmic":
            gamma = min(np.linspace(1e-3, 0.5, 100_000), key=lambda g: abs((1 / g - 1) / math.log(1 / g) - mean))
            return float(stats.logser.pmf(k, 1 - gamma))


@pytest.mark.parametrize("distribution", SHAPES)
def test_numbers_of_trials_follow_their_distribution(distribution: Distribution) -> None:
    # 20,000 draws: a share is off by 6 of its deviations with a probability below 1e-8.
    stopping = RandomStopping(distribution, 6.0)
    counts = Counter(stopping.draw() for _ in range(20_000))
    for k in (1, 2, 5, 9):
        expected = probability(stopping, k)
        assert counts[k] / 20_000 == pytest.approx(expected, abs=6 * math.sqrt(expected / 20_000))
    assert (0 in counts) == (distribution == "poisson")


def test_charges_are_read_as_they_were_recorded_and_other_text_is_none() -> None:
    charges = (SGD, Charge(Gaussian(3.0), 2))
    assert set(decoded(spent(charges, DELTA).charges) or ()) == set(charges)
    assert decoded("[]") == ()
    for text in ("", "{", '[{"event": {"name": "gaussian", "noise_multiplier": -1}, "count": 1}]', "[1]"):
        assert decoded(text) is None
