"""Tree noise against trees written out node by node, and its cost against dp-accounting's."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
from dense_noise import matrix, stream
from dp_accounting import NeighboringRelation, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.privacy.events import Charge, Tree
from fedray.privacy.noise import TreeNoise

DELTA = 1e-5


def nodes_of_a_prefix(n_leaves: int) -> list[tuple[int, int]]:
    """(start, leaves) of the largest subtrees that make up the first leaves, from the left."""
    found, start = [], 0
    while start < n_leaves:
        size = 1
        while start % (2 * size) == 0 and start + 2 * size <= n_leaves:
            size *= 2
        found.append((start, size))
        start += size
    return found


@settings(deadline=None, max_examples=60)
@given(n_rounds=st.integers(1, 70), data=st.data())
def test_a_prefix_sum_has_the_noise_of_its_subtrees(n_rounds: int, data: st.DataObject) -> None:
    """Finished trees keep that of all their leaves' prefix; a node's noise is drawn when its last leaf is there."""
    restart_every = data.draw(st.integers(1, n_rounds))
    draws = np.random.default_rng(n_rounds).standard_normal((n_rounds, 2))
    found = np.cumsum(stream(TreeNoise(3.0, n_rounds, restart_every, 1), draws), axis=0)
    for rounds in range(1, n_rounds + 1):
        expected = np.zeros(2)
        for tree in range(0, rounds, restart_every):
            for start, size in nodes_of_a_prefix(min(restart_every, rounds - tree)):
                expected += 3.0 * draws[tree + start + size - 1]
        np.testing.assert_allclose(found[rounds - 1], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_leaves", [1, 2, 3, 4, 7, 8, 11, 16, 31, 32, 33])
def test_a_leaf_is_under_as_many_nodes_as_its_column_says(n_leaves: int) -> None:
    """Counted over the nodes of all prefixes; the squared norm in ``M^-1`` is that number."""
    nodes = {node for prefix in range(1, n_leaves + 1) for node in nodes_of_a_prefix(prefix)}
    counted = [sum(start <= leaf < start + size for start, size in nodes) for leaf in range(n_leaves)]
    inverse = np.linalg.inv(matrix(TreeNoise(1.0, n_leaves, n_leaves, 1), n_leaves))
    np.testing.assert_allclose((inverse**2).sum(axis=0), counted, rtol=0, atol=1e-10)
    assert max(counted) == counted[0] == len(f"{n_leaves:b}")


def test_a_tree_of_a_power_of_two_has_one_level_more_than_its_logarithm() -> None:
    for levels in range(6):
        n_leaves = 2**levels
        inverse = np.linalg.inv(matrix(TreeNoise(1.0, n_leaves, n_leaves, 1), n_leaves))
        assert (inverse**2).sum(axis=0).max() == pytest.approx(levels + 1, abs=1e-10)


@pytest.mark.parametrize(
    ("n_rounds", "restart_every", "most", "charges"),
    [
        (100, 100, 1, (Charge(Tree(4.0, 100), 1),)),
        (100, 25, 4, (Charge(Tree(4.0, 25), 4),)),
        (100, 30, 4, (Charge(Tree(4.0, 30), 3), Charge(Tree(4.0, 10), 1))),
        (100, 30, 3, (Charge(Tree(4.0, 30), 3),)),
        (100, 30, 1, (Charge(Tree(4.0, 30), 1),)),
    ],
)
def test_the_largest_trees_are_charged(
    n_rounds: int, restart_every: int, most: int, charges: tuple[Charge, ...]
) -> None:
    assert TreeNoise(4.0, n_rounds, restart_every, most).charges() == charges


@pytest.mark.parametrize(("n_rounds", "restart_every", "most"), [(128, 128, 1), (96, 16, 5), (100, 30, 4), (70, 9, 8)])
def test_trees_cost_what_dp_accounting_says(n_rounds: int, restart_every: int, most: int) -> None:
    """Beside it one Gaussian mechanism whose noise is a node's over the root of the nodes that are touched."""
    noise = TreeNoise(9.0, n_rounds, restart_every, most)
    trees = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    n_nodes = 0
    for charge in noise.charges():
        assert isinstance(charge.event, Tree)
        trees.compose(dp_accounting.SingleEpochTreeAggregationDpEvent(9.0, charge.event.n_steps), charge.count)
        n_nodes += charge.count * len(nodes_of_a_prefix(2 ** len(f"{charge.event.n_steps:b}") - 1))
    gaussian = rdp.RdpAccountant()
    gaussian.compose(dp_accounting.GaussianDpEvent(9.0 / n_nodes**0.5))
    assert trees.get_epsilon(DELTA) == pytest.approx(gaussian.get_epsilon(DELTA), rel=1e-12)


def test_a_finished_tree_of_a_power_of_two_leaves_one_nodes_noise() -> None:
    variances = TreeNoise(1.0, 64, 16, 4).prefix_variances(64)
    assert variances[[15, 31, 47, 63]].tolist() == [1, 2, 3, 4]
    assert variances[14] == 4
    assert TreeNoise(1.0, 60, 15, 4).prefix_variances(60)[59] == 16
