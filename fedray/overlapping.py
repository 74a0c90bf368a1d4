"""Rounds that overlap: the model of one is evaluated while the next one trains.

That changes no result: training does not look at evaluations. It is for owners and servers in processes of their own,
and not for owners under differential privacy, whose rounds must not run before somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fedray.ahead import Ahead
from fedray.errors import RunError
from fedray.evaluating import Evaluation, is_evaluated
from fedray.federation import Federation, ServerState
from fedray.rounds import (
    After,
    Trained,
    goes_on,
    initial_state,
    recorded,
    train_round,
)


def federate_overlapping(federation: Federation, state: ServerState | None = None) -> Iterator[After]:
    """As ``fedray.rounds.federate``; what is evaluated is yielded once the next round was trained.

    Raises:
        RunError: no owner has answered for some rounds.
    """
    state = state or initial_state(federation)
    ahead = Ahead(federation.combiner)
    last: _Evaluating | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="evaluate") as thread:
        while goes_on(federation.experiment, state):
            try:
                trained = train_round(federation, state, ahead)
            except RunError:
                if last:
                    yield last.ended(federation)
                raise
            if last:
                yield last.ended(federation)
            state = trained.state
            last = _Evaluating(trained, thread.submit(trained.evaluate, federation))
            if not is_evaluated(federation, state.round):
                yield last.ended(federation)
                last = None
        if last:
            yield last.ended(federation)


@dataclass(frozen=True)
class _Evaluating:
    """A round whose model is being evaluated."""

    trained: Trained
    evaluation: Future[Evaluation]

    def ended(self, federation: Federation) -> After:
        """The state after the round and its record, once the evaluation is there."""
        return self.trained.state, recorded(federation, self.trained, self.evaluation.result())
