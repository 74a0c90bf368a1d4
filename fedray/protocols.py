"""The seams of fedray: what a task, a strategy, a protection and a cohort must do.

Everything else is plain functions and frozen dataclasses. Implementations need not inherit: they are checked by mypy
and by the contract tests in ``tests/contracts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedray.errors import FedrayError
from fedray.values import (
    Absent,
    Assignment,
    Examples,
    Kept,
    Part,
    Payload,
    Population,
    Released,
    RoundPlan,
    Sealed,
    Shard,
    Spent,
    Subtotal,
    SumRecord,
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


@dataclass(frozen=True, slots=True)
class Job:
    """One owner's training of one round, ready to be done: what ``Task.train`` takes besides the vector."""

    task: Task
    assignment: Assignment
    shard: Shard
    seed: int


class Trainer(Protocol):
    """Trains and evaluates owners that share a process, whose tasks are alike but for what is each owner's own."""

    @property
    def at_once(self) -> int:
        """Owners that are trained together."""

    @property
    def rows_at_once(self) -> int:
        """Rows up to which owners are evaluated together; 0 where each is by itself."""

    def train(self, vector: Vector, jobs: Sequence[Job]) -> Sequence[Update | FedrayError]:
        """What each job gives, in order: an update, or the error for which there is none."""

    def evaluate(self, vector: Vector, task: Task, examples: Sequence[Examples]) -> Sequence[Tally]:
        """Sums of loss and metrics over each owner's examples, in order."""


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
    """The owner's half of a protection. ``answer`` may run in another thread than ``seal``."""

    def answer(self, message: bytes) -> bytes:
        """Answer a message of the protection's protocol.

        Raises:
            ProtocolError: the message is malformed, or asks for what must not be given.
        """

    def seal(self, update: Update, assignment: Assignment, terms: bytes) -> tuple[Payload, bytes]:
        """The first thing that leaves the owner, and the owner's signed word on it where the protection asks for it.

        Args:
            update: what training gave.
            assignment: what was asked.
            terms: digest of what must be alike for all owners in the sum; see ``Assignment.terms``.

        Raises:
            UpdateRefused: the update is non-finite, misshapen or beyond the bound of the sum.
            ProtocolError: the round was not prepared, or was sealed before.
        """


Ask = Callable[[Mapping[str, bytes]], Mapping[str, "bytes | Absent"]]
"""Carries one message to each owner named and brings what each answers."""


class Combiner(Protocol):
    """The server's half for one round: adds what it need not be able to read, in any order, and has the sum opened."""

    @property
    def owners(self) -> Sequence[str]:
        """Owners that may add an update, sorted; fewer than asked for where some did not prepare."""

    @property
    def lost(self) -> Mapping[str, str]:
        """Owners that were asked for and may not add an update, with the reason."""

    def briefing(self, owner: str) -> bytes:
        """What this owner's sealer must be told before it seals."""

    def add(self, sealed: Sealed) -> None:
        """Take one sealed update into the sum.

        Raises:
            UpdateRefused: it does not belong into this sum; the sum is unchanged.
        """

    def add_subtotal(self, subtotal: Subtotal) -> None:
        """Take the sum of several owners' updates into the sum.

        Raises:
            UpdateRefused: this protection needs every update by itself, or it does not belong into this sum.
        """

    @property
    def n_added(self) -> int:
        """Updates in the sum."""

    def open(self) -> Total:
        """Have the sum opened by whoever may.

        Raises:
            RoundAbandoned: it may not be opened, or is none that honest owners can have made.
        """

    def record(self) -> SumRecord:
        """What is kept of how this sum was protected."""


class Adder(Protocol):
    """Adds up sealed updates in a process that owners share, for protections whose sums may be taken in parts."""

    def add(self, sealed: Sealed) -> None:
        """Take one sealed update into the subtotal.

        Raises:
            UpdateRefused: it does not belong into this sum; the subtotal is unchanged.
        """

    def take(self) -> Subtotal | None:
        """The subtotal since this was last asked; None where nothing was added."""


