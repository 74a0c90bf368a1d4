"""The rounds of a federation: select, broadcast, train, combine, open, step, evaluate, record.

This is all that the server does, wherever it runs. It holds totals, never single updates that it could keep, and no
owner's rows or secrets. It must not import ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fedray.ahead import Ahead
from fedray.config import Experiment
from fedray.errors import RoundAbandoned, RunError, UpdateRefused
from fedray.protocols import Cohort, Combiner, Mechanism, Protection, State, Strategy, Task
from fedray.selection import assignments, cohort_of_round, evaluated
from fedray.spending import Spending, WorstSpent, require_account
from fedray.values import (
    Absent,
    Assignment,
    Cover,
    Examples,
    Outcome,
    OwnerRecord,
    Released,
    RoundPlan,
    RoundRecord,
    Sealed,
    Spent,
    Subtotal,
    Tally,
    Total,
    Vector,
    sha256,
)

PATIENCE = 3
"""Rounds in a row in which every owner asked fails, is gone, is refused or refuses, before the run is given up."""
_FORESEEN = ("dropped", "exhausted")
"""Why owners may give no update without anything being wrong."""


@dataclass(frozen=True)
class Federation:
    """The parts of a run.

    Attributes:
        experiment: what was asked for.
        task: the server's own copy, for initial values and the central test set.
        strategy: the algorithm.
        protection: the server's half of how updates are summed.
        mechanism: the server's half of owner-level privacy.
        cohort: the owners.
        central_test: the server's own test set, where there is one.
        weight_bound: largest weight of an update.
        cohort_seed: what cohorts are drawn from; a secret where being drawn must stay secret.
        evaluates_owners: whether owners' held-out figures are asked for as they are.
        worst_spent: under differential privacy, the most that an owner can have spent.
    """

    experiment: Experiment
    task: Task
    strategy: Strategy
    protection: Protection
    mechanism: Mechanism
    cohort: Cohort
    central_test: Examples | None
    weight_bound: int
    cohort_seed: int
    evaluates_owners: bool = True
    worst_spent: WorstSpent | None = None

    def combiner(self, round: int, owners: Sequence[str]) -> Combiner:
        """The prepared sum of one round."""
        return self.protection.combiner(round, owners, partial(self.cohort.ask, round))


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round; one serialisable value.

    Attributes:
        round: rounds done.
        vector: the global model, shape ``(n_values,)``.
        strategy: the strategy's arrays.
        mechanism: the arrays of owner-level privacy; under noise that is correlated over rounds they hold past noise,
            and are as secret as the updates.
        spending: what owners have spent.
        barren: rounds in a row in which no owner that was asked gave an update, though not for being slow.
        is_exhausted: whether the last round failed for want of owners with a budget left: the run is over.
    """

    round: int
    vector: Vector
    strategy: State
    mechanism: State
    spending: Spending = field(default_factory=Spending)
    barren: int = 0
    is_exhausted: bool = False


@dataclass(frozen=True)
class _Asked:
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
class _Collected:
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


def initial_state(federation: Federation) -> ServerState:
    """The state before the first round."""
    vector = federation.task.initial(federation.experiment.seed)
    strategy = federation.strategy.init(vector[: federation.task.n_parameters])
    return ServerState(round=0, vector=vector, strategy=strategy, mechanism=federation.mechanism.init())


def federate(federation: Federation, state: ServerState | None = None) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Run rounds to the end of the experiment, or of the owners' budgets, from its start or from a state.

    Raises:
        RunError: no owner has answered for some rounds.
    """
    state = state or initial_state(federation)
    ahead = Ahead(federation.combiner)
    while state.round < federation.experiment.rounds and not state.is_exhausted:
        state, record = one_round(federation, state, ahead)
        yield state, record


class Server:
    """A federation whose rounds run one at a time, as they are asked for."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._state = initial_state(federation)
        self._rounds = federate(federation, self._state)

    @property
    def vector(self) -> Vector:
        """The global model, shape ``(n_values,)``."""
        return self._state.vector

    @property
    def is_exhausted(self) -> bool:
        """Whether the run ended early, since too few owners have a budget left."""
        return self._state.is_exhausted

    def advance(self) -> RoundRecord | None:
        """Run one round; None when the experiment is over.

        Raises:
            RunError: no owner answers any more.
        """
        after = next(self._rounds, None)
        if after is None:
            return None
        self._state, record = after
        return record


