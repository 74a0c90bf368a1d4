"""The cohort of one Ray actor per data owner, each where its placement says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedray.actors.calls import GRACE_S, Calls, gone
from fedray.actors.crew import Crew
from fedray.actors.late import Late
from fedray.actors.resources import owner_cpus
from fedray.config import Experiment
from fedray.errors import FedrayError, ResourcesError
from fedray.owners import Owner
from fedray.pools import most_first
from fedray.values import Absent, Assignment, Kept, OwnerInfo, Part, Population, Sealed, Tally, Vector

T = TypeVar("T")
_BUSY = "it is still busy with an earlier round"
_LOOK_S = 0.5
"""How often it is looked whether those who are waited for are worth it."""


class RayCohort:
    """Creates the owners' actors and carries their answers.

    Attributes:
        population: all owners.

    Args:
        openers: owner's name to what opens the owner, run inside its actor.
        experiment: says placement, resources and time-outs.
        cpus: logical CPUs that owners share where the experiment says ``auto``.
        run: stands in the actors' names; see ``Crew``.

    Raises:
        ResourcesError: the cluster lacks something, or actors did not start in time.
        FedrayError: what an owner raised when it was opened.
    """

    at_once = 1
    notes: Sequence[str] = ()

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Owner]],
        experiment: Experiment,
        cpus: float,
        run: str | None = None,
    ) -> None:
        names = sorted(openers)
        share = owner_cpus(experiment, len(names), cpus)
        self._at_once = len(names) if share >= 1 or experiment.resources.owner_cpus != "auto" else max(1, int(cpus))
        self._deadline_s = experiment.deadline_s
        self._answer_timeout_s = experiment.resources.answer_timeout_s
        self._wait_s = experiment.faults.wait_s
        self._awaited = 0
        self._actors = Crew(openers, experiment, share, run)
        self._late = Late(self._actors)
        self._begun = Calls(self._late)
        self._missed: list[Absent] = []
        try:
            self.population = Population.of(self._join(experiment.resources.start_timeout_s))
        except BaseException:
            self.close()
            raise

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Absent]:
        """Ask as many at once as there are processors, most rows first; yield in the order of arrival.

        Calls that a lost actor left are not repeated. Where all are busy and there is a patience, one is waited for.
        """
        round = max((one.plan.round for one in assignments), default=0)
        there = self._present((one.owner for one in assignments), round)
        yield from (gone(one, self._why_gone(one.owner)) for one in assignments if one.owner not in there)
        assignments = [one for one in assignments if one.owner in there]
        closes_at = time.monotonic() + (math.inf if patience_s is None else patience_s)
        free, busy = self._by_freedom(assignments)
        if busy and not free and patience_s is not None:
            self._late.wait((one.owner for one in busy), patience_s)
            free, busy = self._by_freedom(assignments)
        yield from (gone(one, _BUSY) for one in busy)
        shared = ray.put(vector)
        waiting = most_first(free, self.population)[::-1]
        calls = Calls(self._late, closes_at)
        try:
            while (waiting or calls) and time.monotonic() < closes_at:
                while waiting and len(calls) < self._at_once:
                    assignment = waiting.pop()
                    call = self._actors[assignment.owner].train.remote(shared, assignment)
                    calls.add(call, assignment, self._deadline_s)
                for answer in calls.answers():
                    if isinstance(answer, Absent) and answer.outcome == "absent":
                        self._actors.doubt(answer.owner)
                    yield answer
        finally:
            calls.leave()

    def begin(self, vector: Vector, assignment: Assignment) -> None:
        owner = assignment.owner
        if not self._present([owner], assignment.plan.round):
            self._missed.append(gone(assignment, self._why_gone(owner)))
        elif self._late.is_busy(owner):
            self._missed.append(gone(assignment, _BUSY))
        else:
            call = self._actors[owner].train_and_keep.remote(ray.put(vector), assignment)
            self._begun.add(call, assignment, self._deadline_s)

    def ended(self) -> Sequence[Kept | Absent]:
        missed, self._missed = self._missed, []
        found: list[Kept | Absent] = [*missed]
        while self._begun and not found:
            found += self._begun.answers()
        return found

    def forget(self, owner: str) -> None:
        self._begun.leave(owner)
        self._missed = [one for one in self._missed if one.owner != owner]

    def seal(self, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        calls = Calls(self._late)
        for assignment in assignments:
            calls.add(self._actors[assignment.owner].seal.remote(assignment), assignment, self._answer_timeout_s)
        try:
            while calls:
                yield from calls.answers()
        finally:
            calls.leave()

    def _by_freedom(self, assignments: Sequence[Assignment]) -> tuple[list[Assignment], list[Assignment]]:
        """Those whose owners are free, and those whose are still busy."""
        busy = [one for one in assignments if self._late.is_busy(one.owner)]
        return [one for one in assignments if one not in busy], busy

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """Ask all at once; an owner that trains meanwhile answers from another thread of its actor."""
        there = self._present(messages, round)
        refs = {self._actors[name].answer.remote(round, messages[name]): name for name in messages if name in there}
        done, late = ray.wait(list(refs), num_returns=len(refs), timeout=self._answer_timeout_s)
        answers = {refs[ref]: _protocol_answer(ref, refs[ref], round) for ref in done}
        reasons = {name: self._why_gone(name) for name in messages if name not in there}
        reasons |= {refs[ref]: f"no answer within {self._answer_timeout_s:g} s" for ref in late}
        return answers | {name: Absent(name, round, "absent", reason) for name, reason in reasons.items()}

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        """Tallies of the owners that answer; not of those that train in the background, are late, dead or failing."""
        shared = ray.put(vector)
        free = self._present(name for name in owners if not self._is_occupied(name))
        refs = {self._actors[name].evaluate.remote(shared, part): name for name in owners if name in free}
        ends_at = time.monotonic() + (math.inf if self._deadline_s is None else self._deadline_s + GRACE_S)
        while refs and time.monotonic() < ends_at:
            done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=_LOOK_S)
            for ref in done:
                name = refs.pop(ref)
                if isinstance(tally := _tally(ref), Tally):
                    yield name, tally
            refs = {ref: name for ref, name in refs.items() if not self._is_occupied(name)}

    def work(self) -> Mapping[str, float]:
        return {}

    def _is_occupied(self, owner: str) -> bool:
        """Whether an owner does something else, nobody knows until when."""
        return owner in self._begun or self._late.is_busy(owner)

    def close(self) -> None:
        self._actors.close()

    def _present(self, names: Iterable[str], round: int = 0) -> set[str]:
        """Owners of these that can be asked; those that are gone are waited for at a round's first question."""
        wait_s = self._wait_s if round > self._awaited else 0.0
        self._awaited = max(round, self._awaited)
        return self._actors.present(set(names), wait_s)

    def _why_gone(self, owner: str) -> str:
        return self._actors.gone.get(owner, "it was gone for a while")

    def _join(self, timeout_s: float) -> list[OwnerInfo]:
        until = time.monotonic() + timeout_s
        there = self._actors.present(self._actors, timeout_s)
        for name in sorted(set(self._actors) - there):
            if name in self._actors.dead:
                raise self._actors.dead[name]
        refs = {self._actors[name].join.remote(): name for name in there}
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=max(0.0, until - time.monotonic()))
        infos = [unwrapped(ref) for ref in done]
        if late := sorted(set(self._actors) - {info.name for info in infos}):
            names = ", ".join(late[:5])
            raise ResourcesError(
                f"{len(late)} of {len(self._actors)} owners did not start within {timeout_s:g} s: {names}",
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


def _tally(ref: ray.ObjectRef[Tally | str]) -> Tally | str:
    try:
        return ray.get(ref)
    except RayError as error:
        return type(error).__name__


def _protocol_answer(ref: ray.ObjectRef[bytes | Absent], owner: str, round: int) -> bytes | Absent:
    try:
        answer = ray.get(ref)
    except RayActorError:
        return Absent(owner, round, "absent", "its actor died; it is restarted where it can be")
    except RayError as error:
        return Absent(owner, round, "absent", f"its answer was lost ({type(error).__name__})")
    return answer if isinstance(answer, bytes) else Absent(owner, round, answer.outcome, answer.reason)
