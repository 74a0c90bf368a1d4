"""Both halves: what one owner can move, the noise that hides it, and a state that goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from privacy.owner_level_toys import experiment
from scipy import stats

from fedray import protecting
from fedray.errors import UpdateRefused
from fedray.federation import ServerState
from fedray.privacy.account import Account
from fedray.privacy.clipping import Constant, QuantileTracking
from fedray.privacy.costs import EachPart
from fedray.privacy.events import Gaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile
from fedray.privacy.noise import BandedNoise, Draw, Independent, Noise, TreeNoise
from fedray.privacy.owner_level import BoundedContribution, OwnerLevelMechanism
from fedray.privacy.parts import UNCLIPPED, Parts
from fedray.privacy.plain_mean import PlainMean
from fedray.protection.fixed_point import FixedPoint
from fedray.protocols import State
from fedray.states import load_state, save_state
from fedray.values import Assignment, Released, RoundPlan, Total, Update, Vector, Work

PLAN = RoundPlan(1, Work(1, "epochs"), 0.0, False, "uniform")


def mechanism_of(
    parts: Parts, noise: Noise | None = None, draw: Draw = np.zeros, rounding: float = 0.0, expected: float = 4.0
) -> OwnerLevelMechanism:
    return OwnerLevelMechanism(parts, 2.0, Constant(), noise, draw, rounding, 1, expected)


def released(mechanism: OwnerLevelMechanism, state: State, total: Total | None) -> tuple[State, Released]:
    after, found = mechanism.release(state, mechanism.plan(state, PLAN), total)
    assert found is not None
    return after, found


def summed(
    encoding: FixedPoint, vectors: Mapping[str, Vector], weights: Mapping[str, int], bound: int, seed: int
) -> Total:
    """What a protection opens: encoded one by one, added in the ring, decoded."""
    ring = np.zeros(encoding.length, encoding.ring)
    for owner, vector in vectors.items():
        asked = Assignment(owner, PLAN, PLAN.work, None, bound)
        ring += encoding.encode(Update(vector, weights[owner], 1, True), asked, seed)
    return encoding.decode(encoding.signed(ring), bound)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    n_owners=st.integers(1, 5),
    n_values=st.sampled_from([1, 3, 60]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    precision=st.sampled_from([1e-5, 1e-2, 0.3]),
    bound=st.sampled_from([1, 7, 64]),
)
def test_one_owner_moves_the_release_by_no_more_than_the_clip_over_the_expected_weight(
    seed: int, n_owners: int, n_values: int, scale: float, precision: float, bound: int
) -> None:
    """Through packing, stochastic rounding and the ring; the neighbour has zeros in the owner's place."""
    draw = np.random.default_rng(seed)
    parts = Parts(n_values, 1.0, (("a", 2.0),))
    encoding = FixedPoint(parts.length, n_owners, 1.0, precision)
    rounding = encoding.step * math.sqrt(parts.length)
    vectors = {
        f"{place}": parts.pack(scale * draw.standard_normal(n_values).astype(np.float32), 2.0, {"a": draw.random()})
        for place in range(n_owners)
    }
    weights = {owner: int(draw.integers(1, bound + 1)) for owner in vectors}
    neighbour = {**vectors, "0": np.zeros(parts.length, np.float32)}
    totals = [summed(encoding, found, weights, bound, seed) for found in (vectors, neighbour)]
    moved = np.linalg.norm(totals[0].weighted_sum - totals[1].weighted_sum) / bound
    assert moved <= 1 + rounding
    mechanism = replace(mechanism_of(parts, expected=9.0), weight_bound=bound)
    means = [released(mechanism, mechanism.init(), total)[1].mean for total in totals]
    share = math.sqrt(1 - 0.25 * 1.0**2 / 2.0**2)
    assert np.linalg.norm(means[0] - means[1]) <= 2.0 * bound / 9.0 * (1 + rounding / share) * (1 + 1e-5)


