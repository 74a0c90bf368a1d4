"""A round's owners are dealt to pools: each once, evenly, and to where their rows are if that leaves nobody idle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assignment, plan

from fedray.data import Numbered
from fedray.dealing import Dealer
from fedray.values import Population

ROWS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


def _dealer(rows: list[int], n_pools: int, *, may_move: bool = True) -> Dealer:
    sizes = np.array(rows, dtype=np.int64)
    return Dealer(Population(Numbered.of(len(rows)), sizes, sizes), n_pools, 10, may_move)


def _asked(dealer: Dealer, amount: int = 1, unit: str = "epochs") -> list:
    return [assignment(plan(amount, unit), name) for name in dealer.population.names]


def _steps(dealer: Dealer, owner: str) -> int:
    """By hand: batches of ten rows, the last one perhaps smaller."""
    n_rows = int(dealer.population.n_train[list(dealer.population.names).index(owner)])
    return len(range(0, n_rows, 10))


@settings(deadline=None)
@given(rows=ROWS, n_pools=st.integers(1, 6), may_move=st.booleans())
def test_every_owner_goes_to_one_pool_those_with_most_work_first(rows: list[int], n_pools: int, may_move: bool) -> None:
    dealer = _dealer(rows, n_pools, may_move=may_move)
    parts = dealer.dealt(_asked(dealer))
    assert len(parts) == n_pools
    assert sorted(one.owner for part in parts for one in part) == list(dealer.population.names)
    for part in parts:
        steps = [_steps(dealer, one.owner) for one in part]
        assert steps == sorted(steps, reverse=True)


@settings(deadline=None)
@given(rows=ROWS, n_pools=st.integers(1, 6))
def test_no_pool_has_more_than_a_fair_share_and_one_owner(rows: list[int], n_pools: int) -> None:
    """Graham's bound for list scheduling."""
    dealer = _dealer(rows, n_pools)
    loads = [sum(_steps(dealer, one.owner) for one in part) for part in dealer.dealt(_asked(dealer))]
    largest = max(_steps(dealer, name) for name in dealer.population.names)
    assert max(loads) <= sum(loads) / n_pools + largest


def test_owners_stay_at_home_where_that_is_even() -> None:
    dealer = _dealer([50] * 8, 2)
    parts = dealer.dealt(_asked(dealer))
    assert [sorted(one.owner for one in part) for part in parts] == [
        [f"owner-0{number}" for number in numbers] for numbers in ((0, 2, 4, 6), (1, 3, 5, 7))
    ]


def test_owners_that_keep_secrets_never_move() -> None:
    """All with work are at home in the first of two pools."""
    rows = [300, 1] * 5
    moved, stayed = (_dealer(rows, 2, may_move=may_move) for may_move in (True, False))
    busy = [one for one in _asked(stayed) if stayed.population.n_train_of(one.owner) == 300]
    assert [len(part) for part in stayed.dealt(busy)] == [5, 0]
    assert sorted(len(part) for part in moved.dealt(busy)) == [2, 3]


@pytest.mark.parametrize("n_pools", [1, 2, 3])
def test_owners_who_take_as_many_steps_count_alike_whatever_their_rows(n_pools: int) -> None:
    dealer = _dealer([1, 400] * 6, n_pools)
    parts = dealer.dealt(_asked(dealer, 7, "steps"))
    assert {len(part) for part in parts} == {12 // n_pools}


def test_names_are_sorted_by_home() -> None:
    dealer = _dealer([5] * 5, 2)
    assert dealer.at_home(["owner-04", "owner-01", "owner-00"]) == [["owner-04", "owner-00"], ["owner-01"]]
