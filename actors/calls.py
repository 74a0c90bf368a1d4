"""Calls that make owners train or seal: carried out, waited for in the order of arrival, and left when time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from fedray.actors.late import Late
from fedray.values import Absent, Assignment, Kept, Sealed

GRACE_S = 10.0
"""How long past its deadline an owner's answer is waited for: it stops by itself, between two batches."""


@dataclass(frozen=True)
class _Call:
    """What an owner was asked, when, and by when it must have answered, on the monotonic clock."""

    assignment: Assignment
    asked_at: float
    deadline_s: float | None

    @property
    def expires_at(self) -> float:
        return math.inf if self.deadline_s is None else self.asked_at + self.deadline_s + GRACE_S


class Calls:
    """Calls that somebody waits for, one an owner.

    Args:
        late: where calls go that nobody waits for any more.
        closes_at: when all are left, on the monotonic clock.
    """

    def __init__(self, late: Late, closes_at: float = math.inf) -> None:
        self._late = late
        self._closes_at = closes_at
        self._calls: dict[Any, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, owner: object) -> bool:
        return any(call.assignment.owner == owner for call in self._calls.values())

    def add(self, ref: Any, assignment: Assignment, deadline_s: float | None) -> None:
        """Wait for a call too, for so long and ``GRACE_S`` if it has a deadline."""
        self._calls[ref] = _Call(assignment, time.monotonic(), deadline_s)

    def answers(self) -> Iterator[Any]:
        """Wait for the next answers, and yield them; whoever has not given one in time is absent."""
        until = min([self._closes_at, *(call.expires_at for call in self._calls.values())])
        patience_s = None if math.isinf(until) else max(0.0, until - time.monotonic())
        done, _ = ray.wait(list(self._calls), timeout=patience_s)
        for ref in done:
            yield _answer(ref, self._calls.pop(ref).assignment)
        for call in self._expired():
            self.leave(call.assignment.owner)
            yield gone(call.assignment, f"no answer within {call.deadline_s:g} s and {GRACE_S:g} s of grace")

    def leave(self, owner: str | None = None) -> None:
        """Wait no longer for an owner, or for anyone."""
        now = time.monotonic()
        left = {ref: one for ref, one in self._calls.items() if owner in (None, one.assignment.owner)}
        for ref, call in left.items():
            del self._calls[ref]
            self._late.add(call.assignment.owner, ref, now - call.asked_at)

    def _expired(self) -> list[_Call]:
        now = time.monotonic()
        return [call for call in self._calls.values() if call.expires_at <= now]


def gone(assignment: Assignment, reason: str) -> Absent:
    """An owner whose process does not answer."""
    return Absent(assignment.owner, assignment.plan.round, "absent", reason)


def _answer(ref: ray.ObjectRef[Sealed | Kept | Absent], assignment: Assignment) -> Sealed | Kept | Absent:
    try:
        answer: Sealed | Kept | Absent = ray.get(ref)
    except RayActorError:
        return gone(assignment, "its actor died; it is restarted where it can be")
    except RayError as error:
        return gone(assignment, f"its answer was lost ({type(error).__name__})")
    if getattr(answer, "owner", None) != assignment.owner or answer.round != assignment.plan.round:
        return Absent(assignment.owner, assignment.plan.round, "rejected", "an answer to another question")
    return answer
