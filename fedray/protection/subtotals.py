"""Sums of sealed updates taken where owners share a process, for protections that add in a ring of integers.

Such sums are exact and free of order, so that it makes no difference to the total where they are taken. What may be
added is what the server's half would add; a subtotal of masked updates hides them as each of them is hidden.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fedray.errors import UpdateRefused
from fedray.protection.encoding import Encoding
from fedray.values import Cover, Payload, Sealed, Subtotal


class RingAdder:
    """Adds vectors of one ring.

    Args:
        encoding: says which ring, and how long vectors are.
        readable: whether vectors are in the clear, so that each can be held against its bounds.
    """

    def __init__(self, encoding: Encoding, *, readable: bool) -> None:
        self._encoding = encoding
        self._check = encoding.check_readable if readable else encoding.check
        self._sum: Payload | None = None
        self._covers: list[Cover] = []

    def add(self, sealed: Sealed) -> None:
        """Take one sealed update into the subtotal.

        Raises:
            UpdateRefused: it is no vector of this ring, or beyond its bounds; the subtotal is unchanged.
        """
        self._check(sealed.payload)
        if self._sum is None:
            self._sum = np.zeros(self._encoding.length, dtype=self._encoding.ring)
        self._sum += sealed.payload
        self._covers.append(sealed.cover)

    def take(self) -> Subtotal | None:
        """The subtotal since this was last asked; None where nothing was added."""
        payload, covers = self._sum, tuple(self._covers)
        self._sum, self._covers = None, []
        return None if payload is None else Subtotal(payload, covers)


def require_owners(subtotal: Subtotal, owners: Collection[str], added: Collection[str]) -> None:
    """Refuse a subtotal that holds an update of an owner twice, or of one that may not add.

    Raises:
        UpdateRefused: it does.
    """
    names = [cover.owner for cover in subtotal.covers]
    if len(set(names)) < len(names) or any(name not in owners or name in added for name in names):
        raise UpdateRefused("a subtotal of owners that may not add to it", "one update of each", "check the pool")
