"""The feature owner's half of private set intersection (the protocol's server).

It learns how many ids the asker has. What it gives out is points of the curve under its secret of this run.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import ClassVar

from fedray.errors import ProtocolError
from fedray.psi.ids import keyed
from fedray.psi.library import library
from fedray.psi.points import Points, answer_of, offer_of, read_request
from fedray.psi.work import MOST_IDS, Mapper, Parts, Secret


class Answerer:
    """Answers one request, so that the asker learns which of its ids are here too.

    Args:
        ids: its own, shape (n,); normalised here once more.
        key: at least 32 bytes that the two parties share with nobody else.
        shards: parts that its work is cut into.
        mapper: who computes them; the ``map`` of a ``ThreadPoolExecutor`` uses as many cores as it has threads.
        most: the largest set that it answers about. A small id space can be probed by one large request.

    Raises:
        ConfigError: the library is missing, the key is too short, or there is less than one shard.
        DataError: see ``normalised``.
    """

    _reveal: ClassVar[bool] = True

    def __init__(
        self, ids: Sequence[str], key: bytes, *, shards: int = 1, mapper: Mapper = map, most: int = MOST_IDS
    ) -> None:
        self._secret = Secret(library().server, self._reveal)
        self._parts = Parts(shards, mapper)
        self._ids = keyed(ids, key)
        self._most = most
        self._has_answered = False
        self._lock = Lock()

    def offer(self) -> bytes:
        """What it says of its whole set: as many points as it has ids, sorted."""
        parts = self._parts.mapped(self._secret.offered, self._ids)
        return bytes(offer_of(_joined(parts)).SerializeToString())

    def answer(self, request: bytes) -> bytes:
        """What it says of the asker's set.

        Raises:
            ProtocolError: it has answered before, or the request is malformed, of the other kind, or too large.
        """
        points = read_request(request, self._reveal, self._most)
        self._require_first()
        answered = _joined(self._parts.mapped(self._secret.answered, points))
        return bytes(answer_of(self._arranged(answered)).SerializeToString())

    def _arranged(self, points: Points) -> Points:
        """In the order of the request, which only the asker can read."""
        return points

    def _require_first(self) -> None:
        with self._lock:
            if self._has_answered:
                raise ProtocolError("a second request", "one request a run", "make new halves for another run")
            self._has_answered = True


class CountingAnswerer(Answerer):
    """Answers one request, so that the asker learns how many of its ids are here too, and not which."""

    _reveal: ClassVar[bool] = False

    def _arranged(self, points: Points) -> Points:
        """Sorted, over all parts: nothing is left that says which answer belongs to which id."""
        return sorted(points)


def _joined(parts: Sequence[Points]) -> Points:
    return [point for part in parts for point in part]
