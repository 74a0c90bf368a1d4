"""The label holder's half of private set intersection (the protocol's client): it alone learns the result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedray.psi.ids import keyed
from fedray.psi.library import library
from fedray.psi.points import Points, read_answer, read_offer, request_of
from fedray.psi.work import MOST_IDS, Mapper, Parts, Secret


class _Asking:
    _reveal: ClassVar[bool]

    def __init__(
        self, ids: Sequence[str], key: bytes, *, shards: int = 1, mapper: Mapper = map, most: int = MOST_IDS
    ) -> None:
        self._secret = Secret(library().client, self._reveal)
        self._parts = Parts(shards, mapper)
        self._ids = keyed(ids, key)
        self._most = most

    def request(self) -> bytes:
        """What it asks: one point an id, in the order of its rows, which the other cannot read."""
        parts = self._parts.mapped(self._secret.asked, self._ids)
        points = [point for part in parts for point in part]
        return bytes(request_of(points, self._reveal).SerializeToString())

    def _read(self, offer: bytes, answer: bytes) -> tuple[Points, Points]:
        return read_offer(offer, self._most), read_answer(answer, len(self._ids))


class Asker(_Asking):
    """Learns which of its ids the other party has too.

    Args:
        ids: its own, shape (n,); normalised here once more.
        key: at least 32 bytes that the two parties share with nobody else.
        shards: parts that its work is cut into.
        mapper: who computes them; the ``map`` of a ``ThreadPoolExecutor`` uses as many cores as it has threads.
        most: the largest offer that it reads.

    Raises:
        ConfigError: the library is missing, the key is too short, or there is less than one shard.
        DataError: see ``normalised``.
    """

    _reveal: ClassVar[bool] = True

    def matches(self, offer: bytes, answer: bytes) -> NDArray[np.int64]:
        """Its rows whose ids the other has too, ascending, shape (n_common,).

        Raises:
            ProtocolError: the offer or the answer is malformed.
        """
        offered, answered = self._read(offer, answer)
        parts = self._parts.mapped(partial(self._secret.matched, offered), answered)
        starts = [part.start for part in self._parts.slices(len(answered))]
        rows = [np.array(found, dtype=np.int64) + start for found, start in zip(parts, starts, strict=True)]
        return np.sort(np.concatenate(rows))


class CountingAsker(_Asking):
    """Learns how many of its ids the other party has too, and not which. Takes what ``Asker`` takes."""

    _reveal: ClassVar[bool] = False

    def count(self, offer: bytes, answer: bytes) -> int:
        """How many of its ids the other has too.

        Raises:
            ProtocolError: the offer or the answer is malformed.
        """
        offered, answered = self._read(offer, answer)
        return sum(self._parts.mapped(partial(self._secret.counted, offered), answered))