class Protection(Protocol):
    """The server's half of how updates are hidden from it while they are summed; owners hold a ``Sealer`` each."""

    def combiner(self, round: int, owners: Sequence[str], ask: Ask) -> Combiner:
        """Prepare the sum of one round with these owners. May run in another thread, while owners train."""


class KeyHolder(Protocol):
    """A third party that opens sums, for protections that have one."""

    @property
    def identity(self) -> bytes:
        """Its public signing key, 32 bytes."""

    def answer(self, message: bytes) -> bytes:
        """Answer a message of the protection's protocol.

        Raises:
            ProtocolError: the message is malformed, or asks for what must not be given.
        """


class Account(Protocol):
    """One owner's durable account of the privacy that it spends in one run."""

    @property
    def spent(self) -> Spent:
        """All that was spent so far, over rounds and restarts."""


class Mechanism(Protocol):
    """The server's half of privacy: what becomes of a sum before anyone else sees it. Purely functional."""

    def init(self) -> State:
        """State before the first round."""

    def plan(self, state: State, plan: RoundPlan) -> RoundPlan:
        """The plan of a round, with what owners must know to bound their parts."""

    def release(self, state: State, plan: RoundPlan, total: Total | None) -> tuple[State, Released | None]:
        """What the round's sum gives; ``total`` is None where there was no sum.

        Returns:
            The state after it, and the release; None where nothing is released.
        """


class Contribution(Protocol):
    """The owner's half of owner-level privacy: charges its ledger, then bounds its part in a sum."""

    def charge(self, round: int) -> None:
        """Record what taking part in a round costs, before anything is computed.

        Raises:
            BudgetExhausted: the owner's budget does not allow it.
            ProtocolError: it comes too soon after the last one, or too often.
        """

    def bounded(self, update: Update, plan: RoundPlan, metrics: Callable[[], Mapping[str, float]]) -> Update:
        """The update as it may enter the sum: clipped and normalised, with what rides beside it.

        Args:
            update: what training gave.
            plan: the plan of the round.
            metrics: evaluates the model that the round began with on the owner's held-out rows.
        """


class Cohort(Protocol):
    """Where owners live: in this process, one Ray actor each, or many to an actor."""

    @property
    def population(self) -> Population:
        """All owners of the federation."""

    @property
    def at_once(self) -> int:
        """Owners that a process trains as one batched computation; 1 where it trains one after the other."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines that tell the user how owners are run, where that was not fixed before."""

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Subtotal | Absent]:
        """Ask owners to train; yield each answer as it arrives, or the sum of several where they share a process.

        Ends after ``patience_s`` at the latest, and where its caller stops early; what is not there by then never
        comes. Owners that are late are not asked again until they are done.
        """

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """Carry a message of the protection's protocol to each owner named; what each answers, or why it did not.

        May be called from another thread while owners train.
        """

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        """Tallies of those of the owners named that can be reached, on their held-out or training rows."""

    def work(self) -> Mapping[str, float]:
        """Seconds of all processes of owners together since this was last asked, by what they did.

        ``open`` rows, ``train``, ``seal``, ``add`` to a subtotal, ``evaluate``; ``carry`` answers and models between
        processes; ``wait`` for others. Empty where nothing was done or is known.
        """

    def close(self) -> None:
        """Let all owners go. Safe to call twice."""


@runtime_checkable
class BackgroundCohort(Cohort, Protocol):
    """A cohort whose owners also train in the background, each on a model of its own, and keep what that gave."""

    def begin(self, vector: Vector, assignment: Assignment) -> None:
        """Have an owner begin to train. It keeps the update; nothing of it leaves the owner before it is sealed."""

    def ended(self) -> Sequence[Kept | Absent]:
        """What has come of training that was begun, each once; waits for the first. Empty where none is going on."""

    def forget(self, owner: str) -> None:
        """Wait no longer for what an owner has begun. It is not asked to train again until it is done."""

    def seal(self, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        """Ask owners to seal what they kept; yield each answer as it arrives."""
