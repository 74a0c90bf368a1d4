"""An owner's vector: never longer than one, whatever goes in; the noise of all its parts adds up to what is paid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fedray.errors import ConfigError
from fedray.privacy.parts import Parts
from fedray.values import Vector

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.nextafter(np.float32(0), np.float32(1)))

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
updates = arrays.arrays(np.float32, st.integers(1, 30), elements=floats)
signals = st.dictionaries(st.sampled_from(["a", "b"]), st.floats(allow_nan=True, allow_infinity=True))
splits = st.sampled_from([(), (("a", 3.0),), (("a", 2.0), ("b", 2.0)), (("a", 40.0), ("b", 1.5))])


def norm_of(packed: Vector) -> float:
    """Exact but for one rounding: squares of float32 are exact in float64."""
    return math.sqrt(math.fsum(float(value) ** 2 for value in packed))


@settings(deadline=None)
@given(update=updates, clip=st.floats(1e-30, 1e30), statistics=signals, split=splits)
@example(np.full(5_000, LARGEST, np.float32), 1.0, {"a": 1.0}, (("a", 1.5),))
@example(np.full(3, LARGEST, np.float32), 1e-30, {}, ())
@example(np.full(30, SMALLEST, np.float32), 1e-30, {"a": 0.0}, (("a", 1.5),))
@example(np.full(30, SMALLEST, np.float32), SMALLEST / 10, {"a": -1e9}, (("a", 1.5),))
@example(np.zeros(3, np.float32), 1.0, {"a": math.inf, "b": -math.inf}, (("a", 2.0), ("b", 2.0)))
@example(np.ones(3, np.float32), 1.0, {"a": math.nan}, (("a", 1.5),))
def test_nothing_makes_a_vector_longer_than_one(
    update: Vector, clip: float, statistics: dict[str, float], split: tuple[tuple[str, float], ...]
) -> None:
    parts = Parts(len(update), 2.0, split)
    packed = parts.pack(update, clip, statistics)
    assert packed.dtype == np.float32
    assert packed.shape == (parts.length,) == (len(update) + len(split),)
    assert norm_of(packed) <= 1.0


@pytest.mark.parametrize("length", [1, 7, 5_000])
@pytest.mark.parametrize("value", [LARGEST, 1e38, 1e30, 1.0, 1e-30])
def test_a_long_update_takes_its_whole_share_and_no_more(length: int, value: float) -> None:
    """Also where the factor that shortens it is too small for a float32 of full precision."""
    packed = Parts(length, 2.0).pack(np.full(length, value, np.float32), 1e-35, {})
    assert 1 - 2e-6 < norm_of(packed) <= 1.0


def test_an_update_within_the_clip_keeps_its_length_and_any_keeps_its_direction() -> None:
    parts = Parts(2, 2.0, (("a", 2.0),))
    share = math.sqrt(1 - 1 / 4)
    short, long = np.array([0.3, 0.4], np.float32), np.array([30.0, 40.0], np.float32)
    np.testing.assert_allclose(parts.pack(short, 2.0, {})[:2], share * short / 2.0, rtol=2e-6)
    np.testing.assert_allclose(parts.pack(long, 2.0, {})[:2], share * np.array([0.6, 0.8]), rtol=2e-6)


@settings(deadline=None)
@given(z=st.floats(0.3, 8.0), ratios=st.lists(st.floats(1.5, 30.0), min_size=1, max_size=3))
def test_the_noise_of_all_parts_makes_up_the_noise_that_is_paid_for(z: float, ratios: list[float]) -> None:
    """Andrew et al. 2021, Theorem 1, from how unpacking scales each value."""
    parts = Parts(4, z, tuple((f"{place}", z * ratio) for place, ratio in enumerate(ratios)))
    clip, zero = 3.0, parts.unpack(np.zeros(parts.length), 3.0, 1.0)
    scales = []
    for place in range(parts.length):
        unit = np.zeros(parts.length)
        unit[place] = z
        update, figures = parts.unpack(unit, clip, 1.0)
        change = [*(update - zero[0]), *(figures[name] - zero[1][name] for name in figures)]
        assert np.count_nonzero(change) == 1
        scales.append(change[place])
    z_update, sigmas = scales[0] / clip, scales[4:]
    assert scales[:4] == pytest.approx([clip * z_update] * 4)
    assert sigmas == pytest.approx([z * ratio for ratio in ratios], rel=1e-5)
    assert z_update**-2 + sum((2 * sigma) ** -2 for sigma in sigmas) == pytest.approx(z**-2, rel=1e-5)


def test_the_noise_after_unpacking_is_what_the_theorem_says() -> None:
    z, clip, n_expected, sigma, n_draws = 1.2, 5.0, 10.0, 3.0, 4_000
    parts = Parts(6, z, (("a", sigma), ("b", 2 * sigma)))
    draw = np.random.default_rng(5)
    found = [parts.unpack(z * draw.standard_normal(8), clip, n_expected) for _ in range(n_draws)]
    update = np.array([mean for mean, _ in found]) * n_expected / clip
    z_update = 1 / math.sqrt(z**-2 - (2 * sigma) ** -2 - (4 * sigma) ** -2)
    _assert_deviation(update.ravel(), z_update)
    for name, expected in (("a", sigma), ("b", 2 * sigma)):
        _assert_deviation(np.array([figures[name] - 0.5 for _, figures in found]) * n_expected, expected)


def _assert_deviation(values: np.ndarray, sigma: float) -> None:
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], len(values))
    assert low < (values**2).sum() / sigma**2 < high


@settings(deadline=None)
@given(
    update=arrays.arrays(np.float32, 6, elements=st.floats(-8, 8, width=32)),
    clip=st.floats(0.1, 20.0),
    statistics=st.fixed_dictionaries({"a": st.floats(0, 1), "b": st.floats(0, 1)}),
)
def test_what_was_packed_is_unpacked(update: Vector, clip: float, statistics: dict[str, float]) -> None:
    parts = Parts(6, 2.0, (("a", 2.0), ("b", 9.0)))
    total = 3 * parts.pack(update, clip, statistics).astype(np.float64)
    mean, figures = parts.unpack(total, clip, 3.0)
    clipped = update.astype(np.float64) * min(1.0, clip / max(1e-300, float(np.linalg.norm(update.astype(np.float64)))))
    np.testing.assert_allclose(mean, clipped, rtol=1e-5, atol=1e-6 * clip)
    assert figures == pytest.approx(statistics, abs=1e-5)


def test_a_statistic_that_an_owner_has_none_of_weighs_nothing_and_counts_as_a_half() -> None:
    parts = Parts(2, 2.0, (("a", 2.0),))
    packed = parts.pack(np.zeros(2, np.float32), 1.0, {"other": 1.0})
    assert not packed.any()
    assert parts.unpack(packed.astype(np.float64), 1.0, 1.0)[1] == {"a": 0.5}


@pytest.mark.parametrize(("given_to", "counts_as"), [(7.0, 1.0), (-3.0, 0.0), (math.inf, 1.0), (math.nan, 0.0)])
def test_a_statistic_out_of_range_counts_as_the_nearest_end(given_to: float, counts_as: float) -> None:
    parts = Parts(2, 2.0, (("a", 2.0),))
    zeros = np.zeros(2, np.float32)
    np.testing.assert_array_equal(parts.pack(zeros, 1.0, {"a": given_to}), parts.pack(zeros, 1.0, {"a": counts_as}))


@pytest.mark.parametrize("n_statistics", [1, 2, 5])
def test_statistics_that_would_take_more_than_half_are_refused_and_the_remedy_helps(n_statistics: int) -> None:
    """k statistics of deviation sigma take k (z / 2 sigma)^2 of the squared norm: half at sigma = z sqrt(k / 2)."""
    z, names = 3.0, [f"m{place}" for place in range(n_statistics)]
    least = z * math.sqrt(n_statistics / 2)
    Parts(4, z, tuple((name, least * 1.0001) for name in names))
    with pytest.raises(ConfigError, match=f"noise of {least * 0.99:g} on the sums") as refusal:
        Parts(4, z, tuple((name, least * 0.99) for name in names))
    assert f"{least:.3g} or more on each" in refusal.value.expected