def one_round(federation: Federation, state: ServerState, ahead: Ahead[Combiner]) -> tuple[ServerState, RoundRecord]:
    """The state after one more round, and the round's record.

    Raises:
        RunError: for the last ``PATIENCE`` rounds no owner that was asked gave an update, though not for being slow.
    """
    number = state.round + 1
    clock = _Clock()
    plan = federation.mechanism.plan(state.mechanism, federation.strategy.plan(state.strategy, number))
    asked = _ask(federation, plan)
    combiner = ahead.take(number, asked.names)
    clock.lap("prepare")
    if number < federation.experiment.rounds:
        ahead.start(number + 1, _ask(federation, replace(plan, round=number + 1)).names)

    collected = _open(_collect(federation, state, asked, combiner, clock))
    clock.lap("open")
    mechanism, released = federation.mechanism.release(state.mechanism, plan, collected.total)
    vector, strategy = _step(federation, state, released)
    clock.lap("step")

    metrics, train_metrics, central, tallies = _evaluate(federation, vector, number, released)
    clock.lap("evaluate")
    population = federation.cohort.population
    spending = state.spending.after(collected.reached if federation.worst_spent else (), collected.answers)
    after = ServerState(
        round=number,
        vector=vector,
        strategy=strategy,
        mechanism=mechanism,
        spending=spending,
        barren=_barren(state, asked, collected),
        is_exhausted=_is_exhausted(spending, collected, len(population)),
    )
    reported = spending.reported(population.names, number, federation.worst_spent)
    most = max(reported.values(), key=lambda spent: spent.epsilon, default=None)
    summed = collected.combiner.record()
    return after, RoundRecord(
        round=number,
        n_owners=len(population),
        cohort=asked.cohort,
        n_updates=collected.combiner.n_added if collected.total else 0,
        n_rejected=sum(absent.outcome == "rejected" for absent in collected.absent.values()),
        metrics=metrics,
        train_metrics=train_metrics,
        central_metrics=central,
        epsilon=most.epsilon if most else None,
        epsilon_rdp=most.epsilon_rdp if most else None,
        accountant=most.accountant if most else None,
        sum=summed,
        bytes_up=collected.bytes_up + summed.bytes_up,
        bytes_down=state.vector.nbytes * len(collected.reached) + summed.bytes_down,
        seconds=clock.seconds,
        at_once=federation.cohort.at_once,
        work=federation.cohort.work(),
        owners=tuple(
            _owner_record(name, collected, reported.get(name), tallies)
            for name in sorted({*asked.cohort, *tallies, *reported})
        ),
        parameters_sha256=sha256(vector),
    )


def _ask(federation: Federation, plan: RoundPlan) -> _Asked:
    """Who takes part in the round of this plan, and what each is asked."""
    experiment = federation.experiment
    names = federation.cohort.population.names
    cohort = cohort_of_round(experiment.cohort, names, federation.cohort_seed, plan.round)
    drawn = assignments(plan, cohort, experiment.stragglers, experiment.deadline_s, experiment.seed)
    too_slow = tuple(one.owner for one in drawn if one.is_partial and not plan.accepts_partial_work)
    in_time = tuple(one for one in drawn if one.owner not in too_slow)
    return _Asked(cohort, too_slow, in_time)


def _collect(
    federation: Federation, state: ServerState, asked: _Asked, combiner: Combiner, clock: _Clock
) -> _Collected:
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
            bytes_up += answer.payload.nbytes + sum(len(cover.proof) for cover in covers)
        except UpdateRefused as error:
            absent |= {one.owner: Absent(one.owner, one.round, "rejected", error.found, one.spent) for one in covers}
        clock.lap("combine")
    clock.lap("train")
    return _Collected(combiner, sealed, absent, tuple(briefed), bytes_up)


def _add(combiner: Combiner, answer: Sealed | Subtotal) -> None:
    if isinstance(answer, Subtotal):
        combiner.add_subtotal(answer)
    else:
        combiner.add(answer)


def _open(collected: _Collected) -> _Collected:
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