def test_rounding_alone_can_lengthen_a_vector_and_the_margin_covers_it() -> None:
    """A coarse step: without a margin the sensitivity would be 1, and this vector is longer."""
    parts = Parts(400, 1.0)
    encoding = FixedPoint(400, 1, 1.0, 2.0**-4)
    vector = parts.pack(np.ones(400, np.float32), 1.0, {})
    norms = [np.linalg.norm(summed(encoding, {"a": vector}, {"a": 1}, 1, seed).weighted_sum) for seed in range(20)]
    assert min(norms) > 1.05
    assert max(norms) < 1 + encoding.step * math.sqrt(400)


@pytest.mark.parametrize("protection", ["plain", "masked", "ckks"])
def test_the_margin_for_rounding_is_one_step_in_every_value_of_what_is_encoded(protection: str) -> None:
    asked = experiment(
        {"name": "owner", "noise_multiplier": 1.0, "clipping": "adaptive"},
        protection={"name": protection, "precision": 1e-3},
    )
    encoding = protecting.fixed_point_of(asked, 98)
    assert encoding.n_values == 100, "two statistics"
    assert encoding.step == 2.0**-10
    assert protecting.rounding_of(asked, 98) == pytest.approx(10 * 2.0**-10)


@pytest.mark.parametrize(("rounding", "bound"), [(0.0, 1), (0.5, 1), (0.1, 40)])
def test_the_noise_on_the_mean_has_the_deviation_that_is_paid_for(rounding: float, bound: int) -> None:
    z, n_values, n_rounds, expected = 1.5, 4_000, 3, 8.0 * bound
    parts = Parts(n_values, z)
    draw = np.random.default_rng(1).standard_normal
    mechanism = replace(mechanism_of(parts, Independent(z, n_rounds, 1), draw, rounding, expected), weight_bound=bound)
    state, seen = mechanism.init(), []
    for _ in range(n_rounds):
        state, found = released(mechanism, state, Total(np.full(n_values, 3.0 * bound), 5 * bound))
        seen.append(found.mean - 2.0 * 3.0 / 8.0)
    deviation = 2.0 / 8.0 * z * (1 + rounding)
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], n_rounds * n_values)
    assert low < (np.concatenate(seen) ** 2).sum() / deviation**2 < high
    assert abs(np.corrcoef(seen[0], seen[1])[0, 1]) < 6 / math.sqrt(n_values)


def test_the_sum_is_divided_by_what_is_expected_and_never_by_what_came() -> None:
    mechanism = mechanism_of(Parts(3, 1.0), expected=4.0)
    ones = np.ones(3)
    for weight in (1, 2, 400):
        _, found = released(mechanism, mechanism.init(), Total(ones, weight))
        np.testing.assert_allclose(found.mean, 2.0 * ones / 4.0, rtol=1e-5)


NOISES: dict[str, Noise] = {
    "independent": Independent(1.5, 6, 6),
    "tree": TreeNoise(1.5, 6, 4, 1),
    "banded": BandedNoise(1.5, 6, 3, 1),
}


def told(draws: NDArray[np.float64]) -> Draw:
    """Gives these rows, one after the other."""
    rows: Iterator[NDArray[np.float64]] = iter(draws)
    return lambda n: next(rows)[:n].copy()


@pytest.mark.parametrize("name", NOISES)
def test_a_round_without_a_sum_releases_its_noise_all_the_same(name: str) -> None:
    """A model that stands still would tell that nobody was there; correlated noise must go on in step."""
    noise, parts, draws = NOISES[name], Parts(4, 1.5), np.random.default_rng(0).standard_normal((6, 4))
    mechanism = mechanism_of(parts, noise, told(draws))
    state, alone, expected = mechanism.init(), noise.init(4), told(draws)
    for round in range(1, 7):
        total = None if round in (2, 3, 6) else Total(np.full(4, 0.5), 2)
        state, found = released(mechanism, state, total)
        alone, drawn = noise.next(alone, expected)
        summed_up = (0.0 if total is None else 0.5) + drawn
        np.testing.assert_allclose(found.mean, 2.0 * summed_up / 4.0, rtol=1e-5)


