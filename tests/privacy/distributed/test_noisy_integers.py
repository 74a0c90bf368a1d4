"""Updates as noisy integers: what comes back is the sum and the noise that was put in, in the ring that was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import assignment, plan

from fedray import seeds
from fedray.errors import ConfigError, RoundAbandoned, UpdateRefused
from fedray.privacy.distributed import NoisyIntegers, choose
from fedray.privacy.distributed.laws import DiscreteGaussianNoise, Noise, SkellamNoise
from fedray.privacy.distributed.rotation import Rotation
from fedray.privacy.distributed.rounding import rounded
from fedray.privacy.distributed.streams import Stream
from fedray.privacy.distributed.wrapping import largest_sum
from fedray.protection.encoding import Encoding
from fedray.protection.fixed_point import PIECE
from fedray.protection.plain import PlainCombiner, PlainSealer
from fedray.values import Assignment, Sealed, Total, Update

KEY = bytes(range(16))
N = 1000
NARROW = NoisyIntegers(N, 8, 2.0**-8, DiscreteGaussianNoise(20.0), KEY, unsafe_replay_seed=5)
WIDE = NoisyIntegers(N, 8, 2.0**-18, SkellamNoise(300.0), KEY, unsafe_replay_seed=5)


def _asked(owner: str = "a", round: int = 1) -> Assignment:
    return assignment(plan(round=round), owner, weight_bound=1)


def _update(values: NDArray[np.float32], weight: int = 1) -> Update:
    return Update(values, weight, 3, True)


def _vectors(n: int, seed: int = 0, length: int = N) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((n, length))
    drawn[0] = np.eye(1, length)[0]
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _summed(encoding: Encoding, vectors: NDArray[np.float32]) -> Total:
    """By the halves of plain protection."""
    names = [f"owner {k}" for k in range(len(vectors))]
    sealer, combiner = PlainSealer(encoding, 0), PlainCombiner(encoding, 1, names)
    for name, vector in zip(names, vectors, strict=True):
        payload, _ = sealer.seal(_update(vector), _asked(name), b"")
        combiner.add(Sealed(name, 1, 3, True, 0.0, None, payload=payload))
    return combiner.open()


def _noise(encoding: NoisyIntegers, owner: str) -> NDArray[np.int64]:
    """An owner's noise, drawn once more from the replayed key."""
    stream = Stream(seeds.key(5, "noise", 1, owner))
    return encoding.noise.table.draw(stream, encoding.length - 1).astype(np.int64)


def test_the_two_encodings_of_these_tests_take_different_rings() -> None:
    assert NARROW.ring is np.uint16
    assert WIDE.ring is np.uint32
    assert NARROW.length == WIDE.length == 1025


@pytest.mark.parametrize("encoding", [NARROW, WIDE])
def test_an_encoding_is_the_one_written_out(encoding: NoisyIntegers) -> None:
    vector = _vectors(2)[1]
    coins = Stream(seeds.key(5, "coins", 1, "a"))
    rotated = Rotation(KEY, N).forward(vector)
    integers = rounded(rotated, 1 / encoding.granularity, encoding.squared_l2_bound, coins).astype(np.int64)
    expected = [*(integers + _noise(encoding, "a")).tolist(), 1]
    size = 2 ** (8 * np.dtype(encoding.ring).itemsize)
    assert encoding.encode(_update(vector), _asked(), 0).tolist() == [value % size for value in expected]


@pytest.mark.parametrize("encoding", [NARROW, WIDE])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_opened_sum_is_that_of_vectors_and_noise_but_for_rounding(encoding: NoisyIntegers, n: int) -> None:
    """In each rotated coordinate, every owner's rounding moves the sum by less than one step."""
    vectors = _vectors(n)
    total = _summed(encoding, vectors)
    assert total.weight == n
    assert total.weighted_sum.shape == (N,)
    assert total.weighted_sum.dtype == np.float64
    noise = sum(_noise(encoding, f"owner {k}") for k in range(n)) * encoding.granularity
    expected = vectors.astype(float).sum(axis=0) + encoding.rotation.backward(noise)
    rest = np.linalg.norm(total.weighted_sum - expected)
    assert 0 < rest < n * math.sqrt(1024) * encoding.granularity


