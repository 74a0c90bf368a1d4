"""From an experiment to its plan: never beyond the budget and close below it, whoever adds the noise and whenever."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting import NeighboringRelation, pld, rdp
from privacy.owner_level_toys import N_VALUES, Pushing, experiment, federation, names

from fedray import bounding
from fedray.config import Experiment
from fedray.errors import ConfigError
from fedray.privacy.accounting import ORDERS, calibrate, spent
from fedray.privacy.costs import EachPart, EachRound
from fedray.privacy.events import Charge, FixedSizeGaussian, Gaussian
from fedray.privacy.owner_level import OwnerLevelMechanism
from fedray.selection import cohort_of_round, planned_rounds

DELTA, N_OWNERS, ROUNDS = 1e-3, 12, 8
CYCLIC = {"name": "cyclic", "size": 3}
POISSON = {"name": "poisson", "rate": 0.25}
FIXED = {"name": "fixed", "size": 3}

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all": ({"name": "owner"}, {}),
    "fixed": ({"name": "owner"}, {"cohort": FIXED}),
    "poisson": ({"name": "owner"}, {"cohort": POISSON}),
    "cyclic": ({"name": "owner"}, {"cohort": CYCLIC}),
    "tree": ({"name": "owner", "noise": "tree"}, {"cohort": CYCLIC}),
    "banded": ({"name": "owner", "noise": "banded"}, {"cohort": CYCLIC}),
    "distributed, all": ({"name": "distributed"}, {"protection": "masked"}),
    "distributed, fixed": ({"name": "distributed"}, {"protection": "masked", "cohort": FIXED}),
    "distributed, cyclic": ({"name": "distributed", "noise": "skellam"}, {"protection": "masked", "cohort": CYCLIC}),
    "local, all": ({"name": "local"}, {}),
    "local, cyclic": ({"name": "local", "noise": "skellam"}, {"cohort": CYCLIC}),
}


def planned(kind: str, **measure: float) -> Experiment:
    privacy, settings = KINDS[kind]
    return experiment({**privacy, **measure}, n_owners=N_OWNERS, rounds=ROUNDS, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_spends_its_budget_to_one_percent_and_never_more(kind: str) -> None:
    """Of the owner that takes part most often, as the server reports it; before, less or the same."""
    budget = 12.0 if kind.startswith("local") else 3.0
    asked = planned(kind, epsilon=budget)
    plan, worst = bounding.owner_plan(asked, N_VALUES), bounding.worst_spent(asked, N_VALUES)
    whole = worst(ROUNDS, plan.most_parts).epsilon
    assert 0.99 * budget < whole <= budget
    cohorts = [set(cohort_of_round(asked.cohort, names(N_OWNERS), asked.seed, n + 1)) for n in range(ROUNDS)]
    for name in names(N_OWNERS):
        n_parts = sum(name in cohort for cohort in cohorts)
        assert plan.has_secret_cohorts or n_parts <= plan.most_parts
        assert worst(ROUNDS, min(n_parts, plan.most_parts)).epsilon <= whole


def test_a_weaker_noise_would_pass_the_budget() -> None:
    """The calibration is tight: one percent less noise spends more than the budget."""
    for kind in ("all", "poisson", "tree", "banded", "distributed, all"):
        z = bounding.owner_plan(planned(kind, epsilon=3.0), N_VALUES).noise_multiplier
        worst = bounding.worst_spent(planned(kind, noise_multiplier=0.99 * z), N_VALUES)
        assert worst(ROUNDS, ROUNDS).epsilon > 3.0


Z = 2.5
GAUSSIAN = dp_accounting.GaussianDpEvent
DIRECT = {
    "all": (GAUSSIAN(Z), ROUNDS),
    "poisson": (dp_accounting.PoissonSampledDpEvent(0.25, GAUSSIAN(Z)), ROUNDS),
    "cyclic": (GAUSSIAN(Z), 2),
    "tree": (GAUSSIAN(Z / math.sqrt(3)), 2),
    "banded": (GAUSSIAN(Z / math.sqrt(2)), 1),
}


@pytest.mark.parametrize("kind", DIRECT)
def test_what_is_reported_is_what_dp_accounting_says(kind: str) -> None:
    """12 owners, 3 a round in turn, are in 2 of 8 rounds, 4 apart: two trees of four leaves, three nodes each."""
    asked = planned(kind, noise_multiplier=Z)
    plan = bounding.owner_plan(asked, N_VALUES)
    found = bounding.worst_spent(asked, N_VALUES)(ROUNDS, plan.most_parts)
    event, count = DIRECT[kind]
    by_pld = pld.PLDAccountant(value_discretization_interval=1e-4).compose(event, count).get_epsilon(DELTA)
    assert found.epsilon == pytest.approx(by_pld, rel=2e-3)
    assert plan.noise is not None
    assert plan.noise.noise_multiplier == Z  # type: ignore[attr-defined]  # no part of the protocol


@pytest.mark.parametrize(("kind", "n_honest"), [("distributed, all", 8), ("local, all", 1)])
def test_discrete_gaussians_cost_what_zcdp_says_of_their_shares(kind: str, n_honest: int) -> None:
    """Of 12 owners 1 may drop out and 3 may be corrupt: 8 shares of z / sqrt(8). 16 bits round by up to 5 %."""
    asked = planned(kind, noise_multiplier=Z)
    plan, encoding = bounding.owner_plan(asked, N_VALUES), bounding.encoding_of(asked, N_VALUES)
    assert plan.n_honest == n_honest
    assert plan.noise is None
    assert encoding.granularity * encoding.noise.sigma == pytest.approx(Z / math.sqrt(n_honest))
    found = bounding.worst_spent(asked, N_VALUES)(ROUNDS, ROUNDS)
    for longer, holds in ((1.0, found.epsilon.__ge__), (1.06, found.epsilon.__le__)):
        exact = dp_accounting.ZCDpEvent((longer / Z) ** 2 / 2)
        accountant = rdp.RdpAccountant(ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE).compose(exact, ROUNDS)
        assert holds(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(
    ("n_owners", "size", "rounds", "way"), [(200, 4, 50, EachRound), (12, 3, 8, EachPart), (12, 12, 8, EachPart)]
)
def test_cohorts_of_fixed_size_are_accounted_for_the_way_that_needs_less_noise(
    n_owners: int, size: int, rounds: int, way: type
) -> None:
    cohort = {"name": "fixed", "size": size}
    asked = experiment({"name": "owner", "epsilon": 3.0}, n_owners=n_owners, rounds=rounds, cohort=cohort)
    plan = bounding.owner_plan(asked, N_VALUES)
    most = max(planned_rounds(asked.cohort, names(n_owners), asked.seed, rounds).values())
    by_parts = calibrate(lambda z: [Charge(Gaussian(z), most)], 3.0, DELTA)
    assert plan.noise_multiplier <= by_parts
    assert isinstance(plan.cost, way)
    assert plan.has_secret_cohorts == (way is EachRound)
    if way is EachPart:
        by_rounds = [Charge(FixedSizeGaussian(n_owners, size, plan.noise_multiplier), rounds)]
        assert plan.noise_multiplier == by_parts
        assert spent(by_rounds, DELTA).epsilon > 3.0
    else:
        assert plan.noise_multiplier < by_parts / 1.01


SECRET = {"poisson": {"name": "poisson", "rate": 0.05}, "fixed": {"name": "fixed", "size": 4}}


@pytest.mark.parametrize("name", SECRET)
def test_where_being_drawn_must_stay_secret_the_seed_does_not_tell_who_is(name: str) -> None:
    settings: dict[str, Any] = {"n_owners": 200, "rounds": 50, "cohort": SECRET[name]}
    asked = experiment({"name": "owner", "noise_multiplier": 1.6}, **settings)
    assert bounding.owner_plan(asked, N_VALUES).has_secret_cohorts
    found = [bounding.cohort_seed(asked, N_VALUES) for _ in range(3)]
    assert len({*found, asked.seed}) == 4
    assert min(found) > 2**64, "drawn from 128 bits"
    cohorts = {cohort_of_round(asked.cohort, names(200), seed, 1) for seed in found}
    assert len(cohorts) == 3
    replayed = experiment({"name": "owner", "noise_multiplier": 1.6, "unsafe_replay_seed": 9}, **settings)
    assert bounding.cohort_seed(replayed, N_VALUES) == 9


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"poisson"}))
def test_cohorts_follow_the_seed_where_nothing_is_claimed_for_their_secrecy(kind: str) -> None:
    asked = planned(kind, noise_multiplier=1.5)
    assert not bounding.owner_plan(asked, N_VALUES).has_secret_cohorts
    assert bounding.cohort_seed(asked, N_VALUES) == asked.seed


def test_a_sample_that_the_seed_leaves_empty_is_planned_all_the_same() -> None:
    """Under secret cohorts the seed draws nobody; what it would draw is nothing to the plan."""
    asked = experiment(
        {"name": "owner", "noise_multiplier": 1.0}, rounds=2, cohort={"name": "poisson", "rate": 1e-6}, n_owners=3
    )
    assert not planned_rounds(asked.cohort, names(3), asked.seed, 2)
    plan = bounding.owner_plan(asked, N_VALUES)
    assert plan.most_parts == 2
    assert plan.n_expected == pytest.approx(3e-6)


@pytest.mark.parametrize(("delta", "is_refused"), [(1 / 12, True), (0.5, True), (0.999 / 12, False)])
@pytest.mark.parametrize("kind", ["all", "distributed, all", "local, all"])
def test_a_delta_at_which_publishing_one_owner_would_do_is_refused(kind: str, delta: float, is_refused: bool) -> None:
    asked = planned(kind, noise_multiplier=2.0, delta=delta)
    if not is_refused:
        bounding.owner_plan(asked, N_VALUES)
        return
    with pytest.raises(ConfigError, match=r"privacy.delta .* with 12 owners"):
        bounding.owner_plan(asked, N_VALUES)


@pytest.mark.parametrize(("noise", "setting"), [("tree", "restart_every"), ("banded", "bands")])
def test_noise_that_reaches_over_an_owners_next_part_is_refused(noise: str, setting: str) -> None:
    """12 owners, 3 a round: owners are back after 4 rounds."""

    def asked(reach: int) -> Experiment:
        privacy = {"name": "owner", "noise_multiplier": 1.0, "noise": {"name": noise, setting: reach}}
        return experiment(privacy, n_owners=N_OWNERS, rounds=ROUNDS, cohort=CYCLIC)

    bounding.owner_plan(asked(4), N_VALUES)
    with pytest.raises(ConfigError, match=rf"privacy.noise.{setting} 5, but owners take part again after 4 rounds"):
        bounding.owner_plan(asked(5), N_VALUES)


@pytest.mark.parametrize(("n_owners", "size"), [(12, 3), (7, 3), (5, 5), (9, 4)])
@pytest.mark.parametrize("noise", ["tree", "banded"])
def test_owners_in_turn_keep_the_distance_that_the_noise_needs(n_owners: int, size: int, noise: str) -> None:
    asked = experiment(
        {"name": "owner", "noise_multiplier": 1.0, "noise": noise},
        n_owners=n_owners,
        rounds=17,
        cohort={"name": "cyclic", "size": size},
    )
    plan = bounding.owner_plan(asked, N_VALUES)
    assert plan.noise is not None
    assert plan.cost.separation >= plan.noise.separation  # type: ignore[union-attr]  # it is WholeRun
    for name in names(n_owners):
        rounds = [n for n in range(1, 18) if name in cohort_of_round(asked.cohort, names(n_owners), asked.seed, n)]
        assert len(rounds) <= plan.most_parts
        gaps = [later - earlier for earlier, later in pairwise(rounds)]
        assert min(gaps) >= plan.cost.separation  # type: ignore[union-attr]


def test_weights_count_up_to_their_bound_and_the_denominator_is_what_is_expected(tmp_path: Path) -> None:
    asked = experiment(
        {"name": "owner", "noise_multiplier": 1.0, "weight_bound": 100},
        Pushing(weight=10**6),
        strategy={"name": "fedavg", "weighting": "examples"},
        cohort={"name": "poisson", "rate": 0.5},
    )
    found = federation(asked, tmp_path)
    rows = found.cohort.population.n_train.tolist()
    assert min(rows) < 100 < max(rows), "the bound holds for some"
    assert found.weight_bound == bounding.weight_bound(asked) == 100
    assert isinstance(found.mechanism, OwnerLevelMechanism)
    assert found.mechanism.weight_bound == 100
    assert found.mechanism.expected_weight == pytest.approx(0.5 * sum(min(n, 100) for n in rows))


def test_of_the_noise_in_a_sum_at_its_worst_what_was_accounted_for_is_left() -> None:
    """At the tolerated dropouts, and without the noise that corrupt owners know; over several sizes and shares."""
    for n_owners, dropouts, corrupt in ((6, 0.0, 0.0), (10, 0.2, 0.2), (12, 0.1, 0.2), (40, 0.25, 0.4), (7, 0.3, 0.45)):
        asked = experiment(
            {"name": "distributed", "noise_multiplier": Z},
            n_owners=n_owners,
            protection={"name": "masked", "dropouts": dropouts, "corrupt": corrupt},
        )
        plan, encoding = bounding.owner_plan(asked, N_VALUES), bounding.encoding_of(asked, N_VALUES)
        n_left = bounding.fewest_survivors(asked, n_owners)
        n_secret = n_left - math.ceil(corrupt * n_owners)
        assert n_owners - n_left <= dropouts * n_owners
        assert plan.n_honest == n_secret
        assert n_secret * encoding.noise_variance >= Z**2 * (1 - 1e-9)


def test_a_server_that_picks_the_cohort_cannot_fill_it_with_owners_that_tell_it_their_noise() -> None:
    """Of 30 owners 6 are corrupt. The server puts all of them into a cohort of 10, of which 9 must be left."""
    keys = {name: f"{place:064x}" for place, name in enumerate(names(30))}
    asked = experiment(
        {"name": "distributed", "noise_multiplier": Z},
        n_owners=30,
        cohort={"name": "fixed", "size": 10},
        protection={"name": "masked", "server": "may_lie", "identities": keys, "corrupt": 0.2},
    )
    n_left = max(bounding.fewest_survivors(asked, 30), math.ceil(0.2 * 30) + 2)
    assert bounding.owner_plan(asked, N_VALUES).n_honest <= n_left - math.ceil(0.2 * 30)


def test_what_rides_beside_an_update_is_in_the_plan_from_the_start() -> None:
    asked = experiment({"name": "local", "noise_multiplier": Z, "clipping": "adaptive"})
    parts = bounding.parts_of(asked, 100)
    assert [name for name, _ in parts.statistics] == ["unclipped", "accuracy"]
    assert parts.length == 102 == bounding.encoding_of(asked, 100).n_values
    assert dict(parts.statistics)["accuracy"] == 50.0
    assert dict(parts.statistics)["unclipped"] == pytest.approx(Z * math.sqrt(2)), "more than a twentieth of 6 owners"


def test_a_replay_seed_gives_the_same_noise_and_none_gives_noise_of_its_own() -> None:
    assert (bounding.secret_normals(3, "server")(4) == bounding.secret_normals(3, "server")(4)).all()
    assert not (bounding.secret_normals(3, "server")(4) == bounding.secret_normals(3, "evaluate", "ann")(4)).any()
    assert not (bounding.secret_normals(None, "server")(4) == bounding.secret_normals(None, "server")(4)).any()