def _step(federation: Federation, state: ServerState, released: Released | None) -> tuple[Vector, State]:
    """Move parameters by the strategy and buffers by their plain mean; stay where nothing came."""
    if released is None:
        return state.vector, state.strategy
    mean = released.mean
    n = federation.task.n_parameters
    strategy, parameters = federation.strategy.step(state.strategy, state.vector[:n], mean[:n])
    buffers = (state.vector[n:] + mean[n:]).astype(np.float32)
    return np.concatenate([parameters, buffers]), strategy


def _evaluate(
    federation: Federation, vector: Vector, number: int, released: Released | None
) -> tuple[dict[str, float], dict[str, float], dict[str, float], dict[str, Tally]]:
    """Federated, training and central means, and each owner's held-out tally."""
    evaluation = federation.experiment.evaluation
    if number % evaluation.every and number != federation.experiment.rounds:
        return {}, {}, {}, {}
    owners = evaluated(evaluation, federation.cohort.population, federation.experiment.seed, number)
    tallies = dict(federation.cohort.evaluate(vector, "holdout", owners)) if federation.evaluates_owners else {}
    train = dict(federation.cohort.evaluate(vector, "train", owners)) if evaluation.train else {}
    central = federation.central_test
    return (
        {**(released.metrics if released else {}), **merged(tallies).means},
        merged(train).means,
        federation.task.evaluate(vector, central).means if central is not None else {},
        tallies,
    )


def merged(tallies: Mapping[str, Tally]) -> Tally:
    """One tally over all owners' examples, added up in the order of their names."""
    sums: dict[str, float] = {}
    count = 0
    for _, tally in sorted(tallies.items()):
        count += tally.count
        for name, value in tally.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return Tally(sums, count)


def _is_exhausted(spending: Spending, collected: _Collected, n_owners: int) -> bool:
    """Whether too few owners have a budget left to ever make up a sum again."""
    n_left = n_owners - len(spending.exhausted)
    return bool(spending.exhausted) and n_left < max(1, collected.combiner.record().min_owners)


def _barren(state: ServerState, asked: _Asked, collected: _Collected) -> int:
    """Rounds in a row without a sum, though not for want of owners in time."""
    if len(asked.cohort) < max(1, collected.combiner.record().min_owners):
        return state.barren
    if collected.total is not None or any(one.outcome in _FORESEEN for one in collected.absent.values()):
        return 0
    if state.barren + 1 >= PATIENCE:
        reasons = {f"{absent.owner}: {absent.reason}" for absent in collected.absent.values()}
        raise RunError(
            f"for {PATIENCE} rounds there was no sum of updates: "
            + "; ".join([text for text in [collected.combiner.record().reason] if text] + sorted(reasons)[:3]),
            "enough owners that give one",
            "run again with --in-process to see where an owner fails; what was recorded is kept",
        )
    return state.barren + 1


def _owner_record(name: str, collected: _Collected, spent: Spent | None, tallies: Mapping[str, Tally]) -> OwnerRecord:
    sealed, absent = collected.sealed.get(name), collected.absent.get(name)
    tally = tallies.get(name)
    return OwnerRecord(
        name=name,
        outcome=_outcome(name, collected),
        reason=absent.reason if absent else "",
        n_steps=sealed.n_steps if sealed else 0,
        seconds=sealed.seconds if sealed else 0.0,
        epsilon=spent.epsilon if spent else None,
        epsilon_rdp=spent.epsilon_rdp if spent else None,
        n_holdout=tally.count if tally else 0,
        metrics=tally.means if tally else {},
        charges=spent.charges if spent else "",
    )


def _outcome(name: str, collected: _Collected) -> Outcome:
    if sealed := collected.sealed.get(name):
        if collected.total is None:
            return "unopened"
        return "update" if sealed.is_complete else "partial"
    if absent := collected.absent.get(name):
        return absent.outcome
    return "absent" if name in collected.reached else "idle"


class _Clock:
    """Wall time by phase. A lap is the time since the last lap; the total is the sum of all."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = dict.fromkeys(("prepare", "train", "combine", "open", "step", "evaluate"), 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[phase] += now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        return {**self._phases, "total": sum(self._phases.values())}
