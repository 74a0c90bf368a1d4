"""Plain protection: the full seam, and no secret in it. Whoever sees a sealed update can read it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedray.errors import UpdateRefused
from fedray.protection import fixed_point
from fedray.values import Sealed, Total, Update


class PlainSealer:
    """Encodes and hides nothing."""

    def seal(self, update: Update) -> NDArray[np.int64]:
        return fixed_point.encode(update)


class PlainCombiner:
    """Adds integers: exact, in any order, one vector in memory."""

    def __init__(self, n_values: int) -> None:
        self._sum = np.zeros(n_values + 1, dtype=np.int64)
        self._n_added = 0

    def add(self, sealed: Sealed) -> None:
        """Take one update into the sum.

        Raises:
            UpdateRefused: ``encode`` cannot have made it, or the weights would pass ``WEIGHT_BOUND``.
        """
        fixed_point.check(sealed.payload, self._sum.size - 1)
        if int(self._sum[-1]) + int(sealed.payload[-1]) > fixed_point.WEIGHT_BOUND:
            raise UpdateRefused(
                f"a cohort's weight beyond {fixed_point.WEIGHT_BOUND}",
                f"at most {fixed_point.WEIGHT_BOUND} training rows in a cohort",
                "use strategy.weighting: uniform",
            )
        self._sum += sealed.payload
        self._n_added += 1

    @property
    def n_added(self) -> int:
        return self._n_added

    @property
    def combined(self) -> NDArray[np.int64]:
        return self._sum


class PlainOpener:
    """Anyone may open a plain sum."""

    def open(self, combined: NDArray[np.int64]) -> Total:
        return fixed_point.decode(combined)


class PlainProtection:
    """All three halves for a vector of ``n_values``; the server may hold them all."""

    def __init__(self, n_values: int) -> None:
        self._n_values = n_values

    def sealer(self, owner: str) -> PlainSealer:  # noqa: ARG002  # the seam names the owner; plain needs no identity
        return PlainSealer()

    def combiner(self) -> PlainCombiner:
        return PlainCombiner(self._n_values)

    def opener(self) -> PlainOpener:
        return PlainOpener()
