"""Label attacks on the gradients that a feature owner receives, and how well they do.

O. Li, J. Sun, X. Yang, W. Gao, H. Zhang, J. Xie, V. Smith, C. Wang, "Label Leakage and Protection in Two-party Split
Learning", ICLR 2022, section 3.1 (norm attack) and 3.2 (cosine attack). Deviations: the norm attack ranks within a
batch, as the paper's, and the AUC is the mean over batches. For the cosine attack the attacker knows the label of one
row in every batch, its first, whichever class it has; in the paper it knows one positive row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


def norm_scores(gradients: Scores) -> Scores:
    """Length of each row's gradient; ``(n, width)`` to ``(n,)``."""
    found: Scores = np.linalg.norm(gradients, axis=1).astype(np.float32)
    return found


def cosine_scores(gradients: Scores) -> Scores:
    """Cosine between each row's gradient and the first row's; 0 where one of them is 0."""
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    units = np.divide(gradients, lengths, out=np.zeros_like(gradients), where=lengths > 0)
    cosines: Scores = units @ units[0]
    return cosines


def auc(scores: Scores, labels: NDArray[Any]) -> float:
    """Probability that a positive row scores above a negative one, ties half; nan where one class is missing."""
    n_positive = int((labels > 0).sum())
    n_negative = len(labels) - n_positive
    if not n_positive or not n_negative:
        return math.nan
    above = _ranks(scores)[labels > 0].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def _ranks(scores: Scores) -> NDArray[np.float64]:
    """From 1; those that tie share the mean of their ranks."""
    _, numbers, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[numbers]
    return ranks


def norm_leak(batches: Iterable[tuple[Scores, NDArray[Any]]]) -> float:
    """AUC of the norm attack over an epoch's batches of scores and labels; at least a half."""
    return _leak([auc(scores, labels) for scores, labels in batches])


def cosine_leak(batches: Iterable[tuple[Scores, NDArray[Any]]]) -> float:
    """AUC of the cosine attack; the row that it knows is not counted."""
    return _leak(
        [auc(scores[1:] if labels[0] > 0 else -scores[1:], labels[1:]) for scores, labels in batches if len(labels)]
    )


def _leak(aucs: list[float]) -> float:
    """The mean over batches; an attacker that is wrong most of the time turns its guesses around."""
    known = [one for one in aucs if not math.isnan(one)]
    if not known:
        return math.nan
    mean = sum(known) / len(known)
    return max(mean, 1 - mean)
