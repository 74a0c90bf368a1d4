"""The actor that carries one data owner.

Its rows are opened inside it, on its node. What it returns are ``OwnerInfo``, ``Sealed``, ``Absent``, ``Tally`` or
the place of a failure: none can hold a row. An exception's text could, so only its type and place leave the actor.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import ray

from fedray.actors.refusal import require_here
from fedray.errors import DataError, FedrayError
from fedray.owners import Owner
from fedray.values import Absent, Assignment, Kept, OwnerInfo, Part, Sealed, Tally, Vector

T = TypeVar("T")
_PROTOCOL, _PULSE = "protocol", "pulse"


class OwnerActor:
    """Opens its owner on first use, so that it comes back by itself after a restart.

    Args:
        open_owner: reads the shard and builds the owner, here.
        identity: what the node's identity file must name; None where any node will do.

    Raises:
        ResourcesError: the node is another's. An actor that raises here is never sent a call.
    """

    def __init__(self, open_owner: Callable[[], Owner], identity: str | None = None) -> None:
        if identity is not None:
            require_here(identity)
        self._open_owner = open_owner
        self._opened: Owner | None = None
        self._opening = Lock()

    def join(self) -> OwnerInfo:
        """Open the owner.

        Raises:
            FedrayError: the shard or the model is unfit.
        """
        return opened(lambda: self._owner().join())

    @ray.method(concurrency_group=_PULSE)
    def pulse(self) -> None:
        """A sign of life, from a thread of its own: an owner that trains gives one too."""

    def train(self, vector: Vector, assignment: Assignment) -> Sealed | Absent:
        """Train one round. Whatever goes wrong becomes an ``Absent``: the round goes on without this owner."""
        return self._attempted(assignment, lambda owner: owner.train(vector, assignment))

    def train_and_keep(self, vector: Vector, assignment: Assignment) -> Kept | Absent:
        """Train, and keep the update until ``seal``; or say what went wrong."""
        return self._attempted(assignment, lambda owner: owner.train_and_keep(vector, assignment))

    def seal(self, assignment: Assignment) -> Sealed | Absent:
        """Seal the update that was kept; or say what went wrong."""
        return self._attempted(assignment, lambda owner: owner.seal(assignment))

    @ray.method(concurrency_group=_PROTOCOL)
    def answer(self, round: int, message: bytes) -> bytes | Absent:
        """Answer a message of the protection's protocol, in a thread of its own: an owner that trains answers too."""
        try:
            return self._owner().answer(round, message)
        except Exception as error:
            return Absent("", round, "failed", place_of(error))

    def evaluate(self, vector: Vector, part: Part) -> Tally | str:
        """This owner's tally, or where it failed."""
        try:
            return self._owner().evaluate(vector, part)
        except Exception as error:
            return place_of(error)

    def _attempted(self, assignment: Assignment, what: Callable[[Owner], T]) -> T | Absent:
        try:
            return what(self._owner())
        except Exception as error:
            spent = self._opened.spent if self._opened else None
            return Absent(assignment.owner, assignment.plan.round, "failed", place_of(error), spent)

    def _owner(self) -> Owner:
        with self._opening:
            if self._opened is None:
                self._opened = self._open_owner()
            return self._opened


_in_threads: Any = ray.remote(concurrency_groups={_PROTOCOL: 1, _PULSE: 1})  # type: ignore[call-overload]  # not in Ray's stubs
RemoteOwner: Any = _in_threads(OwnerActor)


def opened(join: Callable[[], T]) -> T:
    """What opening owners gives; of what nobody foresaw only the place.

    Raises:
        FedrayError: a shard or the model is unfit.
    """
    try:
        return join()
    except FedrayError:
        raise
    except Exception as error:
        raise DataError(
            f"an owner could not be opened: {place_of(error)}",
            "a readable shard",
            "run with --in-process to debug it",
        ) from None


def place_of(error: Exception) -> str:
    """Type and place of an exception, never its text, which could quote a row."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
