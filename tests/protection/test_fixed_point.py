"""Sums of updates are exact, order-free and cannot overflow."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedray.errors import UpdateRefused
from fedray.protection import fixed_point
from fedray.protection.fixed_point import DELTA_BOUND, FRACTION_BITS, WEIGHT_BOUND
from fedray.protection.plain import PlainCombiner, PlainOpener, PlainProtection
from fedray.values import Sealed, Update

N = 3
SMALL = 2.0**-16
"""Below about 2**-4 a float32 has bits beyond the fixed point, so that rounding matters."""
VALUES = st.one_of(st.floats(-DELTA_BOUND, DELTA_BOUND, width=32), st.floats(-SMALL, SMALL, width=32))
DELTAS = arrays.arrays(np.float32, N, elements=VALUES, fill=st.nothing())
UPDATES = st.lists(st.tuples(DELTAS, st.integers(1, 10_000)), min_size=1, max_size=6)


def _sealed(payload: Any, round: int = 1) -> Sealed:
    return Sealed("a", round, payload, 1, True, 0.0, None)


def _summed(updates: Sequence[tuple[Any, int]]) -> PlainCombiner:
    protection = PlainProtection(N)
    combiner = protection.combiner()
    for delta, weight in updates:
        combiner.add(_sealed(protection.sealer("a").seal(Update(delta, weight, 1, True))))
    return combiner


@settings(deadline=None, max_examples=100)
@given(updates=UPDATES, order=st.randoms())
def test_the_order_of_arrival_changes_no_bit(updates: list[tuple[Any, int]], order: Any) -> None:
    shuffled = list(updates)
    order.shuffle(shuffled)
    assert np.array_equal(_summed(updates).combined, _summed(shuffled).combined)


@settings(deadline=None, max_examples=100)
@given(updates=UPDATES)
def test_the_mean_is_the_exact_one_to_half_a_unit(updates: list[tuple[Any, int]]) -> None:
    mean = PlainOpener().open(_summed(updates).combined).mean
    weight = sum(weight for _, weight in updates)
    for position in range(N):
        exact = sum(Fraction(float(delta[position])) * w for delta, w in updates) / weight
        slack = Fraction(1, 2 ** (FRACTION_BITS + 1)) + abs(exact) / 2**51
        assert abs(Fraction(float(mean[position])) - exact) <= slack


def test_a_value_on_the_grid_comes_back_exactly() -> None:
    delta = np.array([1 / 2**FRACTION_BITS, -0.75, DELTA_BOUND], dtype=np.float32)
    total = PlainOpener().open(_summed([(delta, 3), (delta, 4)]).combined)
    assert total.weight == 7
    assert total.mean.tolist() == delta.tolist()


def test_no_sum_can_overflow() -> None:
    """Python's integers have no bound: the worst sum fits in int64, and numpy's sum is that sum."""
    largest = DELTA_BOUND * 2**FRACTION_BITS
    assert largest * WEIGHT_BOUND < 2**63
    bound = np.array([DELTA_BOUND, -DELTA_BOUND, 0], dtype=np.float32)
    heavy = _summed([(bound, WEIGHT_BOUND)])
    assert heavy.combined.tolist() == [largest * WEIGHT_BOUND, -largest * WEIGHT_BOUND, 0, WEIGHT_BOUND]
    shared = _summed([(bound, WEIGHT_BOUND // 4)] * 4)
    assert shared.combined.tolist() == heavy.combined.tolist()
    with pytest.raises(UpdateRefused):
        shared.add(_sealed(fixed_point.encode(Update(bound, 1, 1, True))))


@settings(deadline=None, max_examples=50)
@given(payloads=st.lists(arrays.arrays(np.int64, N + 1, elements=st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_whatever_is_sent_the_sum_is_that_of_what_was_taken(payloads: list[Any]) -> None:
    combiner, expected = PlainCombiner(N), [0] * (N + 1)
    for payload in [*payloads, fixed_point.encode(Update(np.ones(N, np.float32), 5, 1, True))]:
        before, n_before = combiner.combined.tolist(), combiner.n_added
        try:
            combiner.add(_sealed(payload))
        except UpdateRefused:
            assert (combiner.combined.tolist(), combiner.n_added) == (before, n_before)
        else:
            expected = [total + int(value) for total, value in zip(expected, payload, strict=True)]
            assert combiner.n_added == n_before + 1
    assert combiner.combined.tolist() == expected


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, np.nextafter(np.float32(DELTA_BOUND), np.float32(2**20)), 3e38]
)
def test_an_update_beyond_reason_is_refused(value: float) -> None:
    with pytest.raises(UpdateRefused):
        fixed_point.encode(Update(np.array([0, value, 0], dtype=np.float32), 1, 1, True))


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_BOUND + 1])
def test_a_weight_beyond_reason_is_refused(weight: int) -> None:
    with pytest.raises(UpdateRefused, match=str(weight)):
        fixed_point.encode(Update(np.zeros(N, dtype=np.float32), weight, 1, True))


UNIT = 2**FRACTION_BITS
BAD: dict[str, Any] = {
    "floats": np.array([0.0, 0.0, 0.0, 1.0]),
    "int32": np.array([0, 0, 0, 1], dtype=np.int32),
    "too short": np.array([0, 0, 1]),
    "too long": np.array([0, 0, 0, 0, 1]),
    "two-dimensional": np.array([[0, 0, 0, 1]]),
    "a list": [0, 0, 0, 1],
    "nothing": None,
    "no weight": np.array([0, 0, 0, 0]),
    "negative weight": np.array([0, 0, 0, -1]),
    "too heavy": np.array([0, 0, 0, WEIGHT_BOUND + 1]),
    "value above its bound": np.array([0, 2 * DELTA_BOUND * UNIT + 1, 0, 2]),
    "value below its bound": np.array([0, -2 * DELTA_BOUND * UNIT - 1, 0, 2]),
    "smallest integer": np.array([-(2**63), 0, 0, 2]),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_the_combiner_refuses_what_no_sealer_makes(payload: Any) -> None:
    combiner = _summed([(np.ones(N, dtype=np.float32), 2)])
    before = combiner.combined.copy()
    with pytest.raises(UpdateRefused):
        combiner.add(_sealed(payload))
    assert np.array_equal(combiner.combined, before)
    assert combiner.n_added == 1


def test_what_lies_on_the_bound_is_taken() -> None:
    combiner = PlainCombiner(N)
    combiner.add(_sealed(np.array([2 * DELTA_BOUND * UNIT, -2 * DELTA_BOUND * UNIT, 0, 2])))
    assert PlainOpener().open(combiner.combined).mean.tolist() == [DELTA_BOUND, -DELTA_BOUND, 0]
