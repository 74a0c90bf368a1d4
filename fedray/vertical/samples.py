"""Tables to try vertical learning with, from scikit-learn's sets: columns shared out, rows shuffled, some missing.

Every function is a source: it takes nothing and is called inside its party.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray import seeds

Columns = dict[str, NDArray[Any]]
_KEPT = 0.9
"""Share of all people whom an owner of digits has."""


def digits_left() -> Columns:
    """The left halves of handwritten digits: ``pid`` and ``image`` of shape ``(n, 8, 4)``, of nine people in ten."""
    return _shuffled("left", {"image": _digits()[0][:, :, :4]}, _KEPT)


def digits_right() -> Columns:
    """The right halves, of another nine in ten."""
    return _shuffled("right", {"image": _digits()[0][:, :, 4:]}, _KEPT)


def digits_labels() -> Columns:
    """Which digit each person wrote: ``pid`` and ``digit``."""
    return _shuffled("labels", {"digit": _digits()[1]}, 1.0)


def tumours() -> Columns:
    """Measurements of the Wisconsin breast cancer set, scaled: ``pid`` and ``measured`` of shape ``(n, 30)``."""
    return _shuffled("tumours", {"measured": _tumours()[0]}, 1.0)


def tumours_labels() -> Columns:
    """``pid`` and ``malignant``, 0 or 1; 14 in 100 are, as in the study of label leakage."""
    return _shuffled("labels", {"malignant": _tumours()[1]}, 1.0)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), labels


@lru_cache(maxsize=1)
def _tumours() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All 357 benign ones and the first 58 malignant ones."""
    from sklearn.datasets import load_breast_cancer

    rows, is_benign = load_breast_cancer(return_X_y=True)
    kept = np.concatenate([np.flatnonzero(is_benign == 1), np.flatnonzero(is_benign == 0)[:58]])
    scaled = (rows[kept] - rows[kept].mean(0)) / rows[kept].std(0)
    return scaled.astype(np.float32), 1 - is_benign[kept]


def _shuffled(party: str, columns: Columns, share: float) -> Columns:
    n = len(next(iter(columns.values())))
    rows = seeds.generator(0, "samples", party).permutation(n)[: round(n * share)]
    return {"pid": np.array([f"P{row:05d}" for row in rows]), **{name: one[rows] for name, one in columns.items()}}
