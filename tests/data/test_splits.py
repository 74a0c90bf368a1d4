"""Splits deal every row exactly once, are pure functions of the seed, and skew what they say they skew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config.data import Dirichlet, Iid, LabelShards, Quantity
from fedray.data.kinds import SplitSection
from fedray.data.splits import deal
from fedray.errors import DataError

SPLITS = st.one_of(
    st.just(Iid()),
    st.builds(Dirichlet, alpha=st.floats(0.05, 100), min_rows=st.just(1)),
    st.builds(LabelShards, per_owner=st.integers(1, 3)),
    st.builds(Quantity, alpha=st.floats(0.2, 100), min_rows=st.just(1)),
)
LABELS = st.lists(st.integers(0, 4), min_size=60, max_size=200).map(np.array)


@settings(max_examples=60, deadline=None)
@given(split=SPLITS, labels=LABELS, n_owners=st.integers(1, 6), seed=st.integers(0, 2**40))
def test_every_row_is_dealt_exactly_once(split: SplitSection, labels: np.ndarray, n_owners: int, seed: int) -> None:
    try:
        parts = deal(split, labels, n_owners, seed)
    except DataError:  # a draw that starves an owner is a legal answer of small alpha
        assert isinstance(split, Dirichlet | Quantity)
        return
    assert len(parts) == n_owners
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(labels)))
    assert all(len(part) >= 1 for part in parts)


@settings(max_examples=30, deadline=None)
@given(split=SPLITS, seed=st.integers(0, 1000))
def test_a_split_is_a_pure_function_of_its_seed(split: SplitSection, seed: int) -> None:
    labels = np.arange(300) % 5
    np.random.seed(seed)  # the global generator must not matter
    one = deal(split, labels, 4, seed)
    np.random.seed(seed + 1)
    again = deal(split, labels, 4, seed)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    other = deal(split, labels, 4, seed + 1)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _skew(alpha: float) -> float:
    """Mean total variation between owners' label shares and the pool's, over seeds."""
    labels = np.repeat(np.arange(10), 200)
    distances = []
    for seed in range(5):
        for part in deal(Dirichlet(alpha=alpha, min_rows=1), labels, 5, seed):
            shares = np.bincount(labels[part], minlength=10) / len(part)
            distances.append(0.5 * np.abs(shares - 0.1).sum())
    return float(np.mean(distances))


def test_label_skew_falls_as_alpha_rises() -> None:
    skews = [_skew(alpha) for alpha in (0.05, 0.5, 5.0, 500.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.05


def test_shares_of_a_class_have_the_spread_of_the_dirichlet_law() -> None:
    # one class dealt to K owners: Var(share) = (1/K)(1 - 1/K) / (K alpha + 1)
    labels = np.zeros(1000, dtype=np.int64)
    split = Dirichlet(alpha=2.0, min_rows=1)
    shares = [len(part) / 1000 for seed in range(300) for part in deal(split, labels, 4, seed)]
    assert np.var(shares) == pytest.approx(0.25 * 0.75 / 9, rel=0.15)


def test_iid_sizes_differ_by_one_row_at_most() -> None:
    sizes = [len(part) for part in deal(Iid(), np.arange(103) % 3, 10, 0)]
    assert max(sizes) - min(sizes) == 1


def test_label_shards_give_each_owner_few_classes() -> None:
    labels = np.arange(1000) % 10
    parts = deal(LabelShards(per_owner=2), labels, 10, 0)  # 20 shards of 50 rows: each within one class
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


def test_quantity_is_unequal_for_small_alpha_and_keeps_labels_mixed() -> None:
    labels = np.arange(4000) % 2
    parts = deal(Quantity(alpha=0.5, min_rows=20), labels, 5, 3)
    sizes = [len(part) for part in parts]
    assert max(sizes) > 3 * min(sizes)
    assert abs(labels[parts[int(np.argmax(sizes))]].mean() - 0.5) < 0.1


@pytest.mark.parametrize("split", [Dirichlet(alpha=0.2, min_rows=12), Quantity(alpha=0.2, min_rows=12)])
def test_every_owner_gets_the_fewest_rows_asked_for(split: SplitSection) -> None:
    parts = deal(split, np.arange(500) % 10, 6, 0)
    assert min(len(part) for part in parts) >= 12


def test_a_hopeless_draw_ends_with_an_error_that_names_the_way_out() -> None:
    split = Dirichlet(alpha=1e-6, min_rows=10)
    with pytest.raises(DataError, match=r"split\.alpha"):
        deal(split, np.zeros(100, dtype=np.int64), 5, 0)


@pytest.mark.parametrize("split", [Iid(), Dirichlet(min_rows=1), LabelShards(), Quantity(min_rows=1)])
def test_more_owners_than_rows_are_refused(split: SplitSection) -> None:
    with pytest.raises(DataError, match="5 rows to deal to 6 owners"):
        deal(split, np.arange(5), 6, 0)
