"""The actor that carries the server: it drives rounds and is asked for one record at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from fedray.actors.metrics import Metrics
from fedray.federation import Federation, ServerState
from fedray.overlapping import federate_overlapping
from fedray.protocols import Cohort
from fedray.rounds import After, federate
from fedray.scheduling import rounds_of
from fedray.values import Population


class ServerActor:
    """Opens the federation on ``start`` and runs one round a call.

    Under differential privacy no round runs that nobody asked for; without, the next one may.

    Args:
        open_federation: creates the owners' actors and all other parts, here.
        label: what the run is called in metrics.
        is_restart: whether it takes the place of a server that was lost.
    """

    _rounds: Iterator[After]
    _cohort: Cohort

    def __init__(self, open_federation: Callable[[], Federation], label: str = "run", is_restart: bool = False) -> None:
        self._open_federation = open_federation
        self._label = label
        self._is_restart = is_restart

    def start(self, state: ServerState | None = None) -> Population:
        """Open the federation; returns its owners.

        Args:
            state: what to begin from; None for the beginning.

        Raises:
            FedrayError: a part could not be opened.
        """
        federation = self._open_federation()
        self._metrics = Metrics(self._label)
        if self._is_restart:
            self._metrics.restarted()
        experiment = federation.experiment
        is_private = experiment.privacy.name != "none"
        rounds = rounds_of(experiment, federate if is_private else federate_overlapping)
        self._rounds = rounds(federation, state)
        self._cohort = federation.cohort
        return self._cohort.population

    def advance(self) -> After | None:
        """Run one round; None when the experiment is over.

        Raises:
            RunError: no owner answers any more.
        """
        after = next(self._rounds, None)
        if after is not None:
            self._metrics.report(after[1])
        return after

    def notes(self) -> Sequence[str]:
        """Lines that tell the user how owners are run, where that was not fixed before."""
        return self._cohort.notes


RemoteServer: Any = ray.remote(ServerActor)
