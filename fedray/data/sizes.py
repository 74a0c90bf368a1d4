"""How many rows every owner trains on and holds out, where that is known before any owner is opened."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.data.rows import n_held_out


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """Rows of all owners, in the order of their names.

    Attributes:
        n_train: training rows, int64 of shape ``(n_owners,)``; 1 or more.
        n_holdout: held-out rows, int64 of shape ``(n_owners,)``.
    """

    n_train: NDArray[np.int64]
    n_holdout: NDArray[np.int64]


def divided(n_rows: NDArray[np.int64], share: float) -> Sizes:
    """How each owner's rows, shape ``(n_owners,)``, are divided where ``share`` of them are held out."""
    distinct, place = np.unique(n_rows, return_inverse=True)
    n_holdout = np.array([n_held_out(int(number), share) for number in distinct], dtype=np.int64)[place]
    return Sizes(n_rows - n_holdout, n_holdout)