@pytest.mark.parametrize("law", ["discrete_gaussian", "skellam"])
def test_the_noise_of_the_sum_has_the_variance_that_is_reported(law: str) -> None:
    """Six standard errors over 2**15 values; all there is beside the sum is noise."""
    encoding = choose(2**15, 6, law, 0.3, KEY, unsafe_replay_seed=1)  # type: ignore[arg-type]
    assert encoding.noise_variance == pytest.approx(0.09, rel=1e-9)
    vectors = _vectors(6, length=2**15)
    error = _summed(encoding, vectors).weighted_sum - vectors.astype(float).sum(axis=0)
    assert error.var() == pytest.approx(6 * encoding.noise_variance, rel=6 * math.sqrt(2 / 2**15))
    assert abs(error.mean()) < 6 * math.sqrt(6 * 0.09 / 2**15)


def test_the_rounding_error_is_within_what_is_reported() -> None:
    """Noise subtracted; its smallest deviation, where rounding weighs most."""
    encoding = replace(NARROW, noise=DiscreteGaussianNoise(3.0))
    vector = _vectors(2)[1]
    values = encoding.signed(encoding.encode(_update(vector), _asked(), 0))[:-1] - _noise(encoding, "a")
    error = values - Rotation(KEY, N).forward(vector.astype(float)) / encoding.granularity
    assert 0 < np.mean(error**2) / 9 < encoding.rounding_error == pytest.approx(0.0706, rel=1e-3)


def test_pieces_follow_each_other_and_make_up_the_whole() -> None:
    encoding = replace(NARROW, n_values=PIECE + 1)
    update = _update(_vectors(1, length=PIECE + 1)[0])
    found = [(part, piece.copy()) for part, piece in encoding.pieces(update, _asked(), 0)]
    ends = [0] + [part.stop for part, _ in found]
    assert [part.start for part, _ in found] == ends[:-1]
    assert ends[-1] == encoding.length == 2 * PIECE + 1
    assert {piece.dtype for _, piece in found} == {np.dtype(np.int32)}
    whole = np.concatenate([piece for _, piece in found])
    assert (whole.astype(np.uint16) == encoding.encode(update, _asked(), 0)).all()


def test_noise_is_fresh_unless_a_test_asks_for_replay() -> None:
    update = _update(_vectors(1)[0])

    def encoded(seed: int | None, owner: str = "a", round: int = 1) -> NDArray[np.int16]:
        encoding = replace(WIDE, unsafe_replay_seed=seed)
        return encoding.signed(encoding.encode(update, _asked(owner, round), 0))[:-1].astype(np.int64)

    assert (encoded(3) == encoded(3)).all()
    for first, second in [
        (encoded(None), encoded(None)),
        (encoded(3), encoded(4)),
        (encoded(3), encoded(3, "b")),
        (encoded(3), encoded(3, round=2)),
    ]:
        assert (first - second).std() == pytest.approx(300 * math.sqrt(2), rel=0.15)


# The ring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [DiscreteGaussianNoise(3.0), SkellamNoise(3.0)])
@pytest.mark.parametrize("make", [np.ones, lambda n: np.eye(1, n)[0]])
def test_sums_stay_within_the_bound_as_often_as_it_says(
    noise: Noise, make: Callable[[int], NDArray[np.float64]]
) -> None:
    """2000 rotations of five equal vectors, with the failure that is allowed raised to one in ten."""
    n_owners, length, norm, n = 5, 16, 20.0, 2000
    bound = largest_sum(norm, length, n_owners, noise, probability=0.1)
    vector = make(length) * norm / np.linalg.norm(make(length))
    stream = Stream(KEY)
    passed = 0
    for trial in range(n):
        rotated = Rotation(trial.to_bytes(16, "little"), length).forward(n_owners * vector)
        noises = noise.table.draw(stream, n_owners * length).reshape(n_owners, length).sum(axis=0)
        passed += np.abs(np.round(rotated) + noises).max() > bound
    assert passed / n < 0.1
    assert bound < n_owners * (1 + norm) + 6 * 3 * math.sqrt(n_owners)


