"""Integers drawn from a symmetric law by inverting its cumulative distribution, whose values are held to 128 bits.

A draw is the number of thresholds that a uniform 128-bit number reaches. Its first 16 bits settle most draws by one
look into a guide table (Chen and Asau 1974, *On Generating Random Variates from an Empirical Distribution*); 48 more
bits settle all but one in 2**40 of the others; 64 more settle those. Nothing is drawn from floating-point weights.

``error`` bounds the total variation distance of one draw from the exact law: cutting the tails takes 2**-159, building
the weights less, rounding thresholds down half a unit of 2**-128 an entry. If all draws of a mechanism together are
within e of exact ones, and it is (epsilon, delta)-private with those, then it is
(epsilon, delta + (1 + exp(epsilon)) * e)-private.

The time of a draw depends on what is drawn: an owner's noise is not safe from whoever can time its processor closely.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.privacy.distributed.streams import Stream

LARGEST_SIGMA = 2.0**16
"""In integer steps. Tables beyond take seconds to build and draw slowly."""
SMALLEST_SIGMA = 2.0**-4

_TAIL_BITS = 160
"""What is cut off on one side is below 2**-160."""
_THRESHOLD_BITS = 128
_WEIGHT_BITS = 256
_OPEN = np.int32(-(2**31))
"""Marks a cell of the guide table that holds a threshold."""


class Table:
    """A symmetric law on the integers from ``-largest`` to ``largest``, ready to be drawn from.

    Args:
        weights: of 0, 1, ..., ``largest``: positive integers, proportional to the probabilities.

    Attributes:
        largest: largest integer that can be drawn.
        variance: of the law.
        error: bound on the total variation distance of one draw from the exact law.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.largest = len(weights) - 1
        total = 2 * sum(weights) - weights[0]
        self.variance = 2 * sum(k * k * weight for k, weight in enumerate(weights)) / total
        self.error = (2 * self.largest + 1) * 2.0**-_THRESHOLD_BITS
        sums = accumulate(chain(weights[:0:-1], weights[:-1]))
        packed = b"".join(((part << _THRESHOLD_BITS) // total).to_bytes(16, "little") for part in sums)
        words = np.frombuffer(packed, dtype="<u8").reshape(-1, 2)
        self._low, self._high = np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])
        self._guide = self._guided()

    def _guided(self) -> NDArray[np.int32]:
        """What each 16-bit word settles, shape ``(65536,)``."""
        cells = (self._high >> np.uint64(48)).astype(np.intp)
        guide = (np.searchsorted(cells, np.arange(2**16)) - self.largest).astype(np.int32)
        guide[cells] = _OPEN
        return guide

    @property
    def thresholds(self) -> list[int]:
        """Multiples of 2**-128: the probability of at most ``-largest``, of one more, ..., of ``largest - 1``."""
        return [(int(high) << 64) + int(low) for high, low in zip(self._high, self._low, strict=True)]

    def draw(self, stream: Stream, n: int) -> NDArray[np.int32]:
        """``n`` independent integers, shape ``(n,)``."""
        words = stream.bits16(n)
        drawn = np.take(self._guide, words)
        unsettled = np.flatnonzero(drawn == _OPEN)
        if len(unsettled):
            drawn[unsettled] = self._settled(words[unsettled].astype(np.uint64) << np.uint64(48), stream)
        return drawn

    def _settled(self, words: NDArray[np.uint64], stream: Stream) -> NDArray[np.int32]:
        """The draws that begin with these words, of which 16 bits are drawn already."""
        words = words | (stream.bits64(len(words)) >> np.uint64(16))
        reached = np.searchsorted(self._high, words, side="right")
        for position in np.flatnonzero(self._high[reached - 1] == words):
            first = np.searchsorted(self._high, words[position])
            tied = self._low[first : reached[position]]
            reached[position] = first + np.count_nonzero(tied <= stream.bits64(1))
        return (reached - self.largest).astype(np.int32)


@lru_cache(maxsize=8)
def discrete_gaussian(sigma: float) -> Table:
    """The law with probabilities proportional to ``exp(-k**2 / (2 * sigma**2))`` (Canonne et al. 2020).

    Weights follow from ``w[k + 1] = w[k] * r[k]`` and ``r[k + 1] = r[k] * exp(-1 / sigma**2)`` in integers of 256 bits.
    Rounding down puts r[k] off by at most 2k + 1 units and w[k] by (k + 1)**2, so all weights of a table together by
    less than 2**-180 of their sum.

    Args:
        sigma: in integer steps.

    Raises:
        ConfigError: sigma is beyond what tables are made for.
    """
    _require(sigma)
    with localcontext(prec=110):
        exact = (-1 / (2 * Decimal(sigma) ** 2)).exp()
        ratio = int(exact * 2**_WEIGHT_BITS)
    shrink = ratio * ratio >> _WEIGHT_BITS
    weights = [1 << _WEIGHT_BITS]
    for _ in range(math.ceil(sigma * math.sqrt(2 * _TAIL_BITS * math.log(2)))):
        weights.append(weights[-1] * ratio >> _WEIGHT_BITS)
        ratio = ratio * shrink >> _WEIGHT_BITS
    return Table(weights)


@lru_cache(maxsize=8)
def skellam(variance: float) -> Table:
    """The law of the difference of two Poisson variables of mean ``variance / 2``: ``exp(-variance) * I_k(variance)``.

    Weights follow from ``I[k - 1] = I[k + 1] + 2 * k / variance * I[k]``, downwards from 0 and 1 at the end (Miller's
    algorithm; Olver 1964). All terms are positive, so rounding grows by a unit of 2**-190 a step only; starting from 0
    puts each probability off by at most that of the first integer left out.

    Args:
        variance: in squared integer steps.

    Raises:
        ConfigError: the deviation is beyond what tables are made for.
    """
    _require(math.sqrt(variance))
    numerator, denominator = variance.as_integer_ratio()
    largest = _skellam_end(variance)
    weights = [0, 1 << 192]
    for k in range(largest, 0, -1):
        weights.append(weights[-2] + 2 * k * denominator * weights[-1] // numerator)
    return Table(weights[:0:-1])


def _skellam_end(variance: float) -> int:
    """The first integer that draws reach with a probability below 2**-160, by Chernoff's bound."""

    def is_rare(n: int) -> bool:
        root = math.hypot(variance, n)
        return n * n / (root + variance) - n * math.asinh(n / variance) <= -_TAIL_BITS * math.log(2)

    return bisect_left(range(300 + 20 * math.ceil(math.sqrt(variance))), True, lo=1, key=is_rare)


def _require(sigma: float) -> None:
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise ConfigError(
            f"noise of {sigma:g} integer steps",
            f"{SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g} steps",
            "take a coarser granularity for more noise, a finer one for less",
        )
