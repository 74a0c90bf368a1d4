"""A data owner: its shard, its task, its sealer and its privacy account, in one plain object.

Where it runs is not its business: a Ray actor carries it in a federation, a pool holds it among others in a simulation
or in a debugger. It must not import ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedray import seeds
from fedray.errors import BudgetExhausted, FedrayError, OwnerError, ProtocolError, TooSlow, UpdateRefused
from fedray.protocols import Account, Contribution, Job, Sealer, Task
from fedray.values import (
    Absent,
    AbsentOutcome,
    Assignment,
    Examples,
    Kept,
    OwnerInfo,
    Part,
    Sealed,
    Shard,
    Spent,
    Staleness,
    Tally,
    Update,
    Vector,
)

NoisyTally = Callable[[Callable[[], Tally]], Tally]
"""Takes held-out figures and gives private ones."""


@dataclass(frozen=True)
class _KeptUpdate:
    """What training gave, until the server asks for it.

    Attributes:
        round: the round whose model it was trained from.
        update: within its bounds, not yet sealed.
        seconds: what training took.
    """

    round: int
    update: Update
    seconds: float

    def scaled(self, round: int, staleness: Staleness) -> Update:
        """The update as it enters a round's sum.

        Raises:
            TooSlow: it is too old.
        """
        n_rounds = round - self.round
        if not 0 <= n_rounds <= staleness.most:
            raise TooSlow(f"an update {n_rounds} rounds old", f"0 to {staleness.most}", "raise schedule.max_staleness")
        delta = (self.update.delta * staleness.factor(n_rounds)).astype(np.float32)
        return replace(self.update, delta=delta)


class Owner:
    """One data owner.

    Args:
        name: its name.
        shard: its rows; nothing that a method returns to a server holds any of them.
        task: what is learned.
        sealer: its half of the protection.
        seed: the experiment's seed, for batch order and dropout.
        account: its word on what it has spent; None where the server knows that by itself.
        contribution: its half of owner-level privacy; None without.
        noisy: what makes its held-out figures private; None where they are given as they are.
    """

    def __init__(
        self,
        name: str,
        shard: Shard,
        task: Task,
        sealer: Sealer,
        seed: int,
        account: Account | None = None,
        contribution: Contribution | None = None,
        noisy: NoisyTally | None = None,
    ) -> None:
        self.name = name
        self._shard = shard
        self.task = task
        self._sealer = sealer
        self._seed = seed
        self._account = account
        self._contribution = contribution
        self._noisy = noisy
        self._kept: _KeptUpdate | None = None

    @property
    def spent(self) -> Spent | None:
        """What its account says; None where the server knows that by itself."""
        return self._account.spent if self._account else None

    @property
    def nbytes(self) -> int:
        """Memory that its rows take."""
        arrays = [array for part in (self._shard.train, self._shard.holdout) for array in (part.features, part.targets)]
        return sum(array.nbytes for array in arrays)

    def join(self) -> OwnerInfo:
        """What the server may know of this owner."""
        return OwnerInfo(self.name, len(self._shard.train), len(self._shard.holdout))

    def answer(self, round: int, message: bytes) -> bytes | Absent:
        """Answer a message of the protection's protocol, or say why not. May run while ``train`` does."""
        try:
            return self._sealer.answer(message)
        except ProtocolError as error:
            return Absent(self.name, round, "refused", f"{error.found}; expected {error.expected}")

    def train(self, vector: Vector, assignment: Assignment) -> Sealed | Absent:
        """Train from ``vector`` and seal the update, or say why there is none."""
        terms = assignment.terms(vector)
        started = time.perf_counter()
        trained: Update | FedrayError
        try:
            job = self.prepare(assignment)
            trained = self.task.train(vector, assignment, job.shard, job.seed)
        except (OwnerError, ProtocolError) as error:
            trained = error
        return self.finish(vector, assignment, trained, terms, time.perf_counter() - started)

    def train_and_keep(self, vector: Vector, assignment: Assignment) -> Kept | Absent:
        """Train from ``vector`` and keep the update for ``seal``, in the place of one kept before; or say why not."""
        self._kept = None
        started = time.perf_counter()
        try:
            job = self.prepare(assignment)
            trained = self.task.train(vector, assignment, job.shard, job.seed)
            update = self._bounded(vector, assignment, trained)
        except (OwnerError, ProtocolError) as error:
            return self.absent(assignment, error)
        self._kept = _KeptUpdate(assignment.plan.round, update, time.perf_counter() - started)
        return Kept(self.name, assignment.plan.round, self.spent)

    def seal(self, assignment: Assignment) -> Sealed | Absent:
        """Seal the update that was kept, scaled by how stale it is in the round asked for; or say why there is none."""
        kept, self._kept = self._kept, None
        if kept is None or assignment.plan.staleness is None:
            return Absent(self.name, assignment.plan.round, "absent", "the update that it kept is lost", self.spent)
        try:
            update = kept.scaled(assignment.plan.round, assignment.plan.staleness)
            return self._sealed(assignment, update, assignment.terms(update.delta), kept.seconds)
        except (OwnerError, ProtocolError) as error:
            return self.absent(assignment, error)

    def prepare(self, assignment: Assignment) -> Job:
        """Charge what taking part costs, and hand out what there is to do. For this process only.

        Raises:
            BudgetExhausted: the owner's budget does not allow it.
            ProtocolError: it comes too soon after the last part, or too often.
        """
        round = assignment.plan.round
        if self._contribution:
            self._contribution.charge(round)
        return Job(self.task, assignment, self._shard, seeds.integer(self._seed, "train", round, self.name))

    def finish(
        self, vector: Vector, assignment: Assignment, trained: Update | FedrayError, terms: bytes, seconds: float
    ) -> Sealed | Absent:
        """Bound and seal what training gave, or say why there is none.

        Args:
            vector: what was trained from.
            assignment: what was asked.
            trained: the update, or the error for which there is none.
            terms: the digest that ``assignment.terms`` gives.
            seconds: what training took.
        """
        try:
            update = self._bounded(vector, assignment, trained)
            return self._sealed(assignment, update, terms, seconds)
        except (OwnerError, ProtocolError) as error:
            return self.absent(assignment, error)

    def absent(self, assignment: Assignment, error: FedrayError) -> Absent:
        """Why there is no update."""
        outcome, reason = _why(error)
        return Absent(self.name, assignment.plan.round, outcome, reason, self.spent)

    def rows(self, part: Part) -> Examples:
        """Held-out or training rows. For this process only."""
        return self._shard.holdout if part == "holdout" else self._shard.train

    def evaluate(self, vector: Vector, part: Part) -> Tally:
        """Sums of loss and metrics over this owner's held-out or training rows.

        Raises:
            BudgetExhausted: figures are private, and the owner's budget does not allow them.
            ProtocolError: the owner is protected as a whole.
        """
        return self.released(partial(self.task.evaluate, vector, self.rows(part)))

    def released(self, tally: Callable[[], Tally]) -> Tally:
        """A tally of this owner's rows, as it may leave the owner.

        Raises:
            BudgetExhausted: figures are private, and the owner's budget does not allow them.
            ProtocolError: the owner is protected as a whole.
        """
        if self._contribution is not None:
            raise ProtocolError(
                "figures of rows under owner-level privacy",
                "none but those that ride in the sum",
                "suspect a server that lies",
            )
        return self._noisy(tally) if self._noisy is not None else tally()

    def _sealed(self, assignment: Assignment, update: Update, terms: bytes, seconds: float) -> Sealed:
        payload, proof = self._sealer.seal(update, assignment, terms)
        return Sealed(
            owner=self.name,
            round=assignment.plan.round,
            payload=payload,
            n_steps=update.n_steps,
            is_complete=update.is_complete,
            seconds=seconds,
            spent=self.spent,
            terms=terms,
            proof=proof,
        )

    def _bounded(self, vector: Vector, assignment: Assignment, trained: Update | FedrayError) -> Update:
        if isinstance(trained, FedrayError):
            raise trained
        _require_in_time(trained, assignment)
        if trained.delta.shape != vector.shape:
            raise UpdateRefused(f"an update of shape {trained.delta.shape}", f"{vector.shape}", "check the task")
        if self._contribution is None:
            return trained
        return self._contribution.bounded(trained, assignment.plan, partial(self._figures, vector))

    def _figures(self, vector: Vector) -> Mapping[str, float]:
        return self.task.evaluate(vector, self._shard.holdout).means


def _why(error: FedrayError) -> tuple[AbsentOutcome, str]:
    match error:
        case TooSlow():
            return "dropped", error.found
        case UpdateRefused():
            return "rejected", error.found
        case BudgetExhausted():
            return "exhausted", f"{error.found}; expected {error.expected}"
        case _:
            return "refused", f"{error.found}; expected {error.expected}"


def _require_in_time(update: Update, assignment: Assignment) -> None:
    if not update.is_complete and not assignment.plan.accepts_partial_work:
        raise TooSlow(f"stopped by the deadline after {update.n_steps} steps", "complete work", "raise deadline_s")
    if update.n_steps == 0:
        raise TooSlow("the deadline passed before the first step", "one step at least", "raise deadline_s")
