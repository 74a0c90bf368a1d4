"""Work done ahead: what the next round will need is prepared in another thread while owners train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Prepares one round while another runs.

    Args:
        prepare: makes what a round with these owners needs.
    """

    def __init__(self, prepare: Callable[[int, Sequence[str]], T]) -> None:
        self._prepare = prepare
        self._key: tuple[int, tuple[str, ...]] | None = None
        self._future: Future[T] = Future()

    def start(self, round: int, owners: Sequence[str]) -> None:
        """Begin to prepare a round that is foreseen with these owners. One is prepared at a time."""
        self._key, self._future = (round, tuple(owners)), Future()
        Thread(target=self._run, args=(self._future, *self._key), daemon=True, name=f"prepare-{round}").start()

    def take(self, round: int, owners: Sequence[str]) -> T:
        """What a round needs: as prepared, or made now if another was foreseen.

        Raises:
            Exception: what ``prepare`` raised.
        """
        key, future = self._key, self._future
        self._key = None
        if key is not None:
            found = future.result()
            if key == (round, tuple(owners)):
                return found
        return self._prepare(round, owners)

    def _run(self, future: Future[T], round: int, owners: tuple[str, ...]) -> None:
        try:
            future.set_result(self._prepare(round, owners))
        except BaseException as error:
            future.set_exception(error)
