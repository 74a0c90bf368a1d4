"""One owner's rows before they are scaled: which are held out, and whether enough is left to learn from.

This file owns the held-out draw. It must not read files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.errors import DataError
from fedray.seeds import generator
from fedray.values import Examples, Shard


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they were read.

    Attributes:
        examples: ``n`` rows.
        is_holdout: bool of shape ``(n,)``, true where a row is held out; None where a random share is to be
            drawn.
    """

    examples: Examples
    is_holdout: NDArray[np.bool_] | None = None


def share_of(n_rows: int, share: float) -> int:
    """How many of ``n_rows`` a share is, rounded up (as FedProx and scikit-learn round a test share)."""
    return math.ceil(round(n_rows * share, 9))


def n_held_out(n_rows: int, share: float) -> int:
    """How many of an owner's rows a held-out share is; leaves a training row."""
    return min(share_of(n_rows, share), max(n_rows - 1, 0))


def draw_holdout(n_rows: int, share: float, seed: int, owner: str) -> NDArray[np.bool_]:
    """A random share of rows, a pure function of ``(seed, owner, n_rows, share)``.

    Returns:
        bool of shape ``(n_rows,)``, true where a row is held out.
    """
    mask = np.zeros(n_rows, dtype=np.bool_)
    mask[generator(seed, "holdout", owner).permutation(n_rows)[: n_held_out(n_rows, share)]] = True
    return mask


def take(examples: Examples, index: NDArray[np.int64] | NDArray[np.bool_]) -> Examples:
    """The rows that ``index`` names, copied: shapes ``(k, *feature_shape)`` and ``(k, *target_shape)``."""
    return Examples(examples.features[index], examples.targets[index])


def divide(rows: Rows, *, holdout: float, seed: int, owner: str) -> Shard:
    """Training and held-out rows of one owner.

    Raises:
        DataError: there is no row, or none to train on.
    """
    n_rows = len(rows.examples)
    mask = draw_holdout(n_rows, holdout, seed, owner) if rows.is_holdout is None else rows.is_holdout
    if n_rows == 0 or mask.all():
        raise DataError(
            f"{owner} has {n_rows} rows, {n_rows - int(mask.sum())} of them to train on",
            "at least one training row an owner",
            "leave this owner out, or hold out fewer of its rows",
        )
    return Shard(train=take(rows.examples, ~mask), holdout=take(rows.examples, mask))


def check_classes(shard: Shard, *, min_classes: int, owner: str) -> None:
    """Refuse a classification shard whose training rows hold too few classes.

    Raises:
        DataError: fewer than ``min_classes`` distinct classes.
    """
    n_found = len(np.unique(shard.train.targets))
    if n_found < min_classes:
        raise DataError(
            f"the training rows of {owner} hold {n_found} class(es)",
            f"at least {min_classes} (data.min_classes)",
            "if an owner with so few classes is meant, set data.min_classes: 1; for a simulated split raise "
            "split.alpha or split.per_owner, or take another data.seed",
        )
