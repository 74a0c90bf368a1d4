"""Three computing parties as Ray actors, and the caller's hold on them.

    with fedray.Parties() as parties:
        x = fedray.share(torch.randn(3, 4), parties)
        print((x @ x.T).relu().reveal())

Whoever starts the parties says what they compute. Others, to whom the object is sent, may share values and be given
results.

It also introduces them: parties ask each other for their public keys over Ray, and those who share take them from this
object. A caller that named actors of its own as parties, or keys of its own as theirs, would read what is shared; so
would anybody who may run code in the actors, which Ray lets all do who reach the cluster. Start parties where all who
share trust the code that does so, and let Ray's network be theirs alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakValueDictionary

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from fedray.actors.party import RemoteParty
from fedray.actors.refusal import refusal_in
from fedray.actors.resources import key_holder_options, named
from fedray.actors.seats import identity_at
from fedray.actors.session import ray_session
from fedray.config.cluster import Place
from fedray.errors import ConfigError, FedrayError, ResourcesError, RunError
from fedray.mpc.conducting import Conductor, require_precision
from fedray.mpc.engine import Ref
from fedray.mpc.shares import N_PARTIES

START_S = 60.0
_AT_WORK, _AGAIN = "three parties at work", "start the parties again, then share again"


class HeldParties(Conductor):
    """A hold on three parties that are at work: enough to share values and to be given results.

    Args:
        session: names these parties.
        precision: fractional bits of fixed-point numbers.
        publics: the parties' public keys.
        actors: the parties.
    """

    def __init__(self, session: str, precision: int, publics: Sequence[bytes], actors: Sequence[Any]) -> None:
        self.session = session
        self._actors = list(actors)
        super().__init__(precision, publics)
        _LIVING[session] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _held, (self.session, self.precision, self._publics, self._actors)

    def run(self, operator: str, *_args: Any, **_options: Any) -> Ref:
        """Refuse.

        Raises:
            RunError: always.
        """
        raise RunError(
            f"operator {operator!r} in a process that did not start the parties",
            "computing where they were started",
            "share here, send the shared tensor there, and compute there",
        )

    def close(self) -> None:
        """Nothing: whoever started the parties ends them."""

    def _ask(self, index: int, method: str, *args: Any) -> Any:
        if not self._actors or not ray.is_initialized():
            raise RunError("parties that were ended", _AT_WORK, _AGAIN)
        return self._actors[index].ask.remote(method, *args)

    def _answers(self, asked: Sequence[Any]) -> list[Any]:
        try:
            answers = list(ray.get(list(asked)))
        except RayActorError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise RunError(f"a party is gone: {reason}", _AT_WORK, _AGAIN) from None
        for answer in answers:
            if isinstance(answer, FedrayError):
                raise answer
        return answers


class Parties(HeldParties):
    """Three parties, each an actor on a node of its own where there are three; a context manager.

    Args:
        precision: fractional bits of fixed-point numbers, 1 to 26: values and products must stay below
            2**(62 - 2 precision).
        places: where each of the three must run, as ``{"labels": {...}, "resources": {...}}``; anywhere if left out.
        address: of a Ray cluster; None for the one that is there, or this machine.

    Raises:
        ConfigError: no such precision, or not three places.
        ResourcesError: there is no such cluster, or a party did not start.
    """

    def __init__(
        self,
        precision: int = 20,
        places: Sequence[Mapping[str, Any]] | None = None,
        address: str | None = None,
    ) -> None:
        require_precision(precision)
        seats = _places(places)
        session = secrets.token_hex(3)
        with ExitStack() as closing:
            closing.enter_context(ray_session(address))
            actors = [_started(index, precision, place, session) for index, place in enumerate(seats)]
            for actor in actors:
                closing.callback(ray.kill, actor)
            publics = _joined(actors)
            self._closing = closing.pop_all()
        super().__init__(session, precision, publics, actors)

    def run(self, operator: str, *args: Any, **options: Any) -> Ref:
        """Have the parties compute; as ``engine.Parties.run``."""
        return Conductor.run(self, operator, *args, **options)

    def close(self) -> None:
        """End the parties. What they held is lost."""
        self._actors = []
        self._closing.close()


_LIVING: WeakValueDictionary[str, HeldParties] = WeakValueDictionary()
"""This process's hold on parties, by session: one however often it came, so that its reader is one too."""


def _held(session: str, precision: int, publics: Sequence[bytes], actors: Sequence[Any]) -> HeldParties:
    return _LIVING.get(session) or HeldParties(session, precision, publics, actors)


def _places(places: Sequence[Mapping[str, Any]] | None) -> list[Place]:
    given = [Place.model_validate(place) for place in places or [{}] * N_PARTIES]
    if len(given) != N_PARTIES:
        raise ConfigError(f"places for {len(given)} parties", "one for each of three", "name three places, or none")
    return given


def _started(index: int, precision: int, place: Place, session: str) -> Any:
    options = {**key_holder_options(place), "max_restarts": 0, **named(f"party {index}", session)}
    spread = {} if place.labels or place.resources else {"scheduling_strategy": "SPREAD"}
    return RemoteParty.options(**options, **spread).remote(index, precision, identity_at(place, f"party-{index}"))


def _joined(actors: Sequence[Any]) -> list[bytes]:
    try:
        answers = ray.get([actor.join.remote(list(actors)) for actor in actors], timeout=START_S)
    except GetTimeoutError:
        raise ResourcesError(
            f"the parties did not start within {START_S:g} s", "nodes that fit their places", "see fedray doctor"
        ) from None
    except RayActorError as error:
        if refusal := refusal_in(error):
            raise refusal.error from None
        raise ResourcesError(
            "a party that did not start", "three actors that start", str(error).strip().rpartition("\n")[2]
        ) from None
    publics: list[bytes] = answers[0]
    return publics
