"""Many owners in one process: a pool, and the cohort that is one pool in this process.

This file must not import ray or torch.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Protocol, TypeVar

from fedray.errors import BudgetExhausted, FedrayError, OwnerError, ProtocolError, UpdateRefused
from fedray.open_owners import OpenOwners, OpensOwner, ascending
from fedray.owners import Owner
from fedray.protocols import Adder, Job, Task, Trainer
from fedray.values import (
    Absent,
    Assignment,
    Choice,
    Examples,
    Kept,
    OwnerInfo,
    Part,
    Population,
    Sealed,
    Subtotal,
    Tally,
    Update,
    Vector,
)

T = TypeVar("T")

Place = Callable[[Exception], str]
"""Says in one line where something went wrong, and nothing of what it was about."""

SOME = 256
"""Owners whose sizes stand for all."""


class OneByOne:
    """One owner after the other: the same bits as an owner by itself."""

    at_once = 1
    rows_at_once = 0

    def train(self, vector: Vector, jobs: Sequence[Job]) -> Sequence[Update | FedrayError]:
        return [_trained(vector, job) for job in jobs]

    def evaluate(self, vector: Vector, task: Task, examples: Sequence[Examples]) -> Sequence[Tally]:
        return [task.evaluate(vector, one) for one in examples]


def _itself(tally: Tally) -> Tally:
    return tally


def _trained(vector: Vector, job: Job) -> Update | FedrayError:
    try:
        return job.task.train(vector, job.assignment, job.shard, job.seed)
    except (OwnerError, ProtocolError) as error:
        return error


class Pool:
    """Owners that share a process.

    Args:
        openers: owner's name to what opens it.
        trainer: how owners are trained; one by one when left out.
        adder: adds up their sealed updates here; None where each travels by itself.
        place: what becomes of an exception that nobody foresaw; None lets it through, so that a debugger stops at it.
        budget_bytes: see ``OpenOwners``.
    """

    def __init__(
        self,
        openers: Mapping[str, OpensOwner],
        trainer: Trainer | None = None,
        adder: Adder | None = None,
        place: Place | None = None,
        budget_bytes: float = math.inf,
    ) -> None:
        self._owners = OpenOwners(openers, budget_bytes)
        self.trainer: Trainer = trainer or OneByOne()
        self._adder = adder
        self._place = place
        self._work = defaultdict[str, float](float)

    def join(self, names: Iterable[str]) -> list[OwnerInfo]:
        """What the server may know of these owners.

        Raises:
            FedrayError: one of them cannot be opened.
        """
        return [self._owners.take(name).join() for name in names]

    def train(self, vector: Vector, assignments: Sequence[Assignment]) -> Iterator[Sealed | Subtotal | Absent]:
        """Train owners in the order given, as many at once as the trainer can; yield what each gives, or their sum.

        All assignments are of one plan.
        """
        if self._adder:
            self._adder.take()  # what a round that was cut off has left
        n = self.trainer.at_once
        terms = assignments[0].terms(vector) if assignments else b""
        for start in range(0, len(assignments), n):
            yield from self._train(vector, assignments[start : start + n], terms)
        if self._adder and (subtotal := self._adder.take()):
            yield subtotal

    def train_and_keep(self, vector: Vector, assignment: Assignment) -> Kept | Absent:
        """Train one owner, which keeps its update until it is asked to seal it."""
        with self._during("train"):
            return self._owners.take(assignment.owner).train_and_keep(vector, assignment)

    def seal(self, assignments: Sequence[Assignment]) -> Iterator[Sealed | Absent]:
        """Have owners seal what they kept."""
        for assignment in assignments:
            with self._during("seal"):
                sealed = self._owners.take(assignment.owner).seal(assignment)
            yield sealed

    def answer(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """What owners answer to messages of the protection's protocol. May run while ``train`` does."""
        return {name: self._answer(name, round, message) for name, message in messages.items()}

    def evaluate(self, vector: Vector, part: Part, names: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        """Tallies of these owners; owners without a budget for it give none, nor do those that fail in an actor."""
        for batch in self._batches(part, names):
            yield from self._tallies(vector, part, batch)

    def take_work(self) -> Mapping[str, float]:
        """Seconds since this was last asked, by what they were spent on."""
        work, self._work = self._work, defaultdict(float)
        return dict(work)

    def _train(self, vector: Vector, group: Sequence[Assignment], terms: bytes) -> Iterator[Sealed | Absent]:
        with self._during("open"):
            prepared = [self._prepared(assignment) for assignment in group]
        yield from (one for one in prepared if isinstance(one, Absent))
        ready = [one for one in prepared if not isinstance(one, Absent)]
        with self._during("train"):
            started = time.perf_counter()
            trained = self._trained(vector, ready)
            seconds = (time.perf_counter() - started) / max(1, len(ready))
        with self._during("seal"):
            sealed = [
                self._sealed(owner, vector, job.assignment, update, terms, seconds)
                for (owner, job), update in zip(ready, trained, strict=True)
            ]
        with self._during("add"):
            yield from (given for one in sealed if (given := self._added(one)))

    def _prepared(self, assignment: Assignment) -> tuple[Owner, Job] | Absent:
        def prepare() -> tuple[Owner, Job] | Absent:
            owner = self._owners.take(assignment.owner, assignment.plan.round)
            try:
                return owner, owner.prepare(assignment)
            except (OwnerError, ProtocolError) as error:
                return owner.absent(assignment, error)

        return self._attempt(assignment, prepare)

    def _trained(self, vector: Vector, ready: Sequence[tuple[Owner, Job]]) -> Sequence[Update | FedrayError | Absent]:
        try:
            return self.trainer.train(vector, [job for _, job in ready])
        except Exception as error:
            return [self._failed(job.assignment, error, owner) for owner, job in ready]

    def _sealed(
        self,
        owner: Owner,
        vector: Vector,
        assignment: Assignment,
        trained: Update | FedrayError | Absent,
        terms: bytes,
        seconds: float,
    ) -> Sealed | Absent:
        if isinstance(trained, Absent):
            return trained
        return self._attempt(assignment, partial(owner.finish, vector, assignment, trained, terms, seconds), owner)

    def _added(self, answer: Sealed | Absent) -> Sealed | Absent | None:
        """What of an answer must travel by itself."""
        if self._adder is None or isinstance(answer, Absent):
            return answer
        try:
            self._adder.add(answer)
        except UpdateRefused as error:
            return Absent(answer.owner, answer.round, "rejected", error.found, answer.spent)
        return None

    def _attempt(self, assignment: Assignment, what: Callable[[], T], owner: Owner | None = None) -> T | Absent:
        try:
            return what()
        except Exception as error:
            return self._failed(assignment, error, owner)

    def _failed(self, assignment: Assignment, error: Exception, owner: Owner | None = None) -> Absent:
        if self._place is None:
            raise error
        spent = owner.spent if owner else None
        return Absent(assignment.owner, assignment.plan.round, "failed", self._place(error), spent)

    def _answer(self, name: str, round: int, message: bytes) -> bytes | Absent:
        try:
            return self._owners.take(name, round).answer(round, message)
        except Exception as error:
            if self._place is None:
                raise
            return Absent(name, round, "failed", self._place(error))

    def _batches(self, part: Part, names: Sequence[str]) -> Iterator[Sequence[Owner]]:
        """Owners that are evaluated together."""
        batch: list[Owner] = []
        n_rows = 0
        for name in names:
            with self._during("open"), self._leaving_out():
                batch.append(self._owners.take(name))
                n_rows += len(batch[-1].rows(part))
            if batch and n_rows >= self.trainer.rows_at_once:
                yield batch
                batch, n_rows = [], 0
        if batch:
            yield batch

    def _tallies(self, vector: Vector, part: Part, owners: Sequence[Owner]) -> Iterator[tuple[str, Tally]]:
        released = {}
        with self._during("evaluate"), self._leaving_out():
            found = self.trainer.evaluate(vector, owners[0].task, [owner.rows(part) for owner in owners])
            for owner, tally in zip(owners, found, strict=True):
                with suppress(BudgetExhausted):
                    released[owner.name] = owner.released(partial(_itself, tally))
        yield from released.items()

    def _leaving_out(self) -> AbstractContextManager[None]:
        """Goes on without owners that fail, where an exception that nobody foresaw is not let through."""
        return suppress(Exception) if self._place else nullcontext()

    @contextmanager
    def _during(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._work[what] += time.perf_counter() - started


class MakesPools(Protocol):
    """Makes pools of one experiment's owners, in whatever process it is sent to."""

    def open(self, openers: Mapping[str, OpensOwner], place: Place | None = None) -> Pool:
        """A pool of these owners, which trains them one by one until it is told otherwise."""

    def choose(self, sizes: Sequence[int]) -> Choice:
        """How many owners are trained at once here: as configured, or what is best for owners of these ``sizes``."""

    def trainer(self, at_once: int) -> Trainer:
        """What trains so many owners at once.

        Raises:
            ConfigError: owners cannot be trained together.
        """


class InProcessCohort:
    """All owners in this process: for a breakpoint, and for fast tests.

    The same bits as one Ray actor per owner. What an owner raises is not caught here, so that a debugger stops at it.

    Args:
        openers: owner's name to what opens it.

    Raises:
        FedrayError: an owner cannot be opened.
    """

    notes: Sequence[str] = ()

    def __init__(self, openers: Mapping[str, OpensOwner]) -> None:
        self._pool = Pool(openers)
        self._begun: deque[tuple[Vector, Assignment]] = deque()
        self.population = Population.of(self._pool.join(ascending(openers)))

    @property
    def at_once(self) -> int:
        return self._pool.trainer.at_once

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Subtotal | Absent]:
        """One owner after the other, most rows first; the clock is looked at between two of them."""
        closes_at = time.monotonic() + (math.inf if patience_s is None else patience_s)
        for answer in self._pool.train(vector, most_first(assignments, self.population)):
            yield answer
            if time.monotonic() >= closes_at:
                return

    def begin(self, vector: Vector, assignment: Assignment) -> None:
        self._begun.append((vector, assignment))

    def ended(self) -> Sequence[Kept | Absent]:
        """What comes of the training that was begun first, done now."""
        return [self._pool.train_and_keep(*self._begun.popleft())] if self._begun else []

    def forget(self, owner: str) -> None:
        self._begun = deque(one for one in self._begun if one[1].owner != owner)

    def seal(self, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        return self._pool.seal(assignments)

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        return self._pool.answer(round, messages)

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        return self._pool.evaluate(vector, part, owners)

    def work(self) -> Mapping[str, float]:
        return self._pool.take_work()

    def close(self) -> None:
        """Nothing to let go."""


class InProcessPool(InProcessCohort):
    """A simulation in this process.

    Args:
        openers: owner's name to what opens it.
        makes: makes the pool.
        population: all owners, where that is known without opening them.

    Raises:
        FedrayError: an owner cannot be opened.
    """

    def __init__(
        self,
        openers: Mapping[str, OpensOwner],
        makes: MakesPools,
        population: Population | None = None,
    ) -> None:
        names = ascending(openers)
        self._pool = makes.open(openers)
        self._begun = deque()
        self.population = population or Population.of(self._pool.join(names))
        choice = makes.choose(some_sizes(self.population))
        self._pool.trainer = makes.trainer(choice.at_once)
        self.notes = (choice.line,) if choice.line else ()


def some_sizes(population: Population) -> list[int]:
    """Training rows of some owners, taken evenly."""
    return [int(n) for n in population.n_train[:: max(1, len(population) // SOME)][:SOME]]


def most_first(assignments: Sequence[Assignment], population: Population) -> list[Assignment]:
    """Assignments by their owners' rows, most first, so that those that take long are not the last."""
    return sorted(assignments, key=lambda one: population.n_train_of(one.owner), reverse=True)
