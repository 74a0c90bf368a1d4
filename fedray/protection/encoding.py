"""How an owner's update becomes integers of a ring, and a sum of such integers an update again: the seam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedray.errors import UpdateRefused
from fedray.values import Assignment, Payload, Total, Update

Ring = type[np.uint16] | type[np.uint32]
Signed = NDArray[np.signedinteger[Any]]


class Encoding(Protocol):
    """Updates of one federation as integers; public, and the same for everyone."""

    @property
    def n_owners(self) -> int:
        """Most updates in one sum."""

    @property
    def ring(self) -> Ring:
        """The ring that sums are taken in."""

    @property
    def length(self) -> int:
        """Integers in an encoded update."""

    def require(self, update: Update, weight_bound: int) -> None:
        """Refuse what cannot be encoded.

        Raises:
            UpdateRefused: the update is non-finite, misshapen or beyond its bounds.
        """

    def pieces(self, update: Update, assignment: Assignment, seed: int) -> Iterator[tuple[slice, NDArray[np.int32]]]:
        """The encoded update piece by piece; each is valid until the next is asked for.

        Raises:
            UpdateRefused: see ``require``.
        """

    def encode(self, update: Update, assignment: Assignment, seed: int) -> Payload:
        """The encoded update in the ring, shape ``(length,)``; negative numbers wrap around.

        Raises:
            UpdateRefused: see ``require``.
        """

    def check(self, payload: Payload) -> None:
        """Refuse an array that is no vector of this ring.

        Raises:
            UpdateRefused: wrong type or shape.
        """

    def check_readable(self, payload: Payload) -> None:
        """Refuse a vector that ``encode`` cannot have made, where it can be read.

        Raises:
            UpdateRefused: wrong type or shape, or a value or weight beyond its bound.
        """

    def signed(self, ring_sum: Payload) -> Signed:
        """A sum in the ring as signed integers."""

    def decode(self, summed: Signed, weight_bound: int) -> Total:
        """The sum in the clear, from signed integers of shape ``(length,)``.

        Raises:
            RoundAbandoned: the sum is one that ``encode`` cannot give.
        """


def require_vector(payload: Payload, ring: Ring, length: int) -> None:
    """Refuse an array that is no vector of a ring.

    Raises:
        UpdateRefused: wrong type or shape.
    """
    if not isinstance(payload, np.ndarray) or payload.dtype != ring or payload.shape != (length,):
        raise UpdateRefused(
            f"{getattr(payload, 'dtype', type(payload).__name__)} of shape {getattr(payload, 'shape', None)}",
            f"{np.dtype(ring)} of shape ({length},)",
            "run the same fedray version and experiment on every node",
        )
