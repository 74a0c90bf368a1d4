"""The granularity that is chosen: fits its ring, holds enough noise, and is no coarser than it must be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ConfigError
from fedray.privacy.distributed import choose
from fedray.privacy.distributed.choose import LARGEST_SIGMA, MOST_INFLATION, SMALL_INFLATION, inflation
from fedray.privacy.distributed.laws import DiscreteGaussianNoise

KEY = bytes(16)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 2**26),
    st.integers(1, 20_000),
    st.sampled_from(["discrete_gaussian", "skellam"]),
    st.floats(-3, 2).map(lambda power: 10**power),
)
def test_the_choice_holds_what_it_promises(
    n_values: int, n_owners: int, noise: Literal["discrete_gaussian", "skellam"], local_sigma: float
) -> None:
    found = choose(n_values, n_owners, noise, local_sigma, KEY)
    assert found.noise.sigma * found.granularity == pytest.approx(local_sigma)
    assert 3 <= found.noise.sigma <= LARGEST_SIGMA * (1 + 1e-6)
    assert found.sum_bound < (2**15 if found.ring is np.uint16 else 2**31)
    if found.ring is np.uint16:
        assert inflation(found.granularity, found.rotation.length) <= MOST_INFLATION
        finer = found.granularity * 0.999
        assert replace(found, granularity=finer, noise=type(found.noise)(local_sigma / finer)).ring is np.uint32


def test_ten_owners_of_a_million_values_take_16_bits() -> None:
    """By hand: a coordinate of the sum deviates by sqrt(10) * sigma, and 7.5 times that may reach 2**15."""
    found = choose(2**20, 10, "discrete_gaussian", 1 / math.sqrt(10), KEY)
    assert found.ring is np.uint16
    assert found.noise.sigma == pytest.approx((2**15 - 11) / math.sqrt(2 * 10 * math.log(2**21 * 1e6)), rel=1e-3)


def test_long_vectors_with_much_noise_take_32_bits_for_the_sake_of_their_norm() -> None:
    found = choose(2**24, 10, "discrete_gaussian", 1.0, KEY)
    assert found.ring is np.uint32
    assert inflation(found.granularity, 2**24) == pytest.approx(SMALL_INFLATION, rel=1e-4)


def test_little_noise_of_many_owners_takes_32_bits() -> None:
    found = choose(100, 1000, "skellam", 1e-4, KEY)
    assert found.ring is np.uint32
    assert found.noise.sigma == pytest.approx(32)


def test_noise_that_no_ring_can_hold_is_refused_with_what_to_change() -> None:
    with pytest.raises(ConfigError, match="fewer owners a round, or more noise"):
        choose(10, 1000, "discrete_gaussian", 1e-8, KEY)


def test_the_inflation_by_hand() -> None:
    """Norm 1 in 100 steps of 0.01 and 400 coordinates: 10000.02 + 100 + 100.0001 + 10 is 10210 rounded down."""
    assert inflation(0.01, 400) == pytest.approx(math.sqrt(1.0210))
    assert isinstance(choose(10, 3, "discrete_gaussian", 1.0, KEY).noise, DiscreteGaussianNoise)
