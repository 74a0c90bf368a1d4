"""Updates become integers whose sums are exact, order-free and inside their ring, held against Python's integers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from toys import assignment, plan

from fedray import seeds
from fedray.errors import ConfigError, RoundAbandoned, UpdateRefused
from fedray.protection.fixed_point import PIECE, WEIGHT_BOUND, FixedPoint, power_of_two_from
from fedray.protection.plain import PlainCombiner, PlainProtection, PlainSealer
from fedray.values import Assignment, Payload, Sealed, Total, Update

N = 4
DEFAULT = FixedPoint(N, n_owners=5, clip=8.0, precision=1e-5)
NARROW = FixedPoint(N, n_owners=31, clip=1.0, precision=2.0**-10)


def _asked(owner: str = "a", round: int = 1, weight_bound: int = 32) -> Assignment:
    return assignment(plan(round=round), owner, weight_bound=weight_bound)


def _update(values: Sequence[float] | np.ndarray, weight: int = 32) -> Update:
    return Update(np.array(values, dtype=np.float32), weight, 3, True)


def _encoded(fixed_point: FixedPoint, update: Update, asked: Assignment | None = None, seed: int = 0) -> list[int]:
    """As Python's integers, signed by hand."""
    payload = fixed_point.encode(update, asked or _asked(), seed)
    size = 2 ** (8 * payload.itemsize)
    return [int(value) - size * (int(value) >= size // 2) for value in payload]


# Python's integers and fractions ------------------------------------------------------------------------------------


def _exact(fixed_point: FixedPoint, value: float, weight: int, weight_bound: int) -> Fraction:
    """What a value is in units of the step."""
    return Fraction(float(value)) * weight / weight_bound / Fraction(fixed_point.step)


def _keystream(seed: int, round: int, owner: str, n_bytes: int) -> bytes:
    """AES in counter mode, written out block by block."""
    key = seeds.key(seed, "rounding", round, owner)
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(blocks.update(block.to_bytes(16, "big")) for block in range(-(-n_bytes // 16)))[:n_bytes]


def _by_hand(fixed_point: FixedPoint, update: Update, asked: Assignment, seed: int) -> list[int]:
    """Every value rounded up where its draw is large enough, then the weight's limbs."""
    stream = _keystream(seed, asked.plan.round, asked.owner, 2 * fixed_point.n_values)
    draws = [Fraction(int.from_bytes(stream[at : at + 2], "little"), 2**16) for at in range(0, len(stream), 2)]
    values = [
        math.floor(_exact(fixed_point, value, update.weight, asked.weight_bound) + draw)
        for value, draw in zip(update.delta, draws, strict=True)
    ]
    limbs, rest = [], update.weight
    for _ in range(fixed_point.n_limbs):
        limbs.append(rest % 2**fixed_point.limb_bits)
        rest //= 2**fixed_point.limb_bits
    assert rest == 0
    return values + limbs


@pytest.mark.parametrize(("weight", "weight_bound"), [(1, 1), (1, 32), (23, 32), (32, 32), (70_001, 2**17)])
@pytest.mark.parametrize("round", [1, 40])
def test_encoding_is_the_one_written_out(weight: int, weight_bound: int, round: int) -> None:
    """Also across the pieces that a long vector is worked on in."""
    fixed_point = replace(DEFAULT, n_values=2 * PIECE + 5)
    draw = np.random.default_rng(weight)
    values = draw.uniform(-8, 8, fixed_point.n_values) * 10.0 ** -draw.integers(0, 8, fixed_point.n_values)
    update, asked = _update(values, weight), _asked("zürich", round, weight_bound)
    assert _encoded(fixed_point, update, asked, seed=7) == _by_hand(fixed_point, update, asked, seed=7)


def test_pieces_follow_each_other_and_make_up_the_whole() -> None:
    fixed_point = replace(DEFAULT, n_values=2 * PIECE + 5)
    update = _update(np.random.default_rng(0).uniform(-8, 8, fixed_point.n_values))
    found = [(part, piece.copy()) for part, piece in fixed_point.pieces(update, _asked(), 3)]
    ends = [0] + [part.stop for part, _ in found]
    assert [part.start for part, _ in found] == ends[:-1]
    assert ends[-1] == fixed_point.length
    whole = np.concatenate([piece for _, piece in found]).astype(np.int64)
    assert whole.tolist() == _encoded(fixed_point, update, seed=3)


# Cases worked out by hand -------------------------------------------------------------------------------------------


def test_the_default_settings_for_five_owners() -> None:
    """2**-17 is the largest power of two up to 1e-5; 8 is 2**20 of it, and five times that twice is above 2**16."""
    assert DEFAULT.step == 2.0**-17
    assert DEFAULT.value_bound == 2**20
    assert DEFAULT.sum_bound == 5 * 2**20
    assert DEFAULT.ring is np.uint32
    assert (DEFAULT.limb_bits, DEFAULT.n_limbs, DEFAULT.length) == (20, 2, 6)


def test_the_narrow_ring_by_hand() -> None:
    """1024 units of 2**-10; 31 owners' sum is 31744 and fits in 16 bits with its sign, 32 owners' is 2**15."""
    assert (NARROW.step, NARROW.value_bound, NARROW.sum_bound) == (2.0**-10, 1024, 31_744)
    assert NARROW.ring is np.uint16
    assert (NARROW.limb_bits, NARROW.n_limbs, NARROW.length) == (10, 3, 7)
    assert replace(NARROW, n_owners=32).ring is np.uint32


def test_a_clip_between_two_steps_is_bounded_by_the_next_unit() -> None:
    fixed_point = FixedPoint(2, n_owners=3, clip=0.7, precision=0.3)
    assert (fixed_point.step, fixed_point.value_bound) == (0.25, 3)
    assert (fixed_point.limb_bits, fixed_point.n_limbs) == (2, 13)


def test_a_step_as_large_as_the_clip() -> None:
    """One unit; limbs of one bit."""
    fixed_point = FixedPoint(2, n_owners=3, clip=1.0, precision=1.5)
    assert (fixed_point.step, fixed_point.value_bound) == (1.0, 1)
    assert (fixed_point.limb_bits, fixed_point.n_limbs, fixed_point.length) == (1, 25, 27)
    assert _encoded(fixed_point, _update([1, -1], 5), _asked(weight_bound=5))[:5] == [1, -1, 1, 0, 1]


def test_values_on_the_grid_are_encoded_as_they_are() -> None:
    unit = 2.0**-17
    assert _encoded(DEFAULT, _update([3 * unit, -7 * unit, 8.0, -8.0])) == [3, -7, 2**20, -(2**20), 32, 0]
    assert _encoded(DEFAULT, _update([4 * unit, -8.0, 0.0, 2.0], 8)) == [1, -(2**18), 0, 2**16, 8, 0]


def test_negative_numbers_wrap_around() -> None:
    payload = NARROW.encode(_update([-(2.0**-10), 1.0, -1.0, 0.0], 32), _asked(), 0)
    assert payload.dtype == np.uint16
    assert payload.tolist() == [65_535, 1024, 64_512, 0, 32, 0, 0]


def test_a_weight_is_cut_into_limbs() -> None:
    """1,000,000 = 576 + 976 x 1024."""
    encoded = _encoded(NARROW, _update([0, 0, 0, 0], 1_000_000), _asked(weight_bound=2**20))
    assert encoded == [0, 0, 0, 0, 576, 976, 0]


def test_a_value_between_two_units_becomes_one_of_them() -> None:
    found = {_encoded(DEFAULT, _update([1.5 * 2**-17, -1.5 * 2**-17, 0, 0]), seed=seed)[0] for seed in range(40)}
    assert found == {1, 2}
    found = {_encoded(DEFAULT, _update([-1.5 * 2**-17, 0, 0, 0]), seed=seed)[0] for seed in range(40)}
    assert found == {-2, -1}


def test_a_sum_by_hand() -> None:
    """(3 x 0.5 + 1 x -0.25) / 4 = 0.3125, all on the grid."""
    total = _total(DEFAULT, [(_update([0.5, 0, 0, 1], 3), 4), (_update([-0.25, 0, 0, 1], 1), 4)], weight_bound=4)
    assert total.weight == 4
    assert total.weighted_sum.tolist() == [1.25, 0.0, 0.0, 4.0]
    assert total.mean.tolist() == [0.3125, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("n", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (32, 32), (33, 64), (2**24, 2**24)])
def test_the_smallest_power_of_two_that_is_at_least_n(n: int, power: int) -> None:
    assert power_of_two_from(n) == power


# Properties ---------------------------------------------------------------------------------------------------------

CLIPS = st.floats(2.0**-12, 2.0**12)
PRECISIONS = st.floats(2.0**-24, 2.0**6)


@st.composite
def _fixed_points(draw: st.DrawFn, most_owners: int = 10_000) -> FixedPoint:
    """Any that the constructor takes."""
    clip, precision = draw(CLIPS), draw(PRECISIONS)
    fitting = 2**31 // (clip / 2.0 ** math.floor(math.log2(precision)) + 1)
    assume(fitting >= 1)
    n_owners = draw(st.integers(1, int(min(most_owners, fitting))))
    try:
        return FixedPoint(N, n_owners, clip, precision)
    except ConfigError:
        assume(False)
        raise


@st.composite
def _updates(draw: st.DrawFn, fixed_point: FixedPoint) -> tuple[Update, Assignment]:
    """Any that may be encoded: the bounds, values far below a step, and all between."""
    bound = np.float32(fixed_point.clip)
    if float(bound) > fixed_point.clip:
        bound = np.nextafter(bound, np.float32(0))
    limit = float(bound)
    small = float(np.float32(min(limit, fixed_point.step)))
    values = st.floats(-limit, limit, width=32) | st.floats(-small, small, width=32) | st.sampled_from([-limit, limit])
    delta = draw(arrays.arrays(np.float32, N, elements=values, fill=st.nothing()))
    weight_bound = 2 ** draw(st.integers(0, 24))
    weight = draw(st.integers(1, weight_bound) | st.just(weight_bound))
    return Update(delta, weight, 1, True), _asked(draw(st.text(max_size=4)), draw(st.integers(1, 99)), weight_bound)


@settings(deadline=None, max_examples=300)
@given(data=st.data(), fixed_point=_fixed_points(), seed=st.integers(0, 2**40))
def test_every_value_is_one_of_the_two_integers_beside_it(data: Any, fixed_point: FixedPoint, seed: int) -> None:
    update, asked = data.draw(_updates(fixed_point))
    *values, _ = (*_encoded(fixed_point, update, asked, seed)[:N], None)
    for found, value in zip(values, update.delta, strict=True):
        exact = _exact(fixed_point, value, update.weight, asked.weight_bound)
        assert found in (math.floor(exact), math.ceil(exact))
        assert abs(found) <= fixed_point.value_bound


@settings(deadline=None, max_examples=300)
@given(fixed_point=_fixed_points())
def test_a_fixed_point_is_what_it_says(fixed_point: FixedPoint) -> None:
    step, clip = Fraction(fixed_point.step), Fraction(fixed_point.clip)
    assert step <= Fraction(fixed_point.precision) < 2 * step
    assert fixed_point.value_bound == math.ceil(clip / step)
    assert fixed_point.sum_bound == fixed_point.n_owners * fixed_point.value_bound
    bits = 8 * np.dtype(fixed_point.ring).itemsize
    assert -(2 ** (bits - 1)) < -fixed_point.sum_bound
    assert fixed_point.sum_bound < 2 ** (bits - 1)
    assert bits == 16 or fixed_point.sum_bound >= 2**15
    largest_limb = 2**fixed_point.limb_bits - 1
    assert largest_limb <= fixed_point.value_bound < 2 * (largest_limb + 1)
    assert 2 ** (fixed_point.limb_bits * fixed_point.n_limbs) > WEIGHT_BOUND
    assert fixed_point.length == N + fixed_point.n_limbs


@settings(deadline=None, max_examples=200)
@given(data=st.data(), fixed_point=_fixed_points())
def test_no_sum_of_as_many_updates_as_may_be_leaves_the_ring(data: Any, fixed_point: FixedPoint) -> None:
    """Every owner sends the same extreme update: Python's sum is the one that is read off the ring."""
    update, asked = data.draw(_updates(fixed_point))
    update = replace(update, weight=asked.weight_bound, delta=_clipped(fixed_point, np.sign(update.delta)))
    payload = fixed_point.encode(update, asked, 0)
    fixed_point.check_readable(payload)
    sums = [fixed_point.n_owners * value for value in _encoded(fixed_point, update, asked)]
    assert all(abs(value) <= fixed_point.sum_bound for value in sums)
    in_ring = (payload.astype(np.uint64) * fixed_point.n_owners).astype(fixed_point.ring)
    assert fixed_point.signed(in_ring).tolist() == sums


def _clipped(fixed_point: FixedPoint, signs: np.ndarray) -> np.ndarray:
    bound = np.float32(fixed_point.clip)
    if float(bound) > fixed_point.clip:
        bound = np.nextafter(bound, np.float32(0))
    return (signs * bound).astype(np.float32)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), fixed_point=_fixed_points(), heavy=st.integers(1, WEIGHT_BOUND))
def test_limbs_give_the_sum_of_weights_back(data: Any, fixed_point: FixedPoint, heavy: int) -> None:
    """Sums of limbs pass from one to the next only where they are read."""
    n = min(fixed_point.n_owners, heavy, 40)
    cuts = sorted(data.draw(st.lists(st.integers(0, heavy - n), min_size=n - 1, max_size=n - 1)))
    weights = [1 + end - start for start, end in zip([0, *cuts], [*cuts, heavy - n], strict=True)]
    assert sum(weights) == heavy
    total = _total(fixed_point, [(_update([0] * N, weight), WEIGHT_BOUND) for weight in weights], WEIGHT_BOUND)
    assert total.weight == heavy
    assert not total.weighted_sum.any()


@settings(deadline=None, max_examples=150)
@given(data=st.data(), fixed_point=_fixed_points(most_owners=12), order=st.randoms())
def test_the_mean_is_the_exact_one_to_a_unit_an_update_in_any_order(
    data: Any, fixed_point: FixedPoint, order: Any
) -> None:
    drawn = [data.draw(_updates(fixed_point)) for _ in range(data.draw(st.integers(1, fixed_point.n_owners)))]
    weight_bound = max(asked.weight_bound for _, asked in drawn)
    assume(sum(update.weight for update, _ in drawn) <= WEIGHT_BOUND)
    sent = [(update, weight_bound) for update, _ in drawn]
    total = _total(fixed_point, sent, weight_bound)
    weight = sum(update.weight for update, _ in drawn)
    assert total.weight == weight
    for position in range(N):
        exact = sum(Fraction(float(update.delta[position])) * update.weight for update, _ in drawn)
        slack = len(drawn) * Fraction(fixed_point.step) * weight_bound
        assert abs(Fraction(float(total.weighted_sum[position])) - exact) < slack
    shuffled = list(enumerate(sent))
    order.shuffle(shuffled)
    again = _total(fixed_point, [one for _, one in shuffled], weight_bound, [number for number, _ in shuffled])
    assert again.weighted_sum.tobytes() == total.weighted_sum.tobytes()


def _total(
    fixed_point: FixedPoint, sent: list[tuple[Update, int]], weight_bound: int, numbers: Sequence[int] | None = None
) -> Total:
    """The opened plain sum of updates, each of an owner with a number for a name."""
    names = [str(number) for number in numbers or range(len(sent))]
    combiner = PlainCombiner(fixed_point, weight_bound, names)
    for name, (update, bound) in zip(names, sent, strict=True):
        payload, proof = PlainSealer(fixed_point, 5).seal(update, _asked(name, weight_bound=bound), b"")
        assert proof == b""
        combiner.add(_sealed(payload, name))
    return combiner.open()


def _sealed(payload: Any, owner: str = "a") -> Sealed:
    return Sealed(owner, 1, 1, True, 0.0, None, payload=payload)


# Rounding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0625, 0.3, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("whole", [0, 5, -1, -6])
def test_rounding_is_unbiased_over_seeds(fraction: float, whole: int) -> None:
    """The mean of 200 x 400 draws is within five deviations of the value and the last bit of a draw."""
    fixed_point = replace(DEFAULT, n_values=400)
    value = np.float32((whole + fraction) * fixed_point.step)
    update = _update(np.full(400, value))
    exact = float(_exact(fixed_point, value, 32, 32))
    found = [fixed_point.signed(fixed_point.encode(update, _asked(), seed))[:400].mean() for seed in range(200)]
    share = exact - math.floor(exact)
    deviation = math.sqrt(share * (1 - share) / (200 * 400))
    assert abs(np.mean(found) - exact) < 5 * deviation + 2.0**-16


def test_rounding_of_small_weights_is_unbiased_too() -> None:
    """An update that is less than a unit after it is weighed does not vanish from the mean of many rounds."""
    fixed_point = replace(DEFAULT, n_values=1000)
    update = _update(np.full(1000, 0.25 * fixed_point.step), 8)
    rounds = [fixed_point.signed(fixed_point.encode(update, _asked(round=r), 0))[:1000].mean() for r in range(1, 101)]
    assert np.mean(rounds) == pytest.approx(1 / 16, rel=0.05)


def test_draws_cover_all_of_16_bits_evenly() -> None:
    """Half a unit is rounded up by half of all draws, and a unit over 2**16 by one in so many."""
    n = 2**20
    fixed_point = replace(DEFAULT, n_values=n)
    values = np.tile(np.array([0.5, 2.0**-16], np.float32) * np.float32(fixed_point.step), n // 2)
    units = fixed_point.signed(fixed_point.encode(_update(values), _asked(), 1))[:n]
    assert units[::2].mean() == pytest.approx(0.5, abs=0.004)
    assert 1 <= units[1::2].sum() <= 25


def test_the_same_owner_round_and_seed_round_alike_and_no_other() -> None:
    fixed_point = replace(DEFAULT, n_values=64)
    update = _update(np.full(64, 0.5 * fixed_point.step))
    cases = [("a", 1, 0), ("a", 2, 0), ("b", 1, 0), ("a", 1, 1), ("1", 11, 0), ("11", 1, 0)]
    found = {case: fixed_point.encode(update, _asked(*case[:2]), case[2]).tobytes() for case in cases}
    assert len(set(found.values())) == len(cases)
    assert found == {case: fixed_point.encode(update, _asked(*case[:2]), case[2]).tobytes() for case in cases}


def test_rounding_does_not_depend_on_how_many_owners_there_are() -> None:
    update = _update(np.linspace(-1, 1, N))
    few, many = (replace(DEFAULT, n_owners=n) for n in (3, 2000))
    assert few.encode(update, _asked(), 0).tobytes() == many.encode(update, _asked(), 0).tobytes()


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_owners", "clip", "precision"),
    [(3, 8.0, 1e-9), (19_000, 8.0, 1e-5), (256, 8.0, 2.0**-20), (1, 2.0**31, 1.0), (7, 1000.0, 1e-6)],
)
def test_sums_beyond_32_bits_are_refused_and_the_remedies_are_true(
    n_owners: int, clip: float, precision: float
) -> None:
    with pytest.raises(ConfigError) as error:
        FixedPoint(N, n_owners, clip, precision)
    assert f"{clip:g}" in error.value.found
    assert f"{precision:g}" in error.value.found
    assert f"{n_owners} owners" in error.value.found
    said = re.search(r"protection\.precision to (\S+),", error.value.remedy)
    assert said is not None
    assert FixedPoint(N, n_owners, clip, float(said[1])).ring is np.uint32


def test_the_last_that_fits_and_the_first_that_does_not() -> None:
    """255 x 8 x 2**20 is below 2**31, 256 times is not."""
    assert FixedPoint(N, 255, 8.0, 2.0**-20).sum_bound == 255 * 2**23
    with pytest.raises(ConfigError):
        FixedPoint(N, 256, 8.0, 2.0**-20)


@pytest.mark.parametrize(("clip", "precision"), [(1e300, 1e-300), (1e300, 1.0), (1.0, 1e-300), (1e-300, 5e-324)])
def test_settings_beyond_reason_are_refused_as_settings(clip: float, precision: float) -> None:
    """The configuration takes any finite positive number."""
    with pytest.raises(ConfigError):
        FixedPoint(N, 3, clip, precision)


BEYOND = np.nextafter(np.float32(8), np.float32(9))


@pytest.mark.parametrize(
    "values",
    [[np.nan], [np.inf], [-np.inf], [BEYOND], [-BEYOND], [3e38], [-3e38], [np.inf, -np.inf], [np.nan, np.inf],
     [np.inf, 3e38], [-3e38, 3e38]],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("at", [0, 1])
def test_an_update_beyond_reason_is_refused(values: list[float], at: int) -> None:
    delta = np.zeros(N, np.float32)
    delta[at : at + len(values)] = values
    with pytest.raises(UpdateRefused, match=r"non-finite|protection\.clip"):
        DEFAULT.encode(_update(delta), _asked(), 0)


def test_a_refusal_of_large_values_names_the_setting() -> None:
    with pytest.raises(UpdateRefused, match=r"8, protection\.clip") as error:
        DEFAULT.encode(_update([0, 0, 0, 9]), _asked(), 0)
    assert "protection.clip" in error.value.remedy


def test_what_lies_on_the_clip_is_taken() -> None:
    assert _encoded(DEFAULT, _update([8, -8, 8, -8]))[:N] == [2**20, -(2**20), 2**20, -(2**20)]


def test_a_value_that_is_beyond_the_clip_in_float64_only_is_refused_or_in_bounds() -> None:
    """float32(0.1) is above 0.1, by more than a step of 2**-30: no owner's sum may be one unit beyond its bound."""
    fixed_point = FixedPoint(1, n_owners=19, clip=0.1, precision=1e-9)
    assert float(np.float32(0.1)) > 0.1
    try:
        payload = fixed_point.encode(_update([0.1]), _asked(), 0)
    except UpdateRefused:
        return
    assert abs(int(fixed_point.signed(payload)[0])) <= fixed_point.value_bound
    fixed_point.check_readable(payload)


@pytest.mark.parametrize("weight", [0, -1, 33, WEIGHT_BOUND + 1])
def test_a_weight_beyond_its_bound_is_refused(weight: int) -> None:
    with pytest.raises(UpdateRefused, match=f"weight {weight}"):
        DEFAULT.encode(_update([0, 0, 0, 0], weight), _asked(), 0)


@pytest.mark.parametrize("shape", [(N - 1,), (N + 1,), (0,), (N, 1), (1, N), ()])
def test_an_update_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UpdateRefused, match="shape"):
        DEFAULT.encode(Update(np.zeros(shape, np.float32), 1, 1, True), _asked(), 0)


# What the plain server reads ----------------------------------------------------------------------------------------


def _ring(*values: int) -> Payload:
    """Integers in the default ring, whatever their sign."""
    return np.array([value % 2**32 for value in values], dtype=np.uint32)


BAD: dict[str, Any] = {
    "floats": np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
    "signed": _ring(0, 0, 0, 0, 1, 0).view(np.int32),
    "the narrower ring": _ring(0, 0, 0, 0, 1, 0).astype(np.uint16),
    "64 bits": _ring(0, 0, 0, 0, 1, 0).astype(np.uint64),
    "too short": _ring(0, 0, 0, 0, 1),
    "too long": _ring(0, 0, 0, 0, 1, 0, 0),
    "two-dimensional": _ring(0, 0, 0, 0, 1, 0)[None],
    "a list": [0, 0, 0, 0, 1, 0],
    "nothing": None,
    "bytes": b"\0" * 24,
    "no weight": _ring(0, 0, 0, 0, 0, 0),
    "negative weight": _ring(0, 0, 0, 0, -1, 0),
    "negative high limb": _ring(0, 0, 0, 0, 5, -1),
    "too heavy": _ring(0, 0, 0, 0, 1, 16),
    "far too heavy": _ring(0, 0, 0, 0, 0, 2**20),
    "value above its bound": _ring(0, 2**20 + 1, 0, 0, 2, 0),
    "value below its bound": _ring(0, -(2**20) - 1, 0, 0, 2, 0),
    "smallest integer": _ring(-(2**31), 0, 0, 0, 2, 0),
    "limb above its bound": _ring(0, 0, 0, 0, 2**20 + 1, 0),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_the_plain_server_refuses_what_no_sealer_makes(payload: Any) -> None:
    combiner = PlainProtection(DEFAULT, 32).combiner(1, ["a", "b"], lambda messages: {})
    combiner.add(_sealed(DEFAULT.encode(_update([0.5, 0, 0, 0], 32), _asked(), 0)))
    with pytest.raises(UpdateRefused):
        combiner.add(_sealed(payload, "b"))
    assert combiner.n_added == 1
    assert combiner.open().weighted_sum.tolist() == [16.0, 0, 0, 0]


def test_what_lies_on_the_bounds_is_taken() -> None:
    combiner = PlainCombiner(DEFAULT, WEIGHT_BOUND, ["a"])
    combiner.add(_sealed(_ring(2**20, -(2**20), 0, 1, 0, 16)))
    total = combiner.open()
    assert total.weight == WEIGHT_BOUND
    assert total.mean.tolist() == [8.0, -8.0, 0.0, 2.0**-17]


@settings(deadline=None, max_examples=100)
@given(
    payloads=st.lists(
        st.tuples(
            arrays.arrays(
                np.int64,
                N + 2,
                elements=st.integers(-(2**20) - 1, 2**20 + 1) | st.sampled_from([0, 1, 2**31 - 1, -(2**31)]),
                fill=st.nothing(),
            ),
            st.integers(0, 3),
        ),
        max_size=7,
    )
)
def test_whatever_is_sent_the_sum_is_that_of_what_was_taken(payloads: list[tuple[Any, int]]) -> None:
    names = [str(number) for number in range(8)]
    combiner, expected = PlainCombiner(DEFAULT, 2**20, names), [0] * (N + 2)
    honest = _ring(1, 2, 3, 4, 5, 0).view(np.int32).astype(np.int64)
    for name, payload in zip(names, [honest, *(self_or_light(*one) for one in payloads)], strict=False):
        n_before = combiner.n_added
        try:
            combiner.add(_sealed(_ring(*map(int, payload)), name))
        except UpdateRefused:
            assert combiner.n_added == n_before
        else:
            expected = [total + int(value) for total, value in zip(expected, payload, strict=True)]
            assert combiner.n_added == n_before + 1
    assert combiner.n_added <= DEFAULT.n_owners
    weight = expected[N] + expected[N + 1] * 2**20
    if not 1 <= weight <= WEIGHT_BOUND:
        with pytest.raises(RoundAbandoned):
            combiner.open()
        return
    total = combiner.open()
    assert total.weight == weight
    assert total.weighted_sum.tolist() == [value * 2.0**-17 * 2**20 for value in expected[:N]]


def self_or_light(payload: Any, high: int) -> Any:
    """Mostly with a weight that passes, so that values come to the test too."""
    return payload if not high else np.array([*payload[:-1], high])


def test_one_update_more_than_the_ring_holds_is_refused() -> None:
    names = [str(number) for number in range(DEFAULT.n_owners + 1)]
    combiner = PlainCombiner(DEFAULT, 32, names)
    *fitting, last = (_sealed(DEFAULT.encode(_update([8, -8, 8, -8]), _asked(name), 0), name) for name in names)
    for one in fitting:
        combiner.add(one)
    with pytest.raises(UpdateRefused):
        combiner.add(last)
    assert combiner.n_added == DEFAULT.n_owners
    assert combiner.open().mean.tolist() == [8.0, -8.0, 8.0, -8.0]


# Reading a sum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "summed",
    [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, -1, 0],
        [0, 0, 0, 0, 1, 16],
        [5 * 2**20 + 1, 0, 0, 0, 2, 0],
        [0, -5 * 2**20 - 1, 0, 0, 2, 0],
        [0, 0, 0, 0, 5 * 2**20 + 1, -1],
        [0, 0, 0, 0, 2**31 - 1, 2**31 - 1],
    ],
    ids=str,
)
def test_a_sum_that_no_owners_can_have_made_is_not_decoded(summed: list[int]) -> None:
    with pytest.raises(RoundAbandoned):
        DEFAULT.decode(np.array(summed), 32)


def test_a_sum_on_its_bounds_is_decoded() -> None:
    total = DEFAULT.decode(np.array([5 * 2**20, -5 * 2**20, 0, 1, 160, 0]), 32)
    assert total.weight == 160
    assert total.mean.tolist() == [8.0, -8.0, 0.0, 2.0**-17 / 5]
