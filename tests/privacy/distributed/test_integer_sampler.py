"""Tables of integer noise against their laws at 80 digits, and draws against a slow inversion and an exact sampler."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import opendp.prelude as dp
import pytest
from mpmath import mp
from numpy.typing import NDArray
from scipy import special, stats

from fedray.errors import ConfigError
from fedray.privacy.distributed.sampler import Table, discrete_gaussian, skellam
from fedray.privacy.distributed.streams import Stream

KEY = bytes(range(16))
UNIT = 2**128


def _gaussian_law(sigma: float, largest: int) -> list[mpmath.mpf]:
    """Probabilities of 0 to ``largest``; the normaliser by Poisson summation, a series in exp(-2 pi**2 sigma**2)."""
    exact = mp.mpf(sigma)
    dual = 2 * mp.pi**2 * exact**2
    total = exact * mp.sqrt(2 * mp.pi) * (1 + 2 * mp.fsum(mp.exp(-dual * k * k) for k in range(1, 40)))
    return [mp.exp(-(mp.mpf(k) ** 2) / (2 * exact**2)) / total for k in range(largest + 1)]


def _skellam_law(sigma: float, largest: int) -> list[mpmath.mpf]:
    variance = mp.mpf(sigma**2)
    return [mp.exp(-variance) * mp.besseli(k, variance) for k in range(largest + 1)]


TABLES: dict[str, Callable[[float], Table]] = {
    "gaussian": discrete_gaussian,
    "skellam": lambda sigma: skellam(sigma**2),
}
LAWS = {"gaussian": _gaussian_law, "skellam": _skellam_law}


@pytest.fixture(autouse=True)
def _eighty_digits() -> object:
    with mpmath.workdps(80):
        yield


@pytest.mark.parametrize("name", ["gaussian", "skellam"])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0, 17.3])
def test_every_threshold_is_the_exact_law_to_the_last_of_128_bits(name: str, sigma: float) -> None:
    table = TABLES[name](sigma)
    upper = LAWS[name](sigma, table.largest)
    law = [*upper[:0:-1], *upper]
    cumulative = mp.mpf(0)
    assert len(table.thresholds) == 2 * table.largest
    for threshold, probability in zip(table.thresholds, law[:-1], strict=True):
        cumulative += probability
        assert abs(threshold - cumulative * UNIT) < 1.001
    assert abs(table.variance - mp.fsum(2 * k * k * p for k, p in enumerate(upper))) < 1e-13 * sigma**2


@pytest.mark.parametrize("name", ["gaussian", "skellam"])
def test_the_error_bounds_the_distance_of_the_table_from_the_law(name: str) -> None:
    table = TABLES[name](3.0)
    bounds = [0, *table.thresholds, UNIT]
    upper = LAWS[name](3.0, table.largest)
    found = [mp.mpf(high - low) / UNIT for low, high in pairwise(bounds)]
    law = [*upper[:0:-1], *upper]
    distance = mp.fsum(abs(p - q) for p, q in zip(found, law, strict=True)) / 2 + (1 - mp.fsum(law))
    assert 0 < distance < table.error < 1e-36


@pytest.mark.parametrize("sigma", [300.0, 10_000.0])
def test_large_tables_hold_the_exact_probabilities_too(sigma: float) -> None:
    table = discrete_gaussian(sigma)
    at_zero = table.largest
    for k in (0, 1, 2, int(sigma / 3), int(sigma), int(3.3 * sigma), int(8 * sigma), table.largest - 1):
        probability = table.thresholds[at_zero + k] - table.thresholds[at_zero + k - 1]
        exact = mp.exp(-(mp.mpf(k) ** 2) / (2 * mp.mpf(sigma) ** 2)) / (sigma * mp.sqrt(2 * mp.pi))
        assert abs(probability - exact * UNIT) < 1.001
    assert table.variance == pytest.approx(sigma**2, rel=1e-14)


def test_a_large_skellam_table_holds_the_exact_probabilities_too() -> None:
    table, sigma = skellam(90_000.0), 300
    thresholds = table.thresholds
    for k in (0, 1, 100, 300, 1000, 2400):
        probability = thresholds[table.largest + k] - thresholds[table.largest + k - 1]
        assert abs(probability - mp.exp(-90_000) * mp.besseli(k, 90_000) * UNIT) < 1.001
    assert table.variance == pytest.approx(sigma**2, rel=1e-14)


@pytest.mark.parametrize("make", [lambda: discrete_gaussian(65_536.0), lambda: skellam(2.0**32)])
def test_the_largest_tables_have_the_variance_that_they_should(make: Callable[[], Table]) -> None:
    assert make().variance == pytest.approx(2.0**32, rel=1e-14)


# Draws --------------------------------------------------------------------------------------------------------------


class _Script(Stream):
    """A stream that a test writes: uniform 128-bit numbers, of which draws ask bit by bit."""

    def __init__(self, numbers: Sequence[int], table: Table) -> None:
        super().__init__(KEY)
        self._numbers = numbers
        cells = {threshold >> 112 for threshold in table.thresholds}
        heads = {threshold >> 64 for threshold in table.thresholds}
        unsettled = [number for number in numbers if number >> 112 in cells]
        self._later = [unsettled] + [[number] for number in unsettled if number >> 64 in heads]
        self._is_tie = False

    def bits16(self, n: int) -> NDArray[np.uint16]:
        assert n == len(self._numbers)
        return np.array([number >> 112 for number in self._numbers], dtype=np.uint16)

    def bits64(self, n: int) -> NDArray[np.uint64]:
        asked = self._later.pop(0)
        assert n == len(asked)
        shift, self._is_tie = (0 if self._is_tie else 48), True
        return np.array([(number >> shift) % 2**64 for number in asked], dtype=np.uint64)


@pytest.mark.parametrize(
    "make", [lambda: discrete_gaussian(3.0), lambda: skellam(2.0), lambda: discrete_gaussian(50.0)]
)
def test_draws_invert_the_cumulative_law_even_where_128_bits_decide(make: Callable[[], Table]) -> None:
    table = make()
    draw = np.random.default_rng(0)
    numbers = [int.from_bytes(draw.bytes(16), "little") for _ in range(2000)]
    numbers += [
        threshold + step for threshold in table.thresholds for step in (-1, 0, 1) if 0 <= threshold + step < UNIT
    ]
    numbers += [0, UNIT - 1]
    found = table.draw(_Script(numbers, table), len(numbers))
    assert found.tolist() == [bisect_right(table.thresholds, number) - table.largest for number in numbers]


def test_draws_of_a_key_are_a_function_of_it() -> None:
    table = discrete_gaussian(300.0)
    first, again, other = (table.draw(Stream(key), 1000) for key in (KEY, KEY, bytes(16)))
    assert (first == again).all()
    assert np.mean(first == other) < 0.05


def test_streams_without_a_key_differ_and_none_shows_its_key() -> None:
    assert (Stream().bits64(4) != Stream().bits64(4)).all()
    assert not any(isinstance(value, bytes) for value in vars(Stream(KEY)).values())


def _counts(draws: NDArray[np.int32], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.bincount(np.searchsorted(edges, draws), minlength=len(edges) + 1)


@pytest.mark.parametrize("name", ["gaussian", "skellam"])
@pytest.mark.parametrize("sigma", [1.0, 3.0, 30.0, 300.0, 3000.0])
def test_draws_follow_the_law(name: str, sigma: float) -> None:
    """Chi-squared in up to 120 classes, for one key."""
    n = 400_000
    table = TABLES[name](sigma)
    stream = Stream(KEY)
    draws = np.concatenate([table.draw(stream, n // 10) for _ in range(10)])
    edges = np.unique(np.round(np.linspace(-3 * sigma, 3 * sigma, 119)))
    support = np.arange(-12 * int(np.ceil(sigma)), 12 * int(np.ceil(sigma)) + 1)
    law = _float_law(name, support, sigma)
    expected = np.bincount(np.searchsorted(edges, support), weights=law / law.sum(), minlength=len(edges) + 1)
    assert stats.chisquare(_counts(draws, edges), n * expected).pvalue > 1e-4
    assert draws.var() == pytest.approx(table.variance, rel=6 * np.sqrt(2 / n))


def _float_law(name: str, support: NDArray[np.int64], sigma: float) -> NDArray[np.float64]:
    """Up to a factor, by scipy."""
    if name == "gaussian":
        return np.exp(-(support**2) / (2 * sigma**2))
    return np.asarray(special.ive(np.abs(support), sigma**2))


@pytest.mark.parametrize("sigma", [1.5, 3.0, 40.0])
def test_draws_are_those_of_an_exact_sampler(sigma: float) -> None:
    """OpenDP's, by the algorithm of Canonne et al. 2020: rational arithmetic, no table. Fails once in 1e9 runs."""
    dp.enable_features("contrib")
    n = 30_000
    space = dp.vector_domain(dp.atom_domain(T="i32")), dp.l2_distance(T=float)
    exact = np.array(dp.m.make_gaussian(*space, scale=sigma)([0] * n))
    ours = discrete_gaussian(sigma).draw(Stream(KEY), n)
    edges = np.unique(np.round(np.linspace(-2.5 * sigma, 2.5 * sigma, 19)))
    found = stats.chi2_contingency([_counts(exact, edges), _counts(ours, edges)])
    assert found.pvalue > 1e-9


@pytest.mark.parametrize("sigma", [0.01, 1e5, float("nan")])
def test_noise_beyond_what_tables_are_made_for_is_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="integer steps"):
        discrete_gaussian(sigma)
    with pytest.raises(ConfigError, match="integer steps"):
        skellam(sigma**2)


def test_the_variance_of_a_small_law_by_hand() -> None:
    """Weights 2 and 1: -1, 0, 1 with 1/4, 1/2, 1/4."""
    table = Table([2, 1])
    assert [Fraction(threshold, UNIT) for threshold in table.thresholds] == [Fraction(1, 4), Fraction(3, 4)]
    assert table.variance == 0.5
