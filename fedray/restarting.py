"""A server that is started again from the state after its last round when it is lost.

Nothing of the round in which it was lost was given to anyone but, through the protection, to the server itself: the
round is done again. Owners come anew with the server, and read from their disks what they have sealed and spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fedray.errors import ServerLost
from fedray.federation import ServerState
from fedray.rounds import After


class Federating(Protocol):
    """A federation that has started, wherever it runs."""

    def advance(self) -> After | None:
        """Run one round; None when the experiment is over.

        Raises:
            ServerLost: the server's process or node is gone.
            RunError: no owner answers any more.
        """

    def begin(self) -> None:
        """Begin the round that will be asked for next, where that goes on by itself and costs nobody privacy."""

    def notes(self) -> Sequence[str]:
        """Lines that tell the user how owners are run, where that was not fixed before."""

    def close(self) -> None:
        """Let everything go."""


class Restarting:
    """A federation that outlives its server.

    Attributes:
        n_restarts: how often the server was started again.

    Args:
        opens: starts a federation, from its beginning or from a state.
        state: what to begin from; None for the beginning.
        restarts: how often in a row the server is started again without a round in between.
        on_lost: called when the server was lost, before it is started again.

    Raises:
        FedrayError: the federation could not be opened.
    """

    def __init__(
        self,
        opens: Callable[[ServerState | None], Federating],
        state: ServerState | None,
        restarts: int,
        on_lost: Callable[[ServerLost], None],
    ) -> None:
        self._opens = opens
        self._state = state
        self._restarts = self._left = restarts
        self._on_lost = on_lost
        self._server = opens(state)
        self.n_restarts = 0

    def advance(self) -> After | None:
        """As ``Federating.advance``; a round in which the server is lost is done again.

        Raises:
            ServerLost: again and again.
            FedrayError: the federation could not be opened again.
        """
        while True:
            try:
                after = self._server.advance()
            except ServerLost as lost:
                self._start_again(lost)
                continue
            if after is not None:
                self._state, self._left = after[0], self._restarts
            return after

    def begin(self) -> None:
        """As ``Federating.begin``."""
        self._server.begin()

    def notes(self) -> Sequence[str]:
        """As ``Federating.notes``."""
        return self._server.notes()

    def close(self) -> None:
        """Let everything go."""
        self._server.close()

    def _start_again(self, lost: ServerLost) -> None:
        while self._left > 0:
            self._left -= 1
            self.n_restarts += 1
            self._on_lost(lost)
            self._server.close()
            try:
                self._server = self._opens(self._state)
                return
            except ServerLost as again:
                lost = again
        raise lost