@pytest.mark.parametrize("name", NOISES)
def test_a_run_goes_on_from_its_saved_state_as_though_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    """Noise that was drawn is in the state, noise to come is drawn anew: nothing is used twice."""
    parts, draws = Parts(4, 1.5, ((UNCLIPPED, 3.0),)), np.random.default_rng(0).standard_normal((6, 5))
    totals = [Total(row, 2) for row in np.random.default_rng(1).standard_normal((6, 5))]
    whole = replace(mechanism_of(parts, NOISES[name], told(draws)), clipping=QuantileTracking(0.5, 0.2))
    state, through = whole.init(), []
    for total in totals:
        state, found = released(whole, state, total)
        through.append(found.mean)

    halves = [replace(whole, draw=told(draws[:3])), replace(whole, draw=told(draws[3:]))]
    state = whole.init()
    for mechanism, some in zip(halves, (totals[:3], totals[3:]), strict=True):
        for total in some:
            state, found = released(mechanism, state, total)
            np.testing.assert_array_equal(found.mean, through.pop(0))
        save_state(tmp_path / "state", ServerState(3, np.zeros(1, np.float32), {}, state))
        state = load_state(tmp_path / "state").mechanism


@pytest.mark.parametrize("name", ["tree", "banded"])
def test_a_state_that_holds_past_noise_is_for_its_user_alone(name: str, tmp_path: Path) -> None:
    mechanism = mechanism_of(Parts(4, 1.5), NOISES[name], np.random.default_rng(0).standard_normal)
    state, _ = released(mechanism, mechanism.init(), None)
    assert any(array.any() for key, array in state.items() if key.startswith("noise."))
    save_state(tmp_path / "state", ServerState(1, np.zeros(1, np.float32), {}, state))
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_where_owners_add_the_noise_the_server_adds_none_and_releases_nothing_without_a_sum() -> None:
    mechanism = mechanism_of(Parts(3, 1.0), None, draw=told(np.empty((0, 3))))
    state = mechanism.init()
    assert set(state) == {"clip"}
    assert mechanism.release(state, mechanism.plan(state, PLAN), None) == (state, None)
    _, found = released(mechanism, state, Total(np.array([1.0, -2.0, 0.5]), 2))
    np.testing.assert_allclose(found.mean, [0.5, -1.0, 0.25], rtol=1e-5)


def test_the_clip_follows_the_noised_share_which_is_no_metric() -> None:
    """Three of the four expected owners were within the clip, and noise was told beforehand."""
    parts = Parts(2, 1.0, ((UNCLIPPED, 2.0), ("accuracy", 2.0)))
    draws = np.array([[0.0, 0.0, 0.3, -0.1]])
    noised = mechanism_of(parts, Independent(1.0, 1, 1), told(draws))
    mechanism = replace(noised, clipping=QuantileTracking(0.5, 0.2))
    packed = [parts.pack(np.zeros(2, np.float32), 2.0, {UNCLIPPED: x, "accuracy": 0.75}) for x in (1, 1, 1, 0)]
    state, found = released(mechanism, mechanism.init(), Total(np.sum(packed, axis=0, dtype=np.float64), 4))
    share = 0.75 + 2.0 * 0.3 / 4
    assert mechanism.plan(state, PLAN).clip == pytest.approx(2.0 * math.exp(-0.2 * (share - 0.5)), rel=1e-5)
    assert found.metrics == pytest.approx({"accuracy": 0.75 - 2.0 * 0.1 / 4}, rel=1e-5)


