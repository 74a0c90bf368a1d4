"""A server that is lost is started again from the state after its last round, and not for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest

from fedray.errors import ConfigError, FedrayError, ServerLost
from fedray.federation import ServerState
from fedray.restarting import Restarting
from fedray.rounds import After

N_ROUNDS = 5


def lost() -> ServerLost:
    return ServerLost("the server actor was lost", "one that lives", "resume")


class Servers:
    """Opens servers that do ``N_ROUNDS`` rounds, and fail as they are told to.

    Args:
        fails: before which of all advances of all servers together, counted from 1, one is lost.
        refuses: what the opening of which server, counted from 1, raises.
    """

    def __init__(self, fails: Sequence[int] = (), refuses: dict[int, FedrayError] | None = None) -> None:
        self.fails, self.refuses = fails, refuses or {}
        self.begun_from: list[int | None] = []
        self.closed: list[int] = []
        self.n_advances = 0

    def __call__(self, state: ServerState | None) -> Server:
        self.begun_from.append(None if state is None else state.round)
        if error := self.refuses.get(len(self.begun_from)):
            raise error
        return Server(self, len(self.begun_from), state.round if state else 0)


class Server:
    def __init__(self, servers: Servers, number: int, done: int) -> None:
        self._servers, self._number, self._done = servers, number, done

    def advance(self) -> After | None:
        self._servers.n_advances += 1
        if self._servers.n_advances in self._servers.fails:
            raise lost()
        if self._done == N_ROUNDS:
            return None
        self._done += 1
        return ServerState(self._done, np.zeros(1, np.float32), {}, {}), cast(Any, f"record {self._done}")

    def begin(self) -> None:
        """Nothing goes on by itself here."""

    def notes(self) -> Sequence[str]:
        return [f"server {self._number}"]

    def close(self) -> None:
        self._servers.closed.append(self._number)


def restarting(servers: Servers, restarts: int = 2, on_lost: Callable[[ServerLost], None] = lambda _: None) -> Any:
    return Restarting(servers, None, restarts, on_lost)


def rounds_of(federation: Restarting) -> Iterator[int]:
    while (after := federation.advance()) is not None:
        assert cast(Any, after[1]) == f"record {after[0].round}"
        yield after[0].round


def test_every_round_is_given_once_wherever_servers_are_lost() -> None:
    """Lost before the first round, between rounds, and after the last."""
    for fails in ([1], [2], [3, 5], [1, 3, 5, 7], [6], [6, 7]):
        servers, losses = Servers(fails), list[ServerLost]()
        federation = restarting(servers, on_lost=losses.append)
        assert list(rounds_of(federation)) == [1, 2, 3, 4, 5], fails
        assert federation.n_restarts == len(losses) == len(fails)
        assert servers.closed == list(range(1, len(fails) + 1)), "a lost server's owners are let go"


def test_each_server_begins_with_the_state_after_the_last_round_that_was_given() -> None:
    servers = Servers([1, 4, 5, 7])
    list(rounds_of(restarting(servers)))
    assert servers.begun_from == [None, None, 2, 2, 3]


def test_losses_without_a_round_in_between_end_the_run() -> None:
    servers = Servers([3, 4, 5])
    federation = restarting(servers, restarts=2)
    given = rounds_of(federation)
    assert [next(given), next(given)] == [1, 2]
    with pytest.raises(ServerLost):
        next(given)
    assert federation.n_restarts == 2


def test_a_round_in_between_gives_all_restarts_back() -> None:
    federation = restarting(Servers([2, 4, 6, 8, 10]), restarts=1)
    assert list(rounds_of(federation)) == [1, 2, 3, 4, 5]
    assert federation.n_restarts == 5


def test_without_restarts_the_loss_is_raised_and_nobody_is_told_of_a_restart() -> None:
    losses: list[ServerLost] = []
    servers = Servers([2])
    federation = restarting(servers, restarts=0, on_lost=losses.append)
    federation.advance()
    with pytest.raises(ServerLost):
        federation.advance()
    assert (federation.n_restarts, losses, servers.begun_from) == (0, [], [None])


def test_a_server_that_is_lost_while_it_starts_counts_too() -> None:
    servers = Servers([2], {2: lost(), 3: lost()})
    federation = restarting(servers, restarts=3)
    assert list(rounds_of(federation)) == [1, 2, 3, 4, 5]
    assert servers.begun_from == [None, 1, 1, 1]
    patient = restarting(Servers([2], {2: lost(), 3: lost()}), restarts=2)
    with pytest.raises(ServerLost):
        list(rounds_of(patient))


def test_another_error_while_it_starts_is_not_hidden_by_trying_again() -> None:
    servers = Servers([2], {2: ConfigError("a journal that cannot be read", "one", "restore it")})
    federation = restarting(servers, restarts=9)
    federation.advance()
    with pytest.raises(ConfigError):
        federation.advance()
    assert servers.begun_from == [None, 1]


def test_calls_go_to_the_server_that_is_there() -> None:
    federation = restarting(Servers([1]))
    assert federation.notes() == ["server 1"]
    federation.advance()
    assert federation.notes() == ["server 2"]
