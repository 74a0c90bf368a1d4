"""Fixed-point encoding of updates, so that sums are exact and the order of arrival cannot change a bit.

An update becomes ``[w * q(delta), w]`` in int64, where ``q`` rounds to multiples of ``2**-FRACTION_BITS``. The weight
rides inside the vector. With the bounds below, 62 bits hold any sum: an overflow is impossible by construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedray.errors import UpdateRefused
from fedray.values import Total, Update

FRACTION_BITS = 28
"""Resolution of a delta: 2**-28, about 4e-9."""
DELTA_BOUND = 2**10
"""Largest absolute value of a delta; a model that moves further in one round has diverged."""
WEIGHT_BOUND = 2**24
"""Largest sum of weights over one cohort."""

_SCALE = 2.0**FRACTION_BITS


def encode(update: Update) -> NDArray[np.int64]:
    """Integers of shape ``(n_values + 1,)``: the weighted delta, then the weight.

    Raises:
        UpdateRefused: the delta is non-finite or beyond ``DELTA_BOUND``, or the weight is not within 1..WEIGHT_BOUND.
    """
    if not 1 <= update.weight <= WEIGHT_BOUND:
        raise UpdateRefused(
            f"an update of weight {update.weight}",
            f"a weight of 1 to {WEIGHT_BOUND}",
            "use strategy.weighting: uniform",
        )
    if not np.isfinite(update.delta).all():
        raise UpdateRefused("a non-finite update", "finite values only", "lower the learning rate")
    if np.abs(update.delta, dtype=np.float64).max(initial=0.0) > DELTA_BOUND:
        raise UpdateRefused(
            f"an update with values beyond {DELTA_BOUND}",
            f"values within +-{DELTA_BOUND}",
            "lower the learning rate",
        )
    encoded = np.empty(update.delta.size + 1, dtype=np.int64)
    encoded[:-1] = np.rint(update.delta.astype(np.float64) * _SCALE)
    encoded[:-1] *= update.weight
    encoded[-1] = update.weight
    return encoded


def check(encoded: NDArray[np.int64], n_values: int) -> None:
    """Refuse a vector that ``encode`` cannot have made.

    Raises:
        UpdateRefused: wrong type, shape or weight, or a value beyond the bound that its weight allows.
    """
    if not isinstance(encoded, np.ndarray) or encoded.dtype != np.int64 or encoded.shape != (n_values + 1,):
        found = f"{getattr(encoded, 'dtype', type(encoded).__name__)} of shape {getattr(encoded, 'shape', None)}"
        raise UpdateRefused(found, f"int64 of shape ({n_values + 1},)", "run the same fedray version on every node")
    weight = int(encoded[-1])
    if not 1 <= weight <= WEIGHT_BOUND:
        raise UpdateRefused(f"a weight of {weight}", f"1 to {WEIGHT_BOUND}", "check the owner")
    limit = weight * (DELTA_BOUND << FRACTION_BITS)
    if n_values and (encoded[:-1].max() > limit or encoded[:-1].min() < -limit):
        raise UpdateRefused("a value beyond its bound", f"at most {DELTA_BOUND} times its weight", "check the owner")


def decode(summed: NDArray[np.int64]) -> Total:
    """The sum in the clear."""
    return Total(weighted_sum=summed[:-1] / _SCALE, weight=int(summed[-1]))
