"""The seams of fedray: what a task, a strategy, a protection and a cohort must do.

Everything else is plain functions and frozen dataclasses. Implementations need not inherit: they are checked by mypy
and by the contract tests in ``tests/contracts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedray.values import (
    Absent,
    Assignment,
    Examples,
    OwnerInfo,
    Part,
    RoundPlan,
    Sealed,
    Shard,
    Spent,
    Tally,
    Total,
    Update,
    Vector,
)


class Task(Protocol):
    """What is learned: a model, a loss, metrics and how to train. Knows nothing of federations."""

    @property
    def n_parameters(self) -> int:
        """Leading values of the vector that the strategy steps; the rest (buffers) is averaged only."""

    def initial(self, seed: int) -> Vector:
        """The model before training, shape ``(n_values,)``."""

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        """Train from ``vector`` on the shard's training rows: a pure function of its arguments."""

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        """Sums of loss and metrics over the examples."""


State = Mapping[str, NDArray[np.float64]]
"""What a strategy keeps between rounds besides the parameters: named arrays, so that any state can be checkpointed."""


class Strategy(Protocol):
    """The algorithm at the server. It sees totals only, and works on vectors of shape ``(n_parameters,)``."""

    def init(self, parameters: Vector) -> State:
        """State before the first round."""

    def plan(self, state: State, round: int) -> RoundPlan:
        """What the cohort of a round is asked to do."""

    def step(self, state: State, parameters: Vector, mean: NDArray[np.float64]) -> tuple[State, Vector]:
        """New state and parameters from the cohort's mean update."""


class Sealer(Protocol):
    """The owner's half of a protection."""

    def seal(self, update: Update) -> NDArray[np.int64]:
        """The first thing that leaves the owner.

        Raises:
            UpdateRefused: the update is non-finite, misshapen or beyond the bound of the sum.
        """


class Combiner(Protocol):
    """The server's half: adds what it need not be able to read. Streaming, in any order."""

    def add(self, sealed: Sealed) -> None:
        """Take one sealed update into the sum.

        Raises:
            UpdateRefused: it does not belong into this sum; the sum is unchanged.
        """

    @property
    def n_added(self) -> int:
        """Updates in the sum."""

    @property
    def combined(self) -> NDArray[np.int64]:
        """The sum, still sealed."""


class Opener(Protocol):
    """The half of whoever may read the sum."""

    def open(self, combined: NDArray[np.int64]) -> Total:
        """The sum in the clear."""


class Protection(Protocol):
    """How updates are hidden from the server while they are summed. Who holds which half is who knows what."""

    def sealer(self, owner: str) -> Sealer:
        """For one owner."""

    def combiner(self) -> Combiner:
        """For the server, one a round."""

    def opener(self) -> Opener:
        """For whoever may read sums."""


class Account(Protocol):
    """One owner's durable account of the privacy that it spends."""

    @property
    def spent(self) -> Spent:
        """All that was spent so far, over rounds and restarts."""


class Cohort(Protocol):
    """Where owners live: in this process, or one Ray actor each."""

    @property
    def owners(self) -> Sequence[OwnerInfo]:
        """All owners of the federation, by name."""

    def train(self, vector: Vector, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        """Ask owners to train; yield each answer as it arrives."""

    def evaluate(self, vector: Vector, part: Part) -> Iterator[tuple[str, Tally]]:
        """Every reachable owner's tally on its held-out or training rows."""

    def close(self) -> None:
        """Let all owners go. Safe to call twice."""
