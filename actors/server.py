"""The actor that carries the server: it drives rounds and is asked for one record at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from fedray.federation import Federation
from fedray.overlapping import federate_overlapping
from fedray.rounds import Server, federate
from fedray.values import Population, RoundRecord, Vector


class ServerActor:
    """Opens the federation on ``start`` and runs one round a call.

    Under differential privacy no round runs that nobody asked for; without, the next one may.

    Args:
        open_federation: creates the owners' actors and all other parts, here.
    """

    def __init__(self, open_federation: Callable[[], Federation]) -> None:
        self._open_federation = open_federation
        self._server: Server | None = None

    def start(self) -> Population:
        """Open the federation; returns its owners.

        Raises:
            FedrayError: a part could not be opened.
        """
        federation = self._open_federation()
        is_private = federation.experiment.privacy.name != "none"
        self._server = Server(federation, federate if is_private else federate_overlapping)
        return self._server.federation.cohort.population

    def advance(self) -> RoundRecord | None:
        """Run one round; None when the experiment is over.

        Raises:
            RunError: no owner answers any more.
        """
        return self._started.advance()

    def vector(self) -> Vector:
        """The global model, shape ``(n_values,)``."""
        return self._started.vector

    def is_exhausted(self) -> bool:
        """Whether the run ended early, since too few owners have a budget left."""
        return self._started.is_exhausted

    def notes(self) -> Sequence[str]:
        """Lines that tell the user how owners are run, where that was not fixed before."""
        return self._started.federation.cohort.notes

    @property
    def _started(self) -> Server:
        assert self._server is not None, "start comes first"
        return self._server


RemoteServer: Any = ray.remote(ServerActor)
