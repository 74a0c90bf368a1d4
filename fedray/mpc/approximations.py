"""Functions that are not sums and products, of fixed-point shares, with the error of each.

An argument's power of two is found by comparing it with all at once; a polynomial then works on what is left, between
1/2 and 1. Errors are for 20 to 26 fractional bits, and are tested; with fewer they grow as the last place does.

| function | arguments | error |
|---|---|---|
| exp | any; as of -14 it is 0, as of 13 it stays there | 3e-4 of the value, or 4e-6 |
| reciprocal | magnitudes of 2**-8 to 2**12 | 1e-5 of the value, or 4e-6 |
| log | 2**-8 to 2**12 | 1e-4 |
| inverse_square_root | 2**-8 to 2**12 | 1e-4 of the value |
| sigmoid | any | 1e-4 |

Two of these ends depend on the fractional bits. What exp gives must fit, so that it stays where it is as of 12, 11, 9,
8 and 6 with 22 to 26 bits. A magnitude and its reciprocal must be numbers: with 26 bits magnitudes reach to 2**10, with
fewer than 12 to 2**bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from fedray.mpc.comparison import is_negative
from fedray.mpc.party import Party
from fedray.mpc.products import product, scaled
from fedray.mpc.ring import limit
from fedray.mpc.shares import Share

LEAST_POWER, LARGEST_POWER = -8, 12
LEAST_EXPONENT, LARGEST_EXPONENT = -14.0, 13.0
_HALVINGS = 5
_DEGREE = 8
_POWERS = range(LEAST_POWER + 1, LARGEST_POWER)


def largest_exponent(precision: int) -> float:
    """As of which argument exp stays where it is: e to this power is still a number."""
    return min(LARGEST_EXPONENT, math.floor(math.log(limit(precision))))


def multiplied(party: Party, left: Share, right: Share) -> Share:
    """Elementwise product."""
    return product(party, left, right, torch.mul)


def plus(party: Party, share: Share, constant: float) -> Share:
    """A shared tensor plus a public number."""
    return share + party.public(torch.full(tuple(share.shape), constant, dtype=torch.float64))


def times(party: Party, share: Share, constant: float) -> Share:
    """A shared tensor times a public number."""
    return scaled(party, share, torch.tensor(constant, dtype=torch.float64), torch.mul)


def polynomial(party: Party, share: Share, coefficients: Sequence[float]) -> Share:
    """A polynomial, of two coefficients or more from the constant on, by Horner's rule."""
    *lower, before_last, last = coefficients
    value = plus(party, times(party, share, last), before_last)
    for coefficient in reversed(lower):
        value = plus(party, multiplied(party, value, share), coefficient)
    return value


def clamped(party: Party, share: Share, least: float, largest: float) -> Share:
    """A shared tensor within public bounds; both comparisons at once."""
    gaps = [plus(party, share, -least), plus(party, -share, largest)]
    outside = is_negative(party, stacked(gaps))
    excess = multiplied(party, outside, stacked(gaps))
    return share - excess.map(lambda words: words[0]) + excess.map(lambda words: words[1])


def stacked(shares: Sequence[Share]) -> Share:
    """Shares of one shape and precision, along a new first dimension."""
    return Share(
        torch.stack([share.own for share in shares]), torch.stack([share.next for share in shares]), shares[0].precision
    )


def exp(party: Party, share: Share) -> Share:
    """e**x as (e**(x / 32))**32, the inner one by its Taylor polynomial."""
    bounded = clamped(party, share, LEAST_EXPONENT, largest_exponent(party.precision))
    inner = times(party, bounded, 2.0**-_HALVINGS)
    value = polynomial(party, inner, [1 / math.factorial(order) for order in range(7)])
    for _ in range(_HALVINGS):
        value = multiplied(party, value, value)
    return value


def reciprocal(party: Party, share: Share) -> Share:
    """1 / x, of either sign."""
    sign = plus(party, is_negative(party, share).map(lambda words: -2 * words), 1.0)
    reduced, powers = _reduced(party, multiplied(party, sign, share))
    scale = _chosen(party, powers, lambda power: 2.0**-power)
    return multiplied(party, sign, multiplied(party, _fitted(party, reduced, lambda u: 1 / u), scale))


def log(party: Party, share: Share) -> Share:
    """The natural logarithm."""
    reduced, powers = _reduced(party, share)
    return _fitted(party, reduced, np.log) + _chosen(party, powers, lambda power: power * math.log(2))


def inverse_square_root(party: Party, share: Share) -> Share:
    """1 / sqrt(x)."""
    reduced, powers = _reduced(party, share)
    scale = _chosen(party, powers, lambda power: 2.0 ** (-power / 2))
    return multiplied(party, _fitted(party, reduced, lambda u: u**-0.5), scale)


def sigmoid(party: Party, share: Share) -> Share:
    """1 / (1 + e**-x), from that of the magnitude."""
    is_below = is_negative(party, share)
    magnitude = share - multiplied(party, is_below, share.map(lambda words: 2 * words))
    half = times(party, plus(party, exp(party, -magnitude), 1.0), 0.5)
    above = times(party, _fitted(party, half, lambda u: 1 / u), 0.5)
    return above + multiplied(party, is_below, plus(party, above.map(lambda words: -2 * words), 1.0))


def _reduced(party: Party, share: Share) -> tuple[Share, Share]:
    """A positive number as u between 1/2 and 1 times a power of two, and which powers of two it reaches.

    Returns:
        u; and whole numbers with a new first dimension: 1 where the number is not below that power.
    """
    gaps = stacked([plus(party, share, -(2.0**power)) for power in _POWERS])
    reaches = plus(party, -is_negative(party, gaps), 1.0)
    return multiplied(party, share, _chosen(party, reaches, lambda power: 2.0**-power)), reaches


def _chosen(party: Party, reaches: Share, function: Callable[[int], float]) -> Share:
    """A public function of the least power of two above a number, given the powers that it reaches."""
    values = [function(power) for power in (*_POWERS, LARGEST_POWER)]
    steps = torch.tensor([after - before for before, after in pairwise(values)], dtype=torch.float64)
    weighed = scaled(party, reaches, steps.reshape(-1, *[1] * (len(reaches.shape) - 1)), torch.mul)
    return plus(party, weighed.map(lambda words: words.sum(0)), values[0])


def _fitted(party: Party, share: Share, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Share:
    """A smooth function between 1/2 and 1, by its Chebyshev interpolation, in a variable between -1 and 1."""
    nodes = chebyshev.chebpts1(_DEGREE + 1)
    fitted = chebyshev.chebfit(nodes, function((nodes + 3) / 4), _DEGREE)
    centred = plus(party, share.map(lambda words: 4 * words), -3.0)
    return polynomial(party, centred, [float(c) for c in chebyshev.cheb2poly(fitted)])
