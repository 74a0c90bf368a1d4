"""What a round asks of whom, and what comes of it: select, broadcast, combine, open.

It holds totals, never single updates that it could keep. It must not import ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedray.config import Experiment
from fedray.errors import RoundAbandoned, UpdateRefused
from fedray.federation import Federation, ServerState
from fedray.protocols import Combiner
from fedray.selection import assignments, cohort_of_round
from fedray.spending import require_account
from fedray.values import Absent, Assignment, Cover, RoundPlan, Sealed, Subtotal, Total

Gives = Callable[[Sequence[Assignment]], Iterable[Sealed | Subtotal | Absent]]
"""Has owners do what they are asked, and yields what they answer as it comes."""


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
    """What a cohort's training gave.

    Attributes:
        combiner: the round's sum.
        sealed: covers of the updates in it.
        absent: why others are not.
        reached: owners that were given a model.
        bytes_up: sealed updates received.
        total: the sum in the clear; None before it is opened, or where it is not.
        staleness: how many rounds old the models are that updates were trained from; 0 where nothing is said.
    """

    combiner: Combiner
    sealed: Mapping[str, Cover]
    absent: Mapping[str, Absent]
    reached: tuple[str, ...]
    bytes_up: int
    total: Total | None = None
    staleness: Mapping[str, int] = field(default_factory=dict)

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


def collect(
    federation: Federation, state: ServerState, asked: Asked, combiner: Combiner, clock: Clock, gives: Gives
) -> Collected:
    """Ask the owners that may add to the sum, and add up what comes until the round is closed.

    In the order of arrival. A round is closed once it has the updates that it takes, or nobody answers any more.
    """
    number = state.round + 1
    absent = {name: Absent(name, number, "dropped", "too slow for complete work") for name in asked.too_slow}
    absent |= {name: Absent(name, number, "absent", reason) for name, reason in combiner.lost.items()}
    briefed = _briefed(federation, asked, combiner)
    taking = _Taking(state, combiner, briefed, absent)
    enough = federation.experiment.most_in_a_sum(len(federation.cohort.population))
    for answer in gives(list(briefed.values())):
        clock.lap("train")
        taking.take(answer)
        clock.lap("combine")
        if combiner.n_added >= enough and taking.is_waited_for:
            break
    clock.lap("train")
    collected = Collected(combiner, taking.sealed, taking.absent, tuple(briefed), taking.bytes_up)
    return _late(collected, federation.experiment, number, enough)


def _late(collected: Collected, experiment: Experiment, round: int, enough: int) -> Collected:
    """With a word on those who were reached and did not answer before the round was closed."""
    if collected.combiner.n_added >= enough:
        reason = f"the round was closed after {enough} updates"
    elif experiment.close_after_s is not None:
        reason = f"the round was closed after {experiment.close_after_s:g} s"
    else:
        return collected
    answered = {*collected.sealed, *collected.absent}
    late = {name: Absent(name, round, "dropped", reason) for name in collected.reached if name not in answered}
    return replace(collected, absent={**collected.absent, **late})


def _briefed(federation: Federation, asked: Asked, combiner: Combiner) -> dict[str, Assignment]:
    """What the owners that may add to the sum are asked."""
    may_add = set(combiner.owners)
    return {
        one.owner: replace(one, weight_bound=federation.weight_bound, briefing=combiner.briefing(one.owner))
        for one in asked.assignments
        if one.owner in may_add
    }


class _Taking:
    """Answers as they come: into the sum, or into the list of those who are absent."""

    def __init__(
        self, state: ServerState, combiner: Combiner, briefed: Mapping[str, Assignment], absent: dict[str, Absent]
    ) -> None:
        self.sealed: dict[str, Cover] = {}
        self.absent = absent
        self.bytes_up = 0
        self._state = state
        self._combiner = combiner
        self._briefed = briefed
        self._terms = next((one.terms(state.vector) for one in briefed.values()), b"")

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody has not answered yet."""
        return not self._briefed.keys() <= {*self.sealed, *self.absent}

    def take(self, answer: Sealed | Subtotal | Absent) -> None:
        """Add an update to the sum, or note why there is none."""
        if isinstance(answer, Absent):
            self.absent[answer.owner] = answer
            return
        covers = answer.covers if isinstance(answer, Subtotal) else (answer.cover,)
        try:
            for cover in covers:
                _require_asked(cover, self._briefed, self.sealed)
                _require_terms(cover, self._terms)
                require_account(cover, self._state.spending.spent.get(cover.owner))
            _add(self._combiner, answer)
        except UpdateRefused as error:
            refused = {one.owner: Absent(one.owner, one.round, "rejected", error.found, one.spent) for one in covers}
            self.absent |= refused
            return
        self.sealed |= {cover.owner: cover for cover in covers}
        self.bytes_up += sum(answer.payload.nbytes + len(cover.proof) for cover in covers)


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
