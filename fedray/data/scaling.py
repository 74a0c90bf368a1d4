"""Bringing features to a common scale: by an owner's own training rows, or by public constants.

This file owns the arithmetic and must not read files. Owner scaling follows FLamby (Ogier du Terrail et al.
2022): mean and deviation (ddof = 1) of the training rows, division by deviation + 1e-9. One deviation: a
feature that is constant in the training rows is only centred, because dividing by 1e-9 would blow a differing
held-out value up to 1e9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedray.config.data import FixedScaling, NoScaling, OwnerScaling
from fedray.errors import ConfigError, DataError
from fedray.values import Examples, Schema, Shard

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
"""What is subtracted and what is divided by; both broadcast against ``feature_shape``."""


def check_scaling(scaling: NoScaling | OwnerScaling | FixedScaling, schema: Schema) -> None:
    """Refuse scaling that does not fit the features.

    Raises:
        ConfigError: fixed constants of a wrong length, or scaling of token ids.
    """
    if isinstance(scaling, NoScaling):
        return
    if schema.feature_dtype == "int64":
        raise ConfigError(
            f"data.scaling is {scaling.name!r}, but features are whole numbers (tokens)",
            "data.scaling: none for tokens",
            "leave scaling out, or store the features as floats",
        )
    if isinstance(scaling, FixedScaling):
        n_features = math.prod(schema.feature_shape)
        for name, values in (("center", scaling.center), ("scale", scaling.scale)):
            if len(values) not in (1, n_features):
                raise ConfigError(
                    f"data.scaling.{name} has {len(values)} values",
                    f"1 value, or one for each of {n_features} features",
                    f"give 1 or {n_features} values",
                )


def owner_statistics(train: Examples) -> Statistics:
    """Mean and ``deviation + 1e-9`` of training rows, of shape ``feature_shape``; 1 for constant features."""
    values = train.features.astype(np.float64)
    mean = values.mean(axis=0)
    is_constant = values.max(axis=0) == values.min(axis=0)
    if len(train) < 2:
        return mean, np.ones_like(mean)
    return mean, np.where(is_constant, 1.0, values.std(axis=0, ddof=1) + 1e-9)


def fixed_statistics(scaling: FixedScaling, feature_shape: tuple[int, ...]) -> Statistics:
    """Center and scale, each of shape ``feature_shape``."""
    n_features = math.prod(feature_shape)

    def shaped(values: tuple[float, ...]) -> NDArray[np.float64]:
        return np.broadcast_to(np.asarray(values, dtype=np.float64), (n_features,)).reshape(feature_shape)

    return shaped(scaling.center), shaped(scaling.scale)


def apply(examples: Examples, statistics: Statistics) -> Examples:
    """``(features - center) / scale`` as float32 of the same shape; targets as they are.

    Raises:
        DataError: a scaled value is beyond float32.
    """
    center, scale = statistics
    with np.errstate(over="ignore"):
        scaled = ((examples.features.astype(np.float64) - center) / scale).astype(np.float32)
    n_bad = int((~np.isfinite(scaled)).sum())
    if n_bad:
        raise DataError(
            f"{n_bad} scaled values are too large for float32",
            "scaled features of moderate size",
            "check data.scaling: a scale near 0, or a feature in extreme units",
        )
    return Examples(scaled, examples.targets)


def scale_shard(shard: Shard, scaling: NoScaling | OwnerScaling | FixedScaling) -> Shard:
    """Training and held-out rows, both scaled by what the training rows (or the constants) say.

    Raises:
        DataError: a scaled value is beyond float32.
    """
    if isinstance(scaling, NoScaling):
        return shard
    if isinstance(scaling, OwnerScaling):
        statistics = owner_statistics(shard.train)
    else:
        statistics = fixed_statistics(scaling, shard.train.features.shape[1:])
    return Shard(train=apply(shard.train, statistics), holdout=apply(shard.holdout, statistics))
