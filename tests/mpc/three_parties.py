"""Runs one program at three parties, each in a thread, and gives the shares that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor

from fedray.mpc.keys import Reader, party_of
from fedray.mpc.party import Party
from fedray.mpc.shares import N_PARTIES, Share, joined, split

Sent = list[tuple[int, int, bytes]]


class Wire:
    """A post between threads that remembers what was said."""

    def __init__(self, index: int, queues: dict[tuple[int, int], SimpleQueue[bytes]], sent: Sent) -> None:
        self._index, self._queues, self._sent = index, queues, sent

    def send(self, receiver: int, sealed: bytes) -> None:
        self._sent.append((self._index, receiver, sealed))
        self._queues[self._index, receiver].put(sealed)

    def receive(self, sender: int) -> bytes:
        return self._queues[sender, self._index].get(timeout=20)


class Trio:
    """Three parties with fresh keys."""

    def __init__(self, precision: int = 20) -> None:
        keys = [Reader() for _ in range(N_PARTIES)]
        self.sent: Sent = []
        self.queues: dict[tuple[int, int], SimpleQueue[bytes]] = {
            (a, b): SimpleQueue() for a in range(N_PARTIES) for b in range(N_PARTIES)
        }
        publics = [key.public for key in keys]
        self.parties = [
            party_of(index, precision, key, publics, Wire(index, self.queues, self.sent))
            for index, key in enumerate(keys)
        ]

    def shares(self, program: Callable[..., Share], *shared: Sequence[Share]) -> list[Share]:
        """What each party holds after a program of its own shares."""
        with ThreadPoolExecutor(N_PARTIES) as threads:
            futures = [
                threads.submit(program, party, *(each[party.index] for each in shared)) for party in self.parties
            ]
            return [future.result() for future in futures]

    def words(self, program: Callable[..., Share], *shared: Sequence[Share]) -> Tensor:
        """The words that come of a program."""
        return joined(self.shares(program, *shared))


def whole(words: Sequence[int] | Tensor, precision: int = 0) -> Sequence[Share]:
    """Shares of words."""
    return split(torch.as_tensor(words, dtype=torch.int64), precision)


__all__ = ["Party", "Trio", "whole"]
