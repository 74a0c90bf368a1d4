"""A data owner: its shard, its task, its sealer and its privacy account, in one plain object.

Where it runs is not its business: a Ray actor carries it in a federation, a list holds it in a debugger. It must not
import ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from fedray import seeds
from fedray.errors import BudgetExhausted, ProtocolError, UpdateRefused
from fedray.protocols import Account, Contribution, Sealer, Task
from fedray.values import Absent, AbsentOutcome, Assignment, OwnerInfo, Part, Sealed, Shard, Spent, Tally, Vector

NoisyTally = Callable[[Callable[[], Tally]], Tally]
"""Takes held-out figures and gives private ones."""


class Owner:
    """One data owner.

    Args:
        name: its name.
        shard: its rows; nothing that a method returns holds any of them.
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
        self._name = name
        self._shard = shard
        self._task = task
        self._sealer = sealer
        self._seed = seed
        self._account = account
        self._contribution = contribution
        self._noisy = noisy

    @property
    def spent(self) -> Spent | None:
        """What its account says; None where the server knows that by itself."""
        return self._account.spent if self._account else None

    def join(self) -> OwnerInfo:
        """What the server may know of this owner."""
        return OwnerInfo(self._name, len(self._shard.train), len(self._shard.holdout), self._sealer.identity)

    def answer(self, round: int, message: bytes) -> bytes | Absent:
        """Answer a message of the protection's protocol, or say why not. May run while ``train`` does."""
        try:
            return self._sealer.answer(message)
        except ProtocolError as error:
            return Absent(self._name, round, "refused", f"{error.found}; expected {error.expected}")

    def train(self, vector: Vector, assignment: Assignment) -> Sealed | Absent:
        """Train from ``vector`` and seal the update, or say why there is none."""
        started = time.perf_counter()
        round = assignment.plan.round
        seed = seeds.integer(self._seed, "train", round, self._name)
        terms = assignment.terms(vector)
        try:
            if self._contribution:
                self._contribution.charge(round)
            update = self._task.train(vector, assignment, self._shard, seed)
            if not update.is_complete and not assignment.plan.accepts_partial_work:
                return self._absent(assignment, "dropped", f"stopped by the deadline after {update.n_steps} steps")
            if update.n_steps == 0:
                return self._absent(assignment, "dropped", "the deadline passed before the first step")
            if update.delta.shape != vector.shape:
                raise UpdateRefused(f"an update of shape {update.delta.shape}", f"{vector.shape}", "check the task")
            if self._contribution:
                figures = partial(self._figures, vector)
                update = self._contribution.bounded(update, assignment.plan, figures)
            payload, proof = self._sealer.seal(update, assignment, terms)
        except BudgetExhausted as error:
            return self._absent(assignment, "exhausted", f"{error.found}; expected {error.expected}")
        except ProtocolError as error:
            return self._absent(assignment, "refused", f"{error.found}; expected {error.expected}")
        except UpdateRefused as error:
            return self._absent(assignment, "rejected", error.found)
        return Sealed(
            owner=self._name,
            round=round,
            payload=payload,
            n_steps=update.n_steps,
            is_complete=update.is_complete,
            seconds=time.perf_counter() - started,
            spent=self.spent,
            terms=terms,
            proof=proof,
        )

    def evaluate(self, vector: Vector, part: Part) -> Tally:
        """Sums of loss and metrics over this owner's held-out or training rows.

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
        examples = self._shard.holdout if part == "holdout" else self._shard.train
        if self._noisy is not None:
            return self._noisy(partial(self._task.evaluate, vector, examples))
        return self._task.evaluate(vector, examples)

    def _figures(self, vector: Vector) -> Mapping[str, float]:
        return self._task.evaluate(vector, self._shard.holdout).means

    def _absent(self, assignment: Assignment, outcome: AbsentOutcome, reason: str) -> Absent:
        return Absent(self._name, assignment.plan.round, outcome, reason, self.spent)


class InProcessCohort:
    """All owners in this process, one after the other: for a breakpoint, and for fast tests.

    The same bits as one Ray actor per owner. What an owner raises is not caught here, so that a debugger stops at it.

    Args:
        openers: owner's name to what opens the owner.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Owner]]) -> None:
        self._owners = {name: openers[name]() for name in sorted(openers)}
        self._infos = [owner.join() for owner in self._owners.values()]

    @property
    def owners(self) -> Sequence[OwnerInfo]:
        return self._infos

    def train(self, vector: Vector, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        for assignment in assignments:
            yield self._owners[assignment.owner].train(vector, assignment)

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        return {name: self._owners[name].answer(round, message) for name, message in messages.items()}

    def evaluate(self, vector: Vector, part: Part) -> Iterator[tuple[str, Tally]]:
        for name, owner in self._owners.items():
            with suppress(BudgetExhausted):
                yield name, owner.evaluate(vector, part)

    def close(self) -> None:
        """Nothing to let go."""
