"""Cohorts and stragglers are drawn as they are described, and are known before the run."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import plan

from fedray.config.learning import Cyclic, EveryOwner, FixedSize, PoissonSampling, Selection, Stragglers
from fedray.selection import assignments, cohort_of_round, planned_rounds

OWNERS = tuple("edcba")
SELECTIONS = st.one_of(
    st.just(EveryOwner()),
    st.integers(1, 5).map(lambda size: FixedSize(size=size)),
    st.floats(0.01, 1.0).map(lambda rate: PoissonSampling(rate=rate)),
    st.integers(1, 5).map(lambda size: Cyclic(size=size)),
)


@settings(deadline=None, max_examples=50)
@given(selection=SELECTIONS, seed=st.integers(0, 100), rounds=st.integers(1, 12))
def test_the_plan_of_a_run_counts_its_cohorts(selection: Selection, seed: int, rounds: int) -> None:
    planned = planned_rounds(selection, OWNERS, seed, rounds)
    seen = Counter(name for r in range(rounds) for name in cohort_of_round(selection, OWNERS, seed, r + 1))
    assert planned == seen


@settings(deadline=None, max_examples=50)
@given(selection=SELECTIONS, seed=st.integers(0, 100), order=st.permutations(OWNERS))
def test_a_cohort_does_not_depend_on_the_order_of_owners(selection: Selection, seed: int, order: list[str]) -> None:
    cohort = cohort_of_round(selection, OWNERS, seed, 3)
    assert cohort == cohort_of_round(selection, order, seed, 3)
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(OWNERS)
    assert all(type(name) is str for name in cohort)


def test_everyone_takes_part_by_default() -> None:
    assert cohort_of_round(EveryOwner(), OWNERS, 0, 1) == ("a", "b", "c", "d", "e")
    assert cohort_of_round(PoissonSampling(rate=1.0), OWNERS, 0, 1) == ("a", "b", "c", "d", "e")


def test_cohorts_of_a_fixed_size_are_uniform_over_all_subsets() -> None:
    drawn = Counter(cohort_of_round(FixedSize(size=2), OWNERS, 1, round) for round in range(1, 2001))
    subsets = list(combinations(sorted(OWNERS), 2))
    assert set(drawn) <= set(subsets)
    assert stats.chisquare([drawn[subset] for subset in subsets]).pvalue > 0.001


def test_poisson_owners_come_independently_at_their_rate() -> None:
    rate, rounds = 0.3, 2000
    cohorts = [cohort_of_round(PoissonSampling(rate=rate), OWNERS, 2, round) for round in range(1, rounds + 1)]
    for name in OWNERS:
        assert stats.binomtest(sum(name in cohort for cohort in cohorts), rounds, rate).pvalue > 0.001
    sizes = Counter(len(cohort) for cohort in cohorts)
    expected = [rounds * stats.binom.pmf(size, 5, rate) for size in range(5)]
    found = [sizes[size] for size in range(4)] + [sizes[4] + sizes[5]]
    expected[-1] += rounds * stats.binom.pmf(5, 5, rate)
    assert stats.chisquare(found, expected).pvalue > 0.001
    assert sizes[0] > 0


def test_seeds_and_rounds_give_other_cohorts() -> None:
    draws = {
        tuple(cohort_of_round(FixedSize(size=2), OWNERS, seed, round) for round in range(1, 20)) for seed in range(5)
    }
    assert len(draws) == 5
    assert all(len(set(draw)) > 3 for draw in draws)


# In turn --------------------------------------------------------------------------------------------------------------


@st.composite
def _circles(draw: st.DrawFn) -> tuple[list[str], int]:
    """Owners, and how many of them a round has."""
    owners = [f"o{i}" for i in range(draw(st.integers(1, 23)))]
    return owners, draw(st.integers(1, len(owners)))


@settings(deadline=None)
@given(circle=_circles(), seed=st.integers(0, 100), rounds=st.integers(1, 60))
def test_in_turn_every_owner_takes_part_equally_often_up_to_one(
    circle: tuple[list[str], int], seed: int, rounds: int
) -> None:
    owners, size = circle
    cohorts = [cohort_of_round(Cyclic(size=size), owners, seed, round) for round in range(1, rounds + 1)]
    assert all(len(cohort) == len(set(cohort)) == size for cohort in cohorts)
    planned = planned_rounds(Cyclic(size=size), owners, seed, rounds)
    assert max(planned.values()) - min(planned[name] for name in owners) <= 1
    assert max(planned.values()) == -(-rounds * size // len(owners)), "what noise over the run is made for"


@settings(deadline=None)
@given(circle=_circles(), seed=st.integers(0, 100))
def test_in_turn_an_owner_rests_for_as_many_rounds_as_there_are_whole_cohorts(
    circle: tuple[list[str], int], seed: int
) -> None:
    """Correlated noise covers parts that are this far apart; never nearer, and as near where it must."""
    owners, size = circle
    cohorts = [cohort_of_round(Cyclic(size=size), owners, seed, round) for round in range(1, 4 * len(owners))]
    taken = {name: [round for round, cohort in enumerate(cohorts) if name in cohort] for name in owners}
    distances = {later - earlier for rounds in taken.values() for earlier, later in pairwise(rounds)}
    assert min(distances) == len(owners) // size
    assert max(distances) == -(-len(owners) // size)


def test_in_turn_a_round_is_a_function_of_seed_and_round() -> None:
    owners = [f"o{i}" for i in range(12)]
    drawn = {seed: [cohort_of_round(Cyclic(size=3), owners, seed, round) for round in range(1, 9)] for seed in range(9)}
    for seed, cohorts in drawn.items():
        backwards = [cohort_of_round(Cyclic(size=3), owners[::-1], seed, round) for round in range(8, 0, -1)]
        assert cohorts == backwards[::-1]
        assert cohorts[:4] == cohorts[4:]
    assert len({tuple(cohorts) for cohorts in drawn.values()}) == 9


@pytest.mark.parametrize(("drop", "n_fast"), [(0.0, 10), (0.1, 9), (0.5, 5), (0.9, 1)])
def test_as_many_are_slow_as_in_the_code_of_fedprox(drop: float, n_fast: int) -> None:
    """10 a round; trainers/fedprox.py keeps round(clients_per_round * (1 - drop_percent)) active."""
    cohort = [f"o{i}" for i in range(10)]
    for round in range(1, 30):
        asked = assignments(plan(20, round=round), cohort, Stragglers(fraction=drop), 1.5, 0)
        assert [one.owner for one in asked] == cohort
        assert sum(not one.is_partial for one in asked) == n_fast
        assert all(one.deadline_s == 1.5 for one in asked)
        assert all(1 <= one.work.amount < 20 and one.work.unit == "epochs" for one in asked if one.is_partial)


def test_slow_owners_manage_any_amount_short_of_all_alike() -> None:
    cohort = [f"o{i}" for i in range(10)]
    slow: Counter[int] = Counter()
    who: Counter[str] = Counter()
    for round in range(1, 301):
        for one in assignments(plan(5, "steps", round=round), cohort, Stragglers(fraction=0.9), None, 4):
            if one.is_partial:
                slow[one.work.amount] += 1
                who[one.owner] += 1
    assert sorted(slow) == [1, 2, 3, 4]
    assert stats.chisquare(list(slow.values())).pvalue > 0.001
    assert stats.chisquare(list(who.values())).pvalue > 0.001
    assert sum(slow.values()) == 300 * 9
