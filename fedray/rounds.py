"""The rounds of a federation: select, broadcast, train, combine, open, step, evaluate, record.

This is all that the server does, wherever it runs. It holds totals, never single updates that it could keep, and no
owner's rows or secrets. It must not import ray or torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedray.config import Experiment
from fedray.errors import RunError, UpdateRefused
from fedray.protocols import Cohort, Combiner, Protection, State, Strategy, Task
from fedray.selection import assignments, cohort_of_round
from fedray.values import (
    Absent,
    Assignment,
    Examples,
    Outcome,
    OwnerRecord,
    Part,
    RoundRecord,
    Sealed,
    Spent,
    Tally,
    Vector,
    sha256,
)

PATIENCE = 3
"""Rounds in a row in which every owner asked fails, is gone, is refused or refuses, before the run is given up."""


@dataclass(frozen=True)
class Federation:
    """The parts of a run.

    Attributes:
        experiment: what was asked for.
        task: the server's own copy, for initial values and the central test set.
        strategy: the algorithm.
        protection: how updates are summed.
        cohort: the owners.
        central_test: the server's own test set, where there is one.
        worst_spent: under differential privacy, the most that an owner can have spent after so many rounds.
    """

    experiment: Experiment
    task: Task
    strategy: Strategy
    protection: Protection
    cohort: Cohort
    central_test: Examples | None
    worst_spent: Callable[[str, int], Spent] | None = None


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round; one serialisable value.

    Attributes:
        round: rounds done.
        vector: the global model, shape ``(n_values,)``.
        strategy: the strategy's arrays.
        spent: what each owner has last said that it spent.
        asked: rounds that each owner was asked to train in.
        lost: owners whose last answer was lost, so that nobody but they knows what they have spent since.
        barren: rounds in a row in which no owner that was asked gave an update, though not for being slow.
    """

    round: int
    vector: Vector
    strategy: State
    spent: Mapping[str, Spent]
    asked: Mapping[str, int]
    lost: frozenset[str]
    barren: int


@dataclass(frozen=True)
class _Collected:
    """What a cohort's training gave."""

    combiner: Combiner
    sealed: Mapping[str, Sealed]
    absent: Mapping[str, Absent]
    reached: tuple[str, ...]


def initial_state(federation: Federation) -> ServerState:
    """The state before the first round."""
    vector = federation.task.initial(federation.experiment.seed)
    strategy = federation.strategy.init(vector[: federation.task.n_parameters])
    return ServerState(round=0, vector=vector, strategy=strategy, spent={}, asked={}, lost=frozenset(), barren=0)


def federate(federation: Federation, state: ServerState | None = None) -> Iterator[tuple[ServerState, RoundRecord]]:
    """Run rounds to the end of the experiment, from its start or from a state.

    Raises:
        RunError: no owner has answered for some rounds.
    """
    state = state or initial_state(federation)
    while state.round < federation.experiment.rounds:
        state, record = one_round(federation, state)
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


def one_round(federation: Federation, state: ServerState) -> tuple[ServerState, RoundRecord]:
    """The state after one more round, and the round's record.

    Raises:
        RunError: for the last ``PATIENCE`` rounds no owner that was asked gave an update, though not for being slow.
    """
    experiment, number = federation.experiment, state.round + 1
    clock = _Clock()
    plan = federation.strategy.plan(state.strategy, number)
    names = [info.name for info in federation.cohort.owners]
    cohort = cohort_of_round(experiment.cohort, names, experiment.seed, number)
    asked = assignments(plan, cohort, experiment.stragglers, experiment.deadline_s, experiment.seed)

    collected = _collect(federation, state, asked, clock)
    vector, strategy = _step(federation, state, collected)
    clock.lap("step")

    metrics, train_metrics, central, tallies = _evaluate(federation, vector, number)
    clock.lap("evaluate")
    after = ServerState(
        round=number,
        vector=vector,
        strategy=strategy,
        spent=_spent(state, collected),
        asked=_asked(state, collected),
        lost=_lost(state, collected),
        barren=_barren(state, cohort, collected),
    )
    spending = _spending(federation, after, names)
    return after, RoundRecord(
        round=number,
        cohort=cohort,
        n_updates=collected.combiner.n_added,
        n_rejected=sum(absent.outcome == "rejected" for absent in collected.absent.values()),
        metrics=metrics,
        train_metrics=train_metrics,
        central_metrics=central,
        epsilon=max((spent.epsilon for spent in spending.values()), default=None),
        epsilon_rdp=max((spent.epsilon_rdp for spent in spending.values()), default=None),
        bytes_up=sum(sealed.payload.nbytes for sealed in collected.sealed.values()),
        bytes_down=state.vector.nbytes * len(collected.reached),
        seconds=clock.seconds,
        owners=tuple(_owner_record(name, cohort, collected, spending.get(name), tallies) for name in sorted(names)),
        parameters_sha256=sha256(vector),
    )


