"""The granularity, and with it the ring, that suits a federation and its noise.

Finer steps cost nothing but width: rounding adds less to what one owner can contribute. So the 16-bit ring gets the
finest granularity that it holds; where that is still too coarse, the 32-bit ring gets one that makes rounding
negligible, and no finer, since tables of noise grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedray.errors import ConfigError
from fedray.privacy.distributed import rounding, wrapping
from fedray.privacy.distributed.laws import LAWS, LawName, Noise
from fedray.privacy.distributed.noisy_integers import FINEST, NORM_BOUND, SMALLEST_SIGMA, NoisyIntegers
from fedray.protection.fixed_point import power_of_two_from

MOST_INFLATION = 1.05
"""What rounding may add to an owner's norm, as a factor, for the sake of the 16-bit ring."""
SMALL_INFLATION = 1.01
"""What it adds in the 32-bit ring."""
AMPLE_SIGMA = 32.0
LARGEST_SIGMA = 2.0**14
"""Noise of one owner in the 32-bit ring is between these, in integer steps, unless the ring forbids."""


def choose(
    n_values: int,
    n_owners: int,
    noise: LawName,
    local_sigma: float,
    rotation_key: bytes,
    unsafe_replay_seed: int | None = None,
) -> NoisyIntegers:
    """The encoding in which each owner adds noise of deviation ``local_sigma`` to a vector of norm 1.

    Args:
        n_values: length of an update.
        n_owners: most updates in one sum.
        noise: its law.
        local_sigma: deviation of one owner's noise, in units of the norm that updates are clipped to.
        rotation_key: 16 bytes that the rotation is drawn from; public.
        unsafe_replay_seed: see ``NoisyIntegers``.

    Raises:
        ConfigError: no ring holds the sum of so many owners at 3 integer steps of so little noise.
    """
    length = power_of_two_from(n_values)
    law = LAWS[noise]
    granularity = _narrow(length, n_owners, law, local_sigma) or _wide(length, n_owners, law, local_sigma)
    if granularity is None:
        raise ConfigError(
            f"noise of {local_sigma:.3g} of the clipping norm from each of {n_owners} owners",
            f"at least {SMALLEST_SIGMA:g} integer steps of it where sums fit into 32 bits",
            "take fewer owners a round, or more noise: a smaller epsilon",
        )
    return NoisyIntegers(
        n_values, n_owners, granularity, law(local_sigma / granularity), rotation_key, unsafe_replay_seed
    )


def inflation(granularity: float, length: int) -> float:
    """Largest norm of an owner's rounded vector over that of its vector."""
    return granularity * math.sqrt(rounding.squared_l2_bound(NORM_BOUND / granularity, length))


def _narrow(length: int, n_owners: int, law: Callable[[float], Noise], local_sigma: float) -> float | None:
    """The finest granularity of the 16-bit ring, if it is fine enough."""
    finest = _finest(16, length, n_owners, law, local_sigma)
    return finest if finest and inflation(finest, length) <= MOST_INFLATION else None


def _wide(length: int, n_owners: int, law: Callable[[float], Noise], local_sigma: float) -> float | None:
    """The coarsest granularity that is ample, or the finest that the 32-bit ring holds."""
    finest = _finest(32, length, n_owners, law, local_sigma)
    if finest is None:
        return None
    ample = _smallest(lambda step: inflation(step, length) > SMALL_INFLATION, FINEST, 1.0)
    return max(finest, min(ample, local_sigma / AMPLE_SIGMA), local_sigma / LARGEST_SIGMA)


def _finest(bits: int, length: int, n_owners: int, law: Callable[[float], Noise], local_sigma: float) -> float | None:
    """The smallest step in which sums fit and noise is at least three steps, if there is one."""

    def fits(step: float) -> bool:
        return wrapping.largest_sum(NORM_BOUND / step, length, n_owners, law(local_sigma / step)) < 1 << (bits - 1)

    coarsest = local_sigma / (SMALLEST_SIGMA * (1 + 1e-9))
    return _smallest(fits, FINEST, coarsest) if coarsest >= FINEST and fits(coarsest) else None


def _smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number, to one part in a million and never below, from which on ``holds`` is true."""
    if holds(low):
        return low
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
