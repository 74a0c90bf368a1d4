"""Rounding never passes its bound, is a neighbouring integer everywhere, and right in the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import UpdateRefused
from fedray.privacy.distributed.rounding import BETA, _round_into, l1_bound, rounded, squared_l2_bound
from fedray.privacy.distributed.streams import Stream
from fedray.protection.fixed_point import PIECE

KEY = bytes(range(16))


def test_the_bound_by_hand() -> None:
    """Norm 10 in 16 coordinates: (10 + 4)**2, or 100 + 16/4 + (10 + 4/2) = 116; 100 in one: 101**2, or 10100.75."""
    assert squared_l2_bound(10, 16) == 116
    assert squared_l2_bound(100, 1) == 10_100
    assert squared_l2_bound(0.01, 10_000) == math.floor(0.01**2 + 2500 + 0.01 + 50)
    assert l1_bound(116, 16) == math.sqrt(16 * 116)
    assert l1_bound(9, 100) == 9


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), st.floats(0.01, 1e6), st.floats(0, 1), st.binary(min_size=16, max_size=16))
def test_the_norms_never_pass_their_bounds(n: int, norm: float, spread: float, key: bytes) -> None:
    values = np.full(n, spread) + np.random.default_rng(n).standard_normal(n)
    values /= np.linalg.norm(values) * (1 + 1e-12)
    bound = squared_l2_bound(norm, n)
    integers = rounded(values, norm, bound, Stream(key)).astype(object)
    assert sum(integers**2) <= bound
    assert sum(abs(integers)) <= l1_bound(bound, n) * (1 + 1e-12)
    assert (np.abs(integers.astype(float) - values * norm) < 1 + 1e-9).all()


def test_integers_far_apart_in_size_are_measured_exactly() -> None:
    """Squares beyond what 53 bits hold: the bound is met to the unit."""
    values = np.full(2 * PIECE, 3.0)
    values[0] = 2.0**29 + 1
    exact = (2**29 + 1) ** 2 + 9 * (2 * PIECE - 1)
    assert rounded(values, 1.0, exact, Stream(KEY))[0] == 2**29 + 1
    with pytest.raises(UpdateRefused):
        rounded(values, 1.0, exact - 1, Stream(KEY))


def test_rounding_is_right_in_the_mean() -> None:
    """20,000 roundings; six standard errors, and the 0.8 steps by which the condition may shift a vector."""
    values = np.linspace(-3.3, 3.7, 12)
    norm, n = float(np.linalg.norm(values)), 20_000
    stream, bound = Stream(KEY), squared_l2_bound(norm, 12)
    draws = np.array([rounded(values, 1.0, bound, stream) for _ in range(n)])
    free = np.array([rounded(values, 1.0, 10**6, stream) for _ in range(n)])
    assert np.abs(free.mean(axis=0) - values).max() < 6 * 0.5 / math.sqrt(n) + 2**-16
    assert (draws**2).sum(axis=1).max() <= bound < (free**2).sum(axis=1).max()
    assert np.linalg.norm(draws.mean(axis=0) - values) < 1 / (2 * math.sqrt(1 - BETA))


@pytest.mark.parametrize("value", [0.5, 0.05, 3.5, 0.999])
@pytest.mark.parametrize("n", [1, 9, 400])
def test_tries_are_within_the_bound_as_often_as_the_paper_says(value: float, n: int) -> None:
    values = np.full(n, value)
    integers, stream, bound = np.empty(n, dtype=np.int32), Stream(KEY), squared_l2_bound(value * math.sqrt(n), n)
    kept = np.mean([_round_into(integers, values, 1.0, stream) <= bound for _ in range(1000)])
    assert kept >= 1 - BETA - 6 * 0.5 / math.sqrt(1000)


def test_a_vector_longer_than_the_bound_is_refused() -> None:
    with pytest.raises(UpdateRefused, match="never within its bound"):
        rounded(np.full(100, 2.0), 10.0, squared_l2_bound(10.0, 100), Stream(KEY))
