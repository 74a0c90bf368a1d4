"""Stochastic rounding to integers, repeated until the norm is within a bound: what one owner adds is then bounded.

Kairouz, Liu, Steinke 2021, *The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation*, Algorithm 1 (conditional randomised rounding) and Theorem 1, with bias beta = exp(-1/2): every try is
within the bound with a probability of at least 1 - beta. The bound is kept in integers, so that no rounding of
floating-point numbers can pass it. Deviation: coins have 16 bits, so a coordinate is off by at most 2**-17 in the mean.

The condition alone shifts the mean of the whole vector by at most ``1 / (2 * sqrt(1 - beta))`` = 0.8 steps in L2 norm
(Cauchy-Schwarz: along any direction the rounding error has a variance of at most 1/4).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedray.errors import UpdateRefused
from fedray.privacy.distributed.rotation import Reals
from fedray.privacy.distributed.streams import Stream
from fedray.protection.fixed_point import PIECE

BETA = math.exp(-0.5)
"""Largest probability that a try is thrown away."""
MOST_TRIES = 200
"""A vector within its norm takes more with a probability below 1e-43."""


def squared_l2_bound(norm: float, length: int) -> int:
    """Largest squared L2 norm of a rounded vector.

    Args:
        norm: bound on the L2 norm before rounding, in integer steps.
        length: coordinates.
    """
    surely = (norm + math.sqrt(length)) ** 2
    likely = norm**2 + length / 4 + math.sqrt(2 * math.log(1 / BETA)) * (norm + math.sqrt(length) / 2)
    return math.floor(min(surely, likely))


def l1_bound(squared_l2: int, length: int) -> float:
    """Largest L1 norm of an integer vector of that squared L2 norm: an integer is at most its square."""
    return min(math.sqrt(length * squared_l2), squared_l2)


def rounded(values: Reals, scale: float, squared_bound: int, stream: Stream) -> NDArray[np.int32]:
    """``values * scale`` as random integers of that mean, whose squared L2 norm is within the bound; shape ``(n,)``.

    Args:
        values: finite, shape ``(n,)``; ``scale`` times their L2 norm is below 2**31.
        scale: integer steps in 1.
        squared_bound: of ``squared_l2_bound``.
        stream: coins.

    Raises:
        UpdateRefused: the vector is longer than the bound was made for.
    """
    integers = np.empty(len(values), dtype=np.int32)
    for _ in range(MOST_TRIES):
        if _round_into(integers, values, scale, stream) <= squared_bound:
            return integers
    raise UpdateRefused("a vector whose rounding is never within its bound", "a norm of at most 1", "clip the update")


def _round_into(integers: NDArray[np.int32], values: Reals, scale: float, stream: Stream) -> int:
    """One try, piece by piece; its squared L2 norm."""
    squared = 0
    for start in range(0, len(values), PIECE):
        part = slice(start, start + PIECE)
        scaled = np.multiply(values[part], scale, dtype=np.float64)
        scaled += (stream.bits16(len(scaled)) + 0.5) * 2.0**-16
        whole = np.floor(scaled, out=scaled).astype(np.int64)
        integers[part] = whole
        squared += int(np.dot(whole, whole))
    return squared
