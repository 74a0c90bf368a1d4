"""Three parties as threads of this process: for tests, debugging and measuring. It protects nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from fedray.errors import RunError
from fedray.mpc.conducting import Conductor
from fedray.mpc.keys import Reader, party_of
from fedray.mpc.shares import N_PARTIES
from fedray.mpc.worker import Worker

PATIENCE_S = 30.0
_SILENCE_S = 0.5
"""How long a message is waited for before it is asked whether its sender has stopped."""


class _Queues:
    """A post between threads."""

    def __init__(
        self, index: int, queues: dict[tuple[int, int], SimpleQueue[bytes]], workers: Sequence[Worker]
    ) -> None:
        self._index = index
        self._queues = queues
        self._workers = workers

    def send(self, receiver: int, sealed: bytes) -> None:
        self._queues[self._index, receiver].put(sealed)

    def receive(self, sender: int) -> bytes:
        arriving, began = self._queues[sender, self._index], time.monotonic()
        while time.monotonic() - began < PATIENCE_S:
            with suppress(Empty):
                return arriving.get(timeout=_SILENCE_S)
            if self._workers[sender].stopped and arriving.empty():
                break
        why = self._workers[sender].stopped or f"silent for {PATIENCE_S:g} s"
        raise RunError(f"no word of party {sender}: {why}", "a message", "start the parties again, then share again")


class LocalParties(Conductor):
    """Three parties as threads; a context manager.

    Args:
        precision: fractional bits of fixed-point numbers.
    """

    def __init__(self, precision: int = 20) -> None:
        keys = [Reader() for _ in range(N_PARTIES)]
        publics = [key.public for key in keys]
        queues: dict[tuple[int, int], SimpleQueue[bytes]] = {
            (sender, receiver): SimpleQueue() for sender in range(N_PARTIES) for receiver in range(N_PARTIES)
        }
        self.workers: list[Worker] = []
        for index, key in enumerate(keys):
            post = _Queues(index, queues, self.workers)
            self.workers.append(Worker(party_of(index, precision, key, publics, post), key))
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"party-{index}") for index in range(N_PARTIES)]
        super().__init__(precision, publics)

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.shutdown()

    def _ask(self, index: int, method: str, *args: Any) -> Future[Any]:
        try:
            return self._threads[index].submit(getattr(self.workers[index], method), *args)
        except RuntimeError:
            raise RunError("parties that were ended", "three parties at work", "start parties, then share") from None

    def _answers(self, asked: Sequence[Future[Any]]) -> list[Any]:
        return [future.result() for future in asked]
