"""The graph of neighbours keeps what Bell et al. 2020 ask of it, by tails computed elsewhere."""

from __future__ import annotations

import math
import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_toys import MAY_LIE, OTHER_RUN, RUN
from scipy.stats import hypergeom

from fedray.protection.masked.graph import (
    CORRECTNESS_BITS,
    FULL_UP_TO,
    SECURITY_BITS,
    Graph,
    Rules,
    at_least,
    sparse,
)


def names_of(n: int) -> list[str]:
    return [f"o{number:05}" for number in range(n)]


def graph_of(n: int, rules: Rules | None = None, round: int = 1) -> Graph:
    return (rules or Rules()).graph(RUN, round, names_of(n))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), population=st.integers(1, 1000))
def test_tails_are_those_of_the_hypergeometric_distribution(data: st.DataObject, population: int) -> None:
    marked = data.draw(st.integers(0, population))
    draws = data.draw(st.integers(0, population))
    hits = data.draw(st.integers(0, draws + 1))
    expected = float(hypergeom.sf(hits - 1, population, marked, draws))
    assert at_least(hits, population, marked, draws) == pytest.approx(expected, rel=1e-6, abs=1e-250)


def _is_secure(n: int, degree: int, threshold: int, corrupt: float, dropouts: float) -> bool:
    bad, gone = math.ceil(corrupt * n), math.ceil(dropouts * n)
    too_many = n * hypergeom.sf(threshold - 1, n - 1, bad, degree)
    cut = n * (corrupt + dropouts) ** (degree // 2)
    too_few = n * hypergeom.cdf(threshold - 1, n - 1, n - 1 - gone, degree)
    return bool(max(too_many, cut) <= 2.0**-SECURITY_BITS and too_few <= 2.0**-CORRECTNESS_BITS)


CASES = [
    (n, corrupt, dropouts)
    for n in (51, 60, 100, 333, 1000)
    for corrupt, dropouts in ((0.2, 0.1), (0.1, 0.1), (0.05, 0.05), (0.1, 0.3), (0.0, 0.0), (0.33, 0.1), (0.49, 0.49))
]


@pytest.mark.parametrize(("n", "corrupt", "dropouts"), CASES)
def test_a_sparse_graph_is_safe_and_the_smallest_that_is(n: int, corrupt: float, dropouts: float) -> None:
    degree, threshold = sparse(n, corrupt, dropouts)
    smaller = range(2, degree if degree < n - 1 else n - 1, 2)
    if degree < n - 1:
        assert degree % 2 == 0
        assert _is_secure(n, degree, threshold, corrupt, dropouts)
    for other in list(smaller)[-6:]:
        majority = (other + 1) // 2 + 1
        assert not any(_is_secure(n, other, t, corrupt, dropouts) for t in range(majority, other + 1))


@pytest.mark.parametrize(
    ("n", "corrupt", "dropouts", "degree", "least_threshold"),
    [(100, 0.1, 0.1, 42, 11), (1000, 0.1, 0.1, 52, 28), (100, 0.2, 0.1, 54, 21), (1000, 0.2, 0.1, 74, 45)],
)
def test_the_degrees_of_the_paper(n: int, corrupt: float, dropouts: float, degree: int, least_threshold: int) -> None:
    """Those of shared/facts/crypto.md, Section 3; the threshold may be higher, since it is more than half here."""
    found = sparse(n, corrupt, dropouts)
    assert found == (degree, max(least_threshold, (degree + 1) // 2 + 1))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 49, 50])
def test_up_to_fifty_owners_everyone_is_everyones_neighbour(n: int) -> None:
    graph = graph_of(n)
    assert graph.degree == n - 1 <= FULL_UP_TO
    assert all(graph.neighbours(name) == tuple(other for other in graph.names if other != name) for name in graph.names)
    assert all(graph.holders(name) == graph.names for name in graph.names)


@pytest.mark.parametrize("n", [51, 52, 60, 61, 100, 101, 400])
@pytest.mark.parametrize("rules", [Rules(), Rules(corrupt=0.05, dropouts=0.05), MAY_LIE])
def test_neighbours_are_mutual_regular_and_connected(n: int, rules: Rules) -> None:
    graph = graph_of(n, rules)
    near = {name: graph.neighbours(name) for name in graph.names}
    for name, neighbours in near.items():
        assert len(set(neighbours)) == len(neighbours) == graph.degree
        assert name not in neighbours
        assert list(neighbours) == sorted(neighbours)
        assert all(name in near[other] for other in neighbours)
        assert graph.holders(name) == tuple(sorted((*neighbours, name)))
    reached, frontier = {graph.names[0]}, {graph.names[0]}
    while frontier:
        frontier = {other for name in frontier for other in near[name]} - reached
        reached |= frontier
    assert reached == set(graph.names)


def test_the_ring_stays_whole_where_fewer_than_half_a_neighbourhood_in_a_row_are_gone() -> None:
    graph = graph_of(100, Rules(corrupt=0.05, dropouts=0.05))
    order = list(graph._order)
    gone = set(order[: graph.degree // 2 - 1]) | set(order[40 : 40 + graph.degree // 2 - 1])
    left = [name for name in order if name not in gone]
    assert all(other in graph.neighbours(name) for name, other in pairwise([*left, left[0]]))


@pytest.mark.parametrize("rules", [Rules(), Rules(corrupt=0.05, dropouts=0.05), Rules(corrupt=0.0, dropouts=0.49)])
def test_the_threshold_is_more_than_half_of_the_holders(rules: Rules) -> None:
    """So that no two lists of survivors can both be signed by enough holders of one owner's shares."""
    for n in [*range(1, 130), 500, 1000]:
        graph = graph_of(n, rules)
        n_holders = len(graph.holders(graph.names[0]))
        assert n_holders == graph.degree + 1
        assert 2 * graph.threshold > n_holders >= graph.threshold


def test_the_threshold_is_more_than_two_thirds_where_the_server_may_lie() -> None:
    """Bonawitz et al. 2017, Section 6.2: 2 t > n + n_corrupt for fewer than a third of corrupt owners."""
    for n in [*range(1, 130), 999, 1000]:
        graph = graph_of(n, MAY_LIE)
        assert graph.degree == n - 1
        assert n >= graph.threshold > 2 * n / 3
        assert 2 * graph.threshold > n + (n - 1) // 3


def test_the_order_is_public_and_of_this_round_alone() -> None:
    names = names_of(60)
    graph = graph_of(60)
    assert sorted(graph._order) == names
    assert Rules().graph(RUN, 1, names[::-1])._order == graph._order
    orders = {
        Rules().graph(run, round, chosen)._order
        for run, round, chosen in ((RUN, 1, names), (RUN, 2, names), (OTHER_RUN, 1, names), (RUN, 1, names[1:]))
    }
    assert len(orders) == 4
    near = [set(Rules(corrupt=0.05, dropouts=0.05).graph(RUN, round, names).neighbours("o00000")) for round in range(9)]
    assert len({frozenset(one) for one in near}) == 9


def test_everyone_meets_everyone_over_rounds_alike() -> None:
    """No place on the ring is anyone's: over 400 rounds each pair are neighbours about as often as others are."""
    rules = Rules(corrupt=0.05, dropouts=0.05)
    counts = dict.fromkeys(names_of(60)[1:], 0)
    for _ in range(400):
        for name in rules.graph(os.urandom(16), 1, names_of(60)).neighbours("o00000"):
            counts[name] += 1
    share = 28 / 59
    spread = (400 * share * (1 - share)) ** 0.5
    assert max(abs(count - 400 * share) for count in counts.values()) < 6 * spread


def test_enough_counts_holders_only() -> None:
    graph = graph_of(60, Rules(corrupt=0.05, dropouts=0.05))
    name = graph.names[0]
    holders = graph.holders(name)
    strangers = set(graph.names) - set(holders)
    assert graph.is_enough(set(holders[: graph.threshold]), name)
    assert not graph.is_enough(set(holders[: graph.threshold - 1]) | strangers, name)
    assert not graph.is_enough(set(), name)
