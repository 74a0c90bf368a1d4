"""Loops that do the same work, each in a process of its own, which take turns of some rounds.

So a machine that changes its speed changes all of them, and what one holds in memory is its own process tree.
This file must not import torch or ray: what a loop loads is its own affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

import cards
import memory

SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Turn:
    """One round of a loop.

    Attributes:
        seconds: wall time.
        at_once: owners that a process trained as one batched computation.
        metrics: what evaluation found, where the round had one.
        phases: seconds of the round by phase.
        work: seconds of all its processes together, by what they did.
    """

    seconds: float
    at_once: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    work: Mapping[str, float] = field(default_factory=dict)


class Loop(Protocol):
    """What takes part: started by its constructor, in the process of its contestant."""

    def advance(self, rounds: int) -> Sequence[Any]:
        """Do so many rounds; what each took."""

    def close(self) -> None:
        """Let everything go."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What a loop holds while it works, over some rounds.

    Attributes:
        memory: the largest PSS and RSS of its processes together, in MiB.
        processes: PSS in MiB at that time of the processes of each name.
        utilisation: mean share of time that the card was busy, 0 to 1; None without a card.
    """

    memory: Mapping[str, float]
    processes: Mapping[str, Sequence[float]]
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What one loop took.

    Attributes:
        start_up_s: see ``Contestant``.
        first: its first round.
        turns: the rounds after it.
        weight: what it held.
        apart: how far its model was from the first loop's after the first round, as a part of what that moved.
        card_mib: memory of the card that it held; None without a card.
    """

    start_up_s: float
    first: Turn
    turns: Sequence[Turn]
    weight: Weight
    apart: float
    card_mib: float | None


class Contestant:
    """A loop in a process of its own, ready for its first round.

    Args:
        make: opens the loop, in its process.

    Attributes:
        start_up_s: seconds from nothing to where the first round may begin.
    """

    def __init__(self, make: Callable[[], Loop]) -> None:
        started = time.perf_counter()
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs))
        self._process.start()
        theirs.close()
        self._pipe.recv()
        self.start_up_s = time.perf_counter() - started

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the loop gives.

        Raises:
            EOFError: the loop's process has died; its traceback is on the standard error.
        """
        self._pipe.send((method, arguments))
        return self._pipe.recv()

    def memory(self) -> list[memory.Memory]:
        """What its processes hold now."""
        return memory.of_tree(self._process.pid or 0)

    def weigh(self, rounds: int, least_s: float, device: str) -> Weight:
        """Do at least so many rounds for at least so long, which are not timed, and watch memory meanwhile."""
        seen, busy = [self.memory()], list[float]()
        until = time.monotonic() + least_s
        while rounds > 0 or time.monotonic() < until:
            self._pipe.send(("advance", (1,)))
            while not self._pipe.poll(SAMPLE_S):
                seen.append(self.memory())
                busy += [cards.utilisation()] if device == "cuda" else []
            self._pipe.recv()
            rounds -= 1
        seen.append(self.memory())
        peaks = [memory.total(found) for found in seen]
        heaviest = max(seen, key=lambda found: memory.total(found)["PSS"])
        return Weight(
            {kind: max(peak[kind] for peak in peaks) for kind in ("PSS", "RSS")},
            memory.by_name(heaviest),
            sum(busy) / len(busy) if busy else None,
        )

    def close(self) -> None:
        """End the loop and its process."""
        self._pipe.close()
        self._process.join()


def _serve(make: Callable[[], Loop], pipe: Connection) -> None:
    """Do what is asked until nobody asks any more."""
    with closing(make()) as loop:
        pipe.send("ready")
        with suppress(EOFError):
            while True:
                method, arguments = pipe.recv()
                pipe.send(getattr(loop, method)(*arguments))


def opened(stack: ExitStack, makes: Mapping[str, Callable[[], Loop]]) -> dict[str, Contestant]:
    """All contestants, opened one after the other; they end with the stack, whatever happens."""
    return {name: stack.enter_context(closing(Contestant(make))) for name, make in makes.items()}
