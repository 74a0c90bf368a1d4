"""What a round asks of whom, and what comes of it: select, broadcast, combine, open.

It holds totals, never single updates that it could keep. It must not import ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedray.errors import RoundAbandoned, UpdateRefused
from fedray.federation import Federation, ServerState
from fedray.protocols import Combiner
from fedray.selection import assignments, cohort_of_round
from fedray.spending import require_account
from fedray.values import Absent, Assignment, Cover, RoundPlan, Sealed, Subtotal, Total


@dataclass(frozen=True)
class Asked:
    """What a round asks of whom.

    Attributes:
        cohort: names of the owners that take part.
        too_slow: those of them that are not asked, since they would not complete work that must be complete.
        assignments: what the others are asked.
    """

    cohort: tuple[str, ...]
    too_slow: tuple[str, ...]
    assignments: tuple[Assignment, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(assignment.owner for assignment in self.assignments)


@dataclass(frozen=True)
class Collected:
    """What a cohort's training gave."""

    combiner: Combiner
    sealed: Mapping[str, Cover]
    absent: Mapping[str, Absent]
    reached: tuple[str, ...]
    bytes_up: int
    total: Total | None = None

    @property
    def answers(self) -> list[Cover | Absent]:
        return [*self.sealed.values(), *self.absent.values()]


class Clock:
    """Wall time by phase. A lap is the time since the last lap."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = dict.fromkeys(("prepare", "train", "combine", "open", "step"), 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[phase] += now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        return dict(self._phases)


def ask(federation: Federation, plan: RoundPlan) -> Asked:
    """Who takes part in the round of this plan, and what each is asked."""
    experiment = federation.experiment
    names = federation.cohort.population.names
    cohort = cohort_of_round(experiment.cohort, names, federation.cohort_seed, plan.round)
    drawn = assignments(plan, cohort, experiment.stragglers, experiment.deadline_s, experiment.seed)
    too_slow = [one for one in drawn if one.is_partial and not plan.accepts_partial_work]
    in_time = [one for one in drawn if not one.is_partial or plan.accepts_partial_work]
    return Asked(cohort, tuple(one.owner for one in too_slow), tuple(in_time))


def collect(federation: Federation, state: ServerState, asked: Asked, combiner: Combiner, clock: Clock) -> Collected:
    """Train the owners that may add to the sum, and add up what comes, in the order of arrival."""
    number = state.round + 1
    sealed: dict[str, Cover] = {}
    bytes_up = 0
    absent = {name: Absent(name, number, "dropped", "too slow for complete work") for name in asked.too_slow}
    absent |= {name: Absent(name, number, "absent", reason) for name, reason in combiner.lost.items()}
    may_add = set(combiner.owners)
    briefed = {
        one.owner: replace(one, weight_bound=federation.weight_bound, briefing=combiner.briefing(one.owner))
        for one in asked.assignments
        if one.owner in may_add
    }
    terms = next((one.terms(state.vector) for one in briefed.values()), b"")
    for answer in federation.cohort.train(state.vector, list(briefed.values())):
        clock.lap("train")
        if isinstance(answer, Absent):
            absent[answer.owner] = answer
            continue
        covers = answer.covers if isinstance(answer, Subtotal) else (answer.cover,)
        try:
            for cover in covers:
                _require_asked(cover, briefed, sealed)
                _require_terms(cover, terms)
                require_account(cover, state.spending.spent.get(cover.owner))
            _add(combiner, answer)
            sealed |= {cover.owner: cover for cover in covers}
            bytes_up += sum(answer.payload.nbytes + len(cover.proof) for cover in covers)
        except UpdateRefused as error:
            absent |= {one.owner: Absent(one.owner, one.round, "rejected", error.found, one.spent) for one in covers}
        clock.lap("combine")
    clock.lap("train")
    return Collected(combiner, sealed, absent, tuple(briefed), bytes_up)


def _add(combiner: Combiner, answer: Sealed | Subtotal) -> None:
    if isinstance(answer, Subtotal):
        combiner.add_subtotal(answer)
    else:
        combiner.add(answer)


def opened(collected: Collected) -> Collected:
    """With the sum in the clear, or without one where the round is abandoned; without updates that it left out."""
    try:
        total = collected.combiner.open()
    except RoundAbandoned:
        total = None
    left_out = {
        name: Absent(name, sealed.round, "absent", collected.combiner.lost[name], sealed.spent)
        for name, sealed in collected.sealed.items()
        if name in collected.combiner.lost
    }
    return replace(
        collected,
        total=total,
        sealed={name: sealed for name, sealed in collected.sealed.items() if name not in left_out},
        absent={**collected.absent, **left_out},
    )


def _require_asked(answer: Cover, asked: Mapping[str, Assignment], sealed: Mapping[str, Cover]) -> None:
    """Refuse an update of an owner or of a round that was not asked for, or a second one."""
    known = answer.owner in asked and answer.round == asked[answer.owner].plan.round
    if not known or answer.owner in sealed:
        raise UpdateRefused(
            f"an update of {answer.owner} for round {answer.round}", "one answer to what was asked", "check the owner"
        )


def _require_terms(answer: Cover, terms: bytes) -> None:
    """Refuse an update of another model or plan than the round's."""
    if answer.terms != terms:
        raise UpdateRefused("an update of another model or plan", "one of what was sent", "check the owner")
