"""The two sets that ship with scikit-learn: no download, so they always work. It is imported on use."""

from __future__ import annotations

import numpy as np

from fedray.config.data import Digits
from fedray.data.kinds import PooledData
from fedray.values import Examples, Schema

DIGITS = Schema(feature_shape=(1, 8, 8), feature_dtype="float32", target_shape=(), n_classes=10)
BREAST_CANCER = Schema(feature_shape=(30,), feature_dtype="float32", target_shape=(), n_classes=2)


def pooled_schema(data: PooledData) -> Schema:
    """Shape and classes, known without loading anything."""
    return DIGITS if isinstance(data, Digits) else BREAST_CANCER


def load_pool(data: PooledData) -> Examples:
    """All rows: digits ``(1797, 1, 8, 8)`` of pixels in [0, 1]; breast cancer ``(569, 30)`` in its units."""
    from sklearn import datasets

    if isinstance(data, Digits):
        pixels, labels = datasets.load_digits(return_X_y=True)
        features = (pixels / 16.0).reshape(-1, *DIGITS.feature_shape)
    else:
        features, labels = datasets.load_breast_cancer(return_X_y=True)
    return Examples(np.ascontiguousarray(features, dtype=np.float32), labels.astype(np.int64))