def _collect(federation: Federation, state: ServerState, asked: Sequence[Assignment], clock: _Clock) -> _Collected:
    """Train the cohort and add up what comes, in the order of arrival."""
    combiner = federation.protection.combiner()
    sealed: dict[str, Sealed] = {}
    absent = {
        assignment.owner: Absent(assignment.owner, assignment.plan.round, "dropped", "too slow for complete work")
        for assignment in asked
        if assignment.is_partial and not assignment.plan.accepts_partial_work
    }
    in_time = [assignment for assignment in asked if assignment.owner not in absent]
    for answer in federation.cohort.train(state.vector, in_time):
        clock.lap("train")
        if isinstance(answer, Absent):
            absent[answer.owner] = answer
            continue
        try:
            _require_asked(answer, in_time, sealed)
            _require_account(answer, state.spent.get(answer.owner))
            combiner.add(answer)
            sealed[answer.owner] = answer
        except UpdateRefused as error:
            absent[answer.owner] = Absent(answer.owner, answer.round, "rejected", error.found, answer.spent)
        clock.lap("combine")
    clock.lap("train")
    return _Collected(combiner, sealed, absent, reached=tuple(one.owner for one in in_time))


def _require_asked(answer: Sealed, asked: Sequence[Assignment], sealed: Mapping[str, Sealed]) -> None:
    """Refuse an update of an owner or of a round that was not asked for, or a second one."""
    known = any((answer.owner, answer.round) == (one.owner, one.plan.round) for one in asked)
    if not known or answer.owner in sealed:
        raise UpdateRefused(
            f"an update of {answer.owner} for round {answer.round}", "one answer to what was asked", "check the owner"
        )


def _require_account(answer: Sealed, before: Spent | None) -> None:
    """Refuse an update of an owner whose privacy account has forgotten what it said before."""
    after = answer.spent.epsilon if answer.spent else 0.0
    if before is not None and after < before.epsilon:
        raise UpdateRefused(
            f"an account that fell from epsilon {before.epsilon:.4g} to {after:.4g}",
            "an account that only grows",
            "pin the owner to the node that keeps its account",
        )


def _step(federation: Federation, state: ServerState, collected: _Collected) -> tuple[Vector, State]:
    """Move parameters by the strategy and buffers by their plain mean; stay where nothing came."""
    if collected.combiner.n_added == 0:
        return state.vector, state.strategy
    mean = federation.protection.opener().open(collected.combiner.combined).mean
    n = federation.task.n_parameters
    strategy, parameters = federation.strategy.step(state.strategy, state.vector[:n], mean[:n])
    buffers = (state.vector[n:] + mean[n:]).astype(np.float32)
    return np.concatenate([parameters, buffers]), strategy


def _evaluate(
    federation: Federation, vector: Vector, number: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float], dict[str, Tally]]:
    """Federated, training and central means, and each owner's held-out tally."""
    evaluation = federation.experiment.evaluation
    if number % evaluation.every and number != federation.experiment.rounds:
        return {}, {}, {}, {}
    tallies = _tallies(federation.cohort, vector, "holdout")
    train = _tallies(federation.cohort, vector, "train") if evaluation.train else {}
    central = federation.central_test
    return (
        merged(tallies.values()).means,
        merged(train.values()).means,
        federation.task.evaluate(vector, central).means if central is not None else {},
        tallies,
    )