def test_noised_statistics_are_right_in_the_mean_also_under_poisson_samples() -> None:
    """Each of ten owners is there with probability 0.4; who is not counts for nothing, and the mean is of those
    expected. 3,000 rounds; the bound is six deviations."""
    truth, n_rounds, sigma = np.linspace(0.1, 0.9, 10) ** 2, 3_000, 4.0
    parts = Parts(1, 1.0, (("accuracy", sigma),))
    rng = np.random.default_rng(3)
    mechanism = mechanism_of(parts, Independent(1.0, n_rounds, n_rounds), rng.standard_normal, expected=4.0)
    vectors = np.array([parts.pack(np.zeros(1, np.float32), 2.0, {"accuracy": one}) for one in truth], np.float64)
    state, found = mechanism.init(), []
    for _ in range(n_rounds):
        there = rng.random(10) < 0.4
        total = Total(vectors[there].sum(axis=0), int(there.sum())) if there.any() else None
        state, release = released(mechanism, state, total)
        found.append(release.metrics["accuracy"])
    centred = truth - 0.5
    deviation = math.sqrt(sigma**2 + 0.24 * (centred**2).sum()) / 4.0
    assert abs(np.mean(found) - truth.mean()) < 6 * deviation / math.sqrt(n_rounds)
    assert np.std(found) == pytest.approx(deviation, rel=0.1)


def contribution_of(folder: Path, parts: Parts, weight_bound: int = 1) -> BoundedContribution:
    account = Account(Ledger(LedgerFile(folder / "ledger"), "ann"), "run", "trial", "owner", 1e-5, None)
    return BoundedContribution(parts, EachPart(Gaussian(2.0)), account, weight_bound)


def unasked() -> Mapping[str, float]:
    raise AssertionError("nothing rides along that held-out rows are needed for")


def test_an_owner_says_whether_its_update_was_within_the_clip(tmp_path: Path) -> None:
    parts = Parts(2, 1.0, ((UNCLIPPED, 2.0),))
    contribution, plan = contribution_of(tmp_path, parts), replace(PLAN, clip=5.0)
    for values, expected in (((3.0, 4.0), 1.0), ((3.0, 4.01), 0.0), ((0.0, 0.0), 1.0)):
        packed = contribution.bounded(Update(np.array(values, np.float32), 1, 1, True), plan, unasked)
        _, figures = parts.unpack(packed.delta.astype(np.float64), 5.0, 1.0)
        assert figures[UNCLIPPED] == pytest.approx(expected, abs=1e-6)


def test_figures_ride_along_and_those_of_an_owner_without_rows_count_as_a_half(tmp_path: Path) -> None:
    parts = Parts(2, 1.0, (("accuracy", 2.0), ("other", 2.0)))
    contribution, plan = contribution_of(tmp_path, parts), replace(PLAN, clip=5.0)
    update = Update(np.zeros(2, np.float32), 1, 1, True)
    for given_back, expected in (({"loss": 9.0, "accuracy": 0.9, "other": 3.0}, (0.9, 1.0)), ({}, (0.5, 0.5))):
        packed = contribution.bounded(update, plan, lambda given_back=given_back: given_back)
        _, figures = parts.unpack(packed.delta.astype(np.float64), 5.0, 1.0)
        assert tuple(figures.values()) == pytest.approx(expected, abs=1e-6)


def test_an_owners_weight_is_cut_to_its_bound(tmp_path: Path) -> None:
    contribution, plan = contribution_of(tmp_path, Parts(2, 1.0), weight_bound=7), replace(PLAN, clip=5.0)
    for weight, expected in ((3, 3), (7, 7), (5_000, 7)):
        update = Update(np.zeros(2, np.float32), weight, 1, True)
        assert contribution.bounded(update, plan, unasked).weight == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_never_reaches_the_sum(value: float, tmp_path: Path) -> None:
    update = Update(np.array([1.0, value], np.float32), 1, 1, True)
    with pytest.raises(UpdateRefused, match="non-finite"):
        contribution_of(tmp_path, Parts(2, 1.0)).bounded(update, replace(PLAN, clip=5.0), unasked)


def test_without_owner_level_privacy_the_mean_is_that_of_what_came() -> None:
    mechanism = PlainMean()
    assert mechanism.plan(mechanism.init(), PLAN).clip is None
    assert mechanism.release({}, PLAN, None) == ({}, None)
    _, found = mechanism.release({}, PLAN, Total(np.array([2.0, 4.0]), 4))
    assert found is not None
    np.testing.assert_array_equal(found.mean, [0.5, 1.0])
