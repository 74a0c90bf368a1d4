"""A party's secret of one run, and the long computations with it, in parts.

The protocol treats each id by itself, under one secret a party. So a set is cut by position, every part is computed
under the same secret, and the parts are put together: the messages are the same bytes for any number of parts.
Nothing is told by the size of a part, and no part needs padding, as it would if each were a protocol of its own.

The library lets go of Python's lock while it computes. Threads are therefore enough to use all cores, and no secret
has to leave the process to get there. What the library makes of a secret may serve one thread only (two crash the
process), so each part makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from fedray.errors import ConfigError, ProtocolError
from fedray.psi.library import library
from fedray.psi.points import Points, answer_of, offer_of, request_of

MOST_IDS = 10_000_000
"""Largest set that a party takes part in a run with, unless told otherwise."""

A = TypeVar("A")
B = TypeVar("B")


class Mapper(Protocol):
    """``map``, or the ``map`` of a pool of threads."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]: ...


class Secret:
    """A party's key of one run, made by the library of the operating system's generator. It cannot be pickled.

    Args:
        party: the library's client or server.
        reveal: for the intersection, or for its size only.
    """

    def __init__(self, party: Any, reveal: bool) -> None:
        self._make = party.CreateFromKey
        self._key: bytes = party.CreateWithNewKey(reveal).GetPrivateKeyBytes()
        self._reveal = reveal

    def __reduce__(self) -> Any:
        raise TypeError("the secret of a private set intersection stays in its process: take threads, not processes")

    def asked(self, ids: Sequence[str]) -> Points:
        """Points of the asker's own ids."""
        return list(self._party().CreateRequest(list(ids)).encrypted_elements)

    def offered(self, ids: Sequence[str]) -> Points:
        """Points of the answerer's own ids."""
        raw = library().DataStructure.RAW
        # the error rate and the asker's size, 1 and 1, are of the inexact kinds only
        return list(self._party().CreateSetupMessage(1.0, 1, list(ids), raw).raw.encrypted_elements)

    def answered(self, points: Points) -> Points:
        """Points of the asker, seen to by the answerer.

        Raises:
            ProtocolError: one is not on the curve.
        """
        return list(_guarded(self._party().ProcessRequest, request_of(points, self._reveal)).encrypted_elements)

    def matched(self, offer: Points, answer: Points) -> list[int]:
        """Positions in the answer that are in the offer too, in any order.

        Raises:
            ProtocolError: one of the answer is not on the curve.
        """
        found: list[int] = _guarded(self._party().GetIntersection, offer_of(offer), answer_of(answer))
        return found

    def counted(self, offer: Points, answer: Points) -> int:
        """How many of the answer are in the offer too.

        Raises:
            ProtocolError: one of the answer is not on the curve.
        """
        found: int = _guarded(self._party().GetIntersectionSize, offer_of(offer), answer_of(answer))
        return found

    def _party(self) -> Any:
        return self._make(self._key, self._reveal)


@dataclass(frozen=True)
class Parts:
    """How a party's work is divided.

    Args:
        shards: parts that a set is cut into; the first ones are one longer where it does not divide.
        mapper: who computes them, in order.

    Raises:
        ConfigError: less than one part.
    """

    shards: int
    mapper: Mapper

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ConfigError(f"{self.shards} shards", "1 or more", "take as many as there are processor cores")

    def mapped(self, function: Callable[[Sequence[A]], B], items: Sequence[A]) -> list[B]:
        """What the function gives for each part, in order."""
        return list(self.mapper(function, [items[part] for part in self.slices(len(items))]))

    def slices(self, n: int) -> list[slice]:
        """Where ``n`` items are cut; at least one part, and none empty unless all are."""
        n_parts = max(1, min(self.shards, n))
        bounds = [n * part // n_parts for part in range(n_parts + 1)]
        return [slice(start, end) for start, end in pairwise(bounds)]


def _guarded(compute: Callable[..., Any], *messages: Any) -> Any:
    try:
        return compute(*messages)
    except RuntimeError:
        raise ProtocolError(
            "what is no point of the curve",
            "points that the other party computed",
            "run the same fedray version at both parties; suspect whoever sent it",
        ) from None
