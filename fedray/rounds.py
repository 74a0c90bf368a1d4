"""The rounds of a federation: select, broadcast, train, combine, open, step, evaluate, record.

This is all that the server does, wherever it runs. It holds totals, never single updates that it could keep, and no
owner's rows or secrets. It must not import ray or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedray.ahead import Ahead
from fedray.collecting import Asked, Clock, Collected, ask, collect, opened
from fedray.config import Experiment
from fedray.errors import RunError
from fedray.evaluating import Evaluation, evaluate
from fedray.federation import Federation, ServerState
from fedray.protocols import Combiner, State
from fedray.spending import Spending
from fedray.values import (
    Outcome,
    OwnerRecord,
    Released,
    RoundPlan,
    RoundRecord,
    Spent,
    Tally,
    Vector,
    sha256,
)

PATIENCE = 3
"""Rounds in a row in which every owner asked fails, is gone, is refused or refuses, before the run is given up."""
_FORESEEN = ("dropped", "exhausted")
"""Why owners may give no update without anything being wrong."""


After = tuple[ServerState, RoundRecord]
"""What a round leaves."""
Rounds = Callable[[Federation, ServerState | None], Iterator[After]]
"""Runs rounds to the end, from the start or from a state."""


@dataclass(frozen=True)
class Trained:
    """A round up to the new model.

    Attributes:
        state: the state after the round.
        asked: what was asked of whom.
        collected: what that gave.
        released: what the sum gave to the strategy.
        seconds: wall time by phase.
    """

    state: ServerState
    asked: Asked
    collected: Collected
    released: Released | None
    seconds: Mapping[str, float]

    def evaluate(self, federation: Federation) -> Evaluation:
        """What the new model is worth."""
        return evaluate(federation, self.state.vector, self.state.round, self.released)


def initial_state(federation: Federation) -> ServerState:
    """The state before the first round."""
    vector = federation.task.initial(federation.experiment.seed)
    strategy = federation.strategy.init(vector[: federation.task.n_parameters])
    return ServerState(round=0, vector=vector, strategy=strategy, mechanism=federation.mechanism.init())


def federate(federation: Federation, state: ServerState | None = None) -> Iterator[After]:
    """Run rounds to the end of the experiment, or of the owners' budgets, from its start or from a state.

    Raises:
        RunError: no owner has answered for some rounds.
    """
    state = state or initial_state(federation)
    ahead = Ahead(federation.combiner)
    while goes_on(federation.experiment, state):
        trained = train_round(federation, state, ahead)
        state = trained.state
        yield state, recorded(federation, trained, trained.evaluate(federation))


def goes_on(experiment: Experiment, state: ServerState) -> bool:
    """Whether there is another round."""
    return state.round < experiment.rounds and not state.is_exhausted


def train_round(federation: Federation, state: ServerState, ahead: Ahead[Combiner]) -> Trained:
    """One more round, up to the new model.

    Raises:
        RunError: for the last ``PATIENCE`` rounds no owner that was asked gave an update, though not for being slow.
    """
    number = state.round + 1
    clock = Clock()
    plan = federation.mechanism.plan(state.mechanism, federation.strategy.plan(state.strategy, number))
    asked = ask(federation, plan)
    combiner = ahead.take(number, asked.names)
    clock.lap("prepare")
    if number < federation.experiment.rounds:
        ahead.start(number + 1, ask(federation, replace(plan, round=number + 1)).names)

    gives = partial(federation.cohort.train, state.vector, patience_s=federation.experiment.close_after_s)
    collected = opened(collect(federation, state, asked, combiner, clock, gives))
    clock.lap("open")
    return stepped(federation, state, plan, asked, collected, clock)


def stepped(
    federation: Federation, state: ServerState, plan: RoundPlan, asked: Asked, collected: Collected, clock: Clock
) -> Trained:
    """The round after its sum was opened: what is released of it, the new model, and the books.

    Raises:
        RunError: see ``train_round``.
    """
    mechanism, released = federation.mechanism.release(state.mechanism, plan, collected.total)
    vector, strategy = _step(federation, state, released)
    clock.lap("step")
    spending = state.spending.after(collected.reached if federation.worst_spent else (), collected.answers)
    after = ServerState(
        round=plan.round,
        vector=vector,
        strategy=strategy,
        mechanism=mechanism,
        spending=spending,
        draws=state.draws,
        barren=_barren(state, asked, collected),
        is_exhausted=_is_exhausted(spending, collected, len(federation.cohort.population)),
    )
    return Trained(after, asked, collected, released, clock.seconds)


def recorded(federation: Federation, trained: Trained, evaluation: Evaluation) -> RoundRecord:
    """What is kept of a round."""
    state, collected = trained.state, trained.collected
    population = federation.cohort.population
    reported = state.spending.reported(population.names, state.round, federation.worst_spent)
    most = max(reported.values(), key=lambda spent: spent.epsilon, default=None)
    summed = collected.combiner.record()
    seconds = {**trained.seconds, "evaluate": evaluation.seconds}
    return RoundRecord(
        round=state.round,
        n_owners=len(population),
        cohort=trained.asked.cohort,
        n_updates=collected.combiner.n_added if collected.total else 0,
        n_rejected=sum(absent.outcome == "rejected" for absent in collected.absent.values()),
        metrics=evaluation.metrics,
        train_metrics=evaluation.train_metrics,
        central_metrics=evaluation.central_metrics,
        epsilon=most.epsilon if most else None,
        epsilon_rdp=most.epsilon_rdp if most else None,
        accountant=most.accountant if most else None,
        sum=summed,
        bytes_up=collected.bytes_up + summed.bytes_up,
        bytes_down=state.vector.nbytes * len(collected.reached) + summed.bytes_down,
        seconds={**seconds, "total": sum(seconds.values())},
        at_once=federation.cohort.at_once,
        work=federation.cohort.work(),
        owners=tuple(
            _owner_record(name, trained, reported.get(name), evaluation.tallies)
            for name in sorted({*trained.asked.cohort, *evaluation.tallies, *reported})
        ),
        parameters_sha256=sha256(state.vector),
    )


def _step(federation: Federation, state: ServerState, released: Released | None) -> tuple[Vector, State]:
    """Move parameters by the strategy and buffers by their plain mean; stay where nothing came."""
    if released is None:
        return state.vector, state.strategy
    mean = released.mean
    n = federation.task.n_parameters
    strategy, parameters = federation.strategy.step(state.strategy, state.vector[:n], mean[:n])
    buffers = (state.vector[n:] + mean[n:]).astype(np.float32)
    return np.concatenate([parameters, buffers]), strategy


def _is_exhausted(spending: Spending, collected: Collected, n_owners: int) -> bool:
    """Whether too few owners have a budget left to ever make up a sum again."""
    n_left = n_owners - len(spending.exhausted)
    return bool(spending.exhausted) and n_left < max(1, collected.combiner.record().min_owners)


def _barren(state: ServerState, asked: Asked, collected: Collected) -> int:
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


def _owner_record(name: str, trained: Trained, spent: Spent | None, tallies: Mapping[str, Tally]) -> OwnerRecord:
    collected = trained.collected
    sealed, absent = collected.sealed.get(name), collected.absent.get(name)
    tally = tallies.get(name)
    return OwnerRecord(
        name=name,
        outcome=_outcome(name, trained.asked, collected),
        reason=absent.reason if absent else "",
        n_steps=sealed.n_steps if sealed else 0,
        seconds=sealed.seconds if sealed else 0.0,
        epsilon=spent.epsilon if spent else None,
        epsilon_rdp=spent.epsilon_rdp if spent else None,
        n_holdout=tally.count if tally else 0,
        metrics=tally.means if tally else {},
        charges=spent.charges if spent else "",
        staleness=collected.staleness.get(name, 0),
    )


def _outcome(name: str, asked: Asked, collected: Collected) -> Outcome:
    if sealed := collected.sealed.get(name):
        if collected.total is None:
            return "unopened"
        return "update" if sealed.is_complete else "partial"
    if absent := collected.absent.get(name):
        return absent.outcome
    return "absent" if name in collected.reached and name in asked.cohort else "idle"
