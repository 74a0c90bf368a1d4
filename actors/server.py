"""The actor that carries the server: it drives rounds and is asked for one record at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray

from fedray.rounds import Federation, ServerState, federate, initial_state
from fedray.values import OwnerInfo, RoundRecord, Vector


class ServerActor:
    """Opens the federation on ``start`` and runs one round a call, so that no round runs that nobody asked for.

    Args:
        open_federation: creates the owners' actors and all other parts, here.
    """

    def __init__(self, open_federation: Callable[[], Federation]) -> None:
        self._open_federation = open_federation
        self._rounds: Iterator[tuple[ServerState, RoundRecord]] = iter(())
        self._state: ServerState | None = None

    def start(self) -> list[OwnerInfo]:
        """Open the federation; returns its owners.

        Raises:
            FedrayError: a part could not be opened.
        """
        federation = self._open_federation()
        self._state = initial_state(federation)
        self._rounds = federate(federation, self._state)
        return list(federation.cohort.owners)

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

    def vector(self) -> Vector:
        """The global model, shape ``(n_values,)``."""
        assert self._state is not None
        return self._state.vector


RemoteServer: Any = ray.remote(ServerActor)