@pytest.mark.parametrize("noise", [DiscreteGaussianNoise(3.0), DiscreteGaussianNoise(0.7), SkellamNoise(3.0)])
@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_log_moments_are_those_of_the_table_at_most(noise: Noise, rate: float) -> None:
    table = noise.table
    bounds = [0, *table.thresholds, 2**128]
    reach = range(-table.largest, table.largest + 1)
    parts = (float(high - low) * math.exp(rate * k) for k, (low, high) in zip(reach, pairwise(bounds), strict=True))
    found = math.log(math.fsum(parts) / 2**128)
    assert found <= noise.log_moment(rate) * (1 + 1e-9)
    assert found == pytest.approx(noise.log_moment(rate), rel=3e-3)


def test_the_bound_by_hand() -> None:
    """One owner, one coordinate, norm 0: log(2 / p) = 18 for p = 2 exp(-18), so 1 + sqrt(2 * 18) * 5 = 31."""
    assert largest_sum(0.0, 1, 1, DiscreteGaussianNoise(5.0), probability=2 * math.exp(-18) * (1 + 1e-12)) == 31


def test_a_sum_is_read_with_its_sign_in_either_ring() -> None:
    for encoding, value in ((NARROW, -(2**15)), (WIDE, -(2**31))):
        ring_sum = np.zeros(encoding.length, dtype=encoding.ring)
        ring_sum[0] = value % 2 ** (8 * ring_sum.itemsize)
        assert encoding.signed(ring_sum)[0] == value


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "weight", "words"),
    [
        (_vectors(1)[0][:-1], 1, "shape"),
        (_vectors(1)[0], 2, "weight 2"),
        (_vectors(2)[1] * np.float32(1.00001), 1, "norm 1.0000"),
        (_vectors(1)[0] * np.float32(np.nan), 1, "non-finite"),
        (np.where(_vectors(1)[0] > 0, np.float32(np.inf), np.float32(0)), 1, "non-finite"),
    ],
)
def test_updates_that_break_the_promise_are_refused(values: NDArray[np.float32], weight: int, words: str) -> None:
    for method in (NARROW.require, lambda update, _: NARROW.encode(update, _asked(), 0)):
        with pytest.raises(UpdateRefused, match=words):
            method(_update(values, weight), 1)


def test_a_norm_of_one_is_accepted_however_it_was_rounded() -> None:
    for seed in range(20):
        NARROW.require(_update(_vectors(2, seed)[1] * np.float32(1 + 5e-7)), 1)


def test_payloads_of_another_make_are_refused() -> None:
    payload = NARROW.encode(_update(_vectors(1)[0]), _asked(), 0)
    NARROW.check_readable(payload)
    for wrong in (payload[:-1], payload.astype(np.uint32), payload.view(np.int16)):
        with pytest.raises(UpdateRefused, match="of shape"):
            NARROW.check_readable(wrong)
    payload[-1] = 2
    NARROW.check(payload)
    with pytest.raises(UpdateRefused, match="counts as 2"):
        NARROW.check_readable(payload)


@pytest.mark.parametrize("count", [0, 9, -1])
def test_sums_that_cannot_be_are_abandoned(count: int) -> None:
    summed = np.zeros(NARROW.length, dtype=np.int16)
    summed[-1] = count
    with pytest.raises(RoundAbandoned, match=f"{count} updates"):
        NARROW.decode(summed, 1)


@pytest.mark.parametrize(
    "change",
    [{"noise": DiscreteGaussianNoise(2.9)}, {"granularity": 2.0**-31}, {"granularity": 2.0**-30, "n_owners": 100}],
)
def test_encodings_that_no_ring_holds_or_with_too_little_noise_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(NARROW, **change)  # type: ignore[arg-type]
