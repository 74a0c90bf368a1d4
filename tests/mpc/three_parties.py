"""Runs one program at three parties, each in a thread, and gives the shares that come of it and what parties saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

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


def seen_by(party: Party) -> list[Tensor]:
    """All words that a party hears and draws from now on."""
    seen: list[Tensor] = []

    def remembered(words: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def remembering(*args: Any) -> Tensor:
            seen.append(words(*args))
            return seen[-1]

        return remembering

    for source, name in ((party.channel, "receive"), (party.with_next, "words"), (party.with_previous, "words")):
        setattr(source, name, remembered(getattr(source, name)))
    return seen


def require_uniform(words: Tensor, n_bits: int) -> None:
    """Chi-squared of each byte of words that have so many bits, of 256 kinds: beyond 480 once in 10**15."""
    for shift in {*range(0, n_bits - 7, 8), n_bits - 8}:
        counts = torch.bincount(((words.to(torch.int64) >> shift) & 255).reshape(-1), minlength=256).double()
        assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 480, f"bits from {shift} on"


__all__ = ["Party", "Trio", "require_uniform", "seen_by", "whole"]