def _tallies(cohort: Cohort, vector: Vector, part: Part) -> dict[str, Tally]:
    return dict(sorted(cohort.evaluate(vector, part)))


def merged(tallies: Iterable[Tally]) -> Tally:
    """One tally over all owners' examples."""
    sums: dict[str, float] = {}
    count = 0
    for tally in tallies:
        count += tally.count
        for name, value in tally.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return Tally(sums, count)


def _spent(state: ServerState, collected: _Collected) -> dict[str, Spent]:
    """The most that each owner has ever said: an account that forgot does not lower what was spent."""
    answers: list[Sealed | Absent] = [*collected.sealed.values(), *collected.absent.values()]
    spent = dict(state.spent)
    for answer in answers:
        before = spent.get(answer.owner)
        if answer.spent is not None and (before is None or answer.spent.epsilon >= before.epsilon):
            spent[answer.owner] = answer.spent
    return spent


def _asked(state: ServerState, collected: _Collected) -> dict[str, int]:
    return {**state.asked, **{name: state.asked.get(name, 0) + 1 for name in collected.reached}}


def _lost(state: ServerState, collected: _Collected) -> frozenset[str]:
    answers: list[Sealed | Absent] = [*collected.sealed.values(), *collected.absent.values()]
    heard = {answer.owner for answer in answers if answer.spent is not None}
    return (state.lost | frozenset(collected.reached)) - heard


def _spending(federation: Federation, state: ServerState, names: Sequence[str]) -> dict[str, Spent]:
    """What is reported of each owner: its own word, or the most that it can be where its word was lost."""
    if federation.worst_spent is None:
        return {}
    found = dict(state.spent)
    for name in names:
        if name in state.lost or name not in found:
            most = federation.worst_spent(name, state.asked.get(name, 0))
            found[name] = max(most, found.get(name, most), key=lambda spent: spent.epsilon)
    return found


def _barren(state: ServerState, cohort: tuple[str, ...], collected: _Collected) -> int:
    lost = [absent for absent in collected.absent.values() if absent.outcome != "dropped"]
    if not cohort or len(lost) < len(cohort):
        return 0 if cohort else state.barren
    if state.barren + 1 >= PATIENCE:
        raise RunError(
            f"for {PATIENCE} rounds no owner gave an update: "
            + "; ".join(sorted({f"{absent.owner}: {absent.reason}" for absent in lost})[:3]),
            "an update of at least one owner",
            "run again with --in-process to see where an owner fails; what was recorded is kept",
        )
    return state.barren + 1


def _owner_record(
    name: str,
    cohort: tuple[str, ...],
    collected: _Collected,
    spent: Spent | None,
    tallies: Mapping[str, Tally],
) -> OwnerRecord:
    sealed, absent = collected.sealed.get(name), collected.absent.get(name)
    tally = tallies.get(name)
    return OwnerRecord(
        name=name,
        outcome=_outcome(name, cohort, sealed, absent),
        reason=absent.reason if absent else "",
        n_steps=sealed.n_steps if sealed else 0,
        seconds=sealed.seconds if sealed else 0.0,
        epsilon=spent.epsilon if spent else None,
        epsilon_rdp=spent.epsilon_rdp if spent else None,
        n_holdout=tally.count if tally else 0,
        metrics=tally.means if tally else {},
    )


def _outcome(name: str, cohort: tuple[str, ...], sealed: Sealed | None, absent: Absent | None) -> Outcome:
    if sealed:
        return "update" if sealed.is_complete else "partial"
    if absent:
        return absent.outcome
    return "absent" if name in cohort else "idle"


class _Clock:
    """Wall time by phase. A lap is the time since the last lap; the total is the sum of all."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = dict.fromkeys(("train", "combine", "step", "evaluate"), 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[phase] += now - self._last
        self._last = now

    @property
    def seconds(self) -> dict[str, float]:
        return {**self._phases, "total": sum(self._phases.values())}
