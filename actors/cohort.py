"""The cohort of one Ray actor per data owner, each where its placement says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedray.actors.crew import Crew
from fedray.actors.resources import owner_cpus
from fedray.config import Experiment
from fedray.errors import FedrayError, ResourcesError
from fedray.owners import Owner
from fedray.pools import most_first
from fedray.values import Absent, Assignment, OwnerInfo, Part, Population, Sealed, Tally, Vector

T = TypeVar("T")
GRACE_S = 10.0
"""How long past its deadline an owner's answer is waited for: it stops by itself, between two batches."""


class RayCohort:
    """Creates the owners' actors and carries their answers.

    Attributes:
        population: all owners.

    Args:
        openers: owner's name to what opens the owner, run inside its actor.
        experiment: says placement, resources and time-outs.
        cpus: logical CPUs that owners share where the experiment says ``auto``.

    Raises:
        ResourcesError: the cluster lacks something, or actors did not start in time.
        FedrayError: what an owner raised when it was opened.
    """

    at_once = 1
    notes: Sequence[str] = ()

    def __init__(self, openers: Mapping[str, Callable[[], Owner]], experiment: Experiment, cpus: float) -> None:
        names = sorted(openers)
        share = owner_cpus(experiment, len(names), cpus)
        self._at_once = len(names) if share >= 1 or experiment.resources.owner_cpus != "auto" else max(1, int(cpus))
        self._deadline_s = experiment.deadline_s
        self._answer_timeout_s = experiment.resources.answer_timeout_s
        self._late: dict[str, Any] = {}
        self._actors = Crew(openers, experiment, share)
        try:
            self.population = Population.of(self._join(experiment.resources.start_timeout_s))
        except BaseException:
            self.close()
            raise

    def train(self, vector: Vector, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        """Ask as many at once as there are processors, most rows first; yield in the order of arrival.

        Calls that a lost actor left are not repeated.
        """
        shared = ray.put(vector)
        free = [assignment for assignment in assignments if not self._is_busy(assignment.owner)]
        yield from (gone(one, "it is still busy with an earlier round") for one in assignments if one not in free)
        waiting = most_first(free, self.population)[::-1]
        running: dict[Any, tuple[Assignment, float]] = {}
        while waiting or running:
            while waiting and len(running) < self._at_once:
                assignment = waiting.pop()
                ref = self._actors[assignment.owner].train.remote(shared, assignment)
                running[ref] = (assignment, time.monotonic() + (self._deadline_s or math.inf) + GRACE_S)
            patience = max(0.0, min(expires for _, expires in running.values()) - time.monotonic())
            done, _ = ray.wait(list(running), timeout=None if math.isinf(patience) else patience)
            for ref in done:
                assignment, _ = running.pop(ref)
                yield _answer(ref, assignment)
            for ref, (assignment, expires) in list(running.items()):
                if expires <= time.monotonic():
                    del running[ref]
                    self._late[assignment.owner] = ref
                    yield gone(assignment, f"no answer within {self._deadline_s:g} s and {GRACE_S:g} s of grace")

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """Ask all at once; an owner that trains meanwhile answers from another thread of its actor."""
        refs = {self._actors[name].answer.remote(round, message): name for name, message in messages.items()}
        done, late = ray.wait(list(refs), num_returns=len(refs), timeout=self._answer_timeout_s)
        answers = {refs[ref]: _protocol_answer(ref, refs[ref], round) for ref in done}
        reason = f"no answer within {self._answer_timeout_s:g} s"
        return answers | {refs[ref]: Absent(refs[ref], round, "absent", reason) for ref in late}

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        """Tallies of the owners that answer; one that is busy past the deadline, dead or failing is left out."""
        shared = ray.put(vector)
        refs = {self._actors[name].evaluate.remote(shared, part): name for name in owners}
        patience = None if self._deadline_s is None else self._deadline_s + GRACE_S
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=patience)
        for ref in done:
            try:
                tally = ray.get(ref)
            except RayError:
                continue
            if isinstance(tally, Tally):
                yield refs[ref], tally

    def work(self) -> Mapping[str, float]:
        return {}

    def _is_busy(self, owner: str) -> bool:
        ref = self._late.get(owner)
        return ref is not None and not ray.wait([ref], timeout=0)[0]

    def close(self) -> None:
        self._actors.close()

    def _join(self, timeout_s: float) -> list[OwnerInfo]:
        refs = {actor.join.remote(): name for name, actor in self._actors.items()}
        done, late = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s)
        infos = [unwrapped(ref) for ref in done]
        if late:
            names = ", ".join(sorted(refs[ref] for ref in late)[:5])
            raise ResourcesError(
                f"{len(late)} of {len(refs)} owners did not start within {timeout_s:g} s: {names}",
                "all owners started",
                "raise resources.start_timeout_s, or free what other work on the cluster holds",
            )
        return infos


def unwrapped(ref: ray.ObjectRef[T]) -> T:
    """What a call gave.

    Raises:
        FedrayError: what it raised.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        raise


def _answer(ref: ray.ObjectRef[Sealed | Absent], assignment: Assignment) -> Sealed | Absent:
    try:
        answer: Sealed | Absent = ray.get(ref)
    except RayActorError:
        return gone(assignment, "its actor died; it is restarted where it can be")
    except RayError as error:
        return gone(assignment, f"its answer was lost ({type(error).__name__})")
    if getattr(answer, "owner", None) != assignment.owner or answer.round != assignment.plan.round:
        return Absent(assignment.owner, assignment.plan.round, "rejected", "an answer to another question")
    return answer


def _protocol_answer(ref: ray.ObjectRef[bytes | Absent], owner: str, round: int) -> bytes | Absent:
    try:
        answer = ray.get(ref)
    except RayActorError:
        return Absent(owner, round, "absent", "its actor died; it is restarted where it can be")
    except RayError as error:
        return Absent(owner, round, "absent", f"its answer was lost ({type(error).__name__})")
    return answer if isinstance(answer, bytes) else Absent(owner, round, answer.outcome, answer.reason)


def gone(assignment: Assignment, reason: str) -> Absent:
    """An owner whose process does not answer."""
    return Absent(assignment.owner, assignment.plan.round, "absent", reason)
