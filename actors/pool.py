"""The actor that carries a pool of simulated owners.

Like an owner's own actor it gives no row away, and of an exception only its type and place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import ray

from fedray.actors.owner import opened, place_of
from fedray.open_owners import OpensOwner
from fedray.pools import MakesPools, Pool
from fedray.values import Absent, Assignment, Choice, OwnerInfo, Part, Sealed, Subtotal, Tally, Vector

_PROTOCOL = "protocol"


@dataclass(frozen=True, slots=True)
class Worked:
    """What a pool says when it is done.

    Attributes:
        began: when the call began there, in seconds since the epoch.
        busy_until: when the call before it had ended.
        seconds: how long it took.
        work: what that was spent on.
    """

    began: float
    busy_until: float
    seconds: float
    work: Mapping[str, float]


class PoolActor:
    """Opens its pool on first use, so that it comes back by itself after a restart.

    Args:
        makes: makes the pool, here.
        openers: owner's name to what opens it.
    """

    def __init__(self, makes: MakesPools, openers: Mapping[str, OpensOwner]) -> None:
        self._makes = makes
        self._openers = openers
        self._opened: Pool | None = None
        self._at_once: int | None = None
        self._busy_until = 0.0
        self._opening = Lock()

    def choose(self, sizes: Sequence[int]) -> Choice:
        """How many owners are trained at once here; ``sizes`` are training rows of some of them."""
        return self._makes.choose(sizes)

    def use(self, at_once: int) -> None:
        """Get ready to train so many owners at once.

        Raises:
            ConfigError: owners cannot be trained together.
        """
        self._pool(at_once)

    def join(self, names: Sequence[str]) -> list[OwnerInfo]:
        """Open these owners.

        Raises:
            FedrayError: a shard or the model is unfit.
        """
        return opened(lambda: self._pool().join(names))

    @ray.method(num_returns="streaming")
    def train(
        self, vector: Vector, assignments: Sequence[Assignment], at_once: int
    ) -> Iterator[Sealed | Subtotal | Absent | Worked]:
        """Train one round's owners: what each gives, or their subtotal; last, what was worked."""
        began = time.time()
        yield from self._pool(at_once).train(vector, assignments)
        yield self._worked(began)

    @ray.method(concurrency_group=_PROTOCOL)
    def answer(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """Answer messages of the protection's protocol, in a thread of its own: owners that train answer too."""
        return self._pool().answer(round, messages)

    def evaluate(
        self, vector: Vector, part: Part, names: Sequence[str], at_once: int
    ) -> tuple[dict[str, Tally], Worked]:
        """Tallies of these owners."""
        began = time.time()
        tallies = dict(self._pool(at_once).evaluate(vector, part, names))
        return tallies, self._worked(began)

    def _worked(self, began: float) -> Worked:
        busy_until, self._busy_until = self._busy_until, time.time()
        return Worked(began, busy_until, self._busy_until - began, self._pool().take_work())

    def _pool(self, at_once: int | None = None) -> Pool:
        """The pool; told how many owners to train at once by every call, since a restarted one has forgotten."""
        with self._opening:
            if self._opened is None:
                self._opened = self._makes.open(self._openers, place_of)
            if at_once not in (None, self._at_once):
                self._at_once, self._opened.trainer = at_once, self._makes.trainer(at_once)
            return self._opened


_in_two_threads: Any = ray.remote(concurrency_groups={_PROTOCOL: 1})  # type: ignore[call-overload]  # not in Ray's stubs
RemotePool: Any = _in_two_threads(PoolActor)
