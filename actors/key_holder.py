"""The actor that carries the key holder of a homomorphic protection, and its counterpart at the server.

Its secret key is made inside it and is in no answer; what it may open it decides itself.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedray.actors.refusal import refusal_in, require_here
from fedray.actors.resources import key_holder_options, named
from fedray.actors.seats import identity_at
from fedray.config.cluster import Place
from fedray.config.learning import KEY_HOLDER
from fedray.errors import ProtocolError, ResourcesError
from fedray.protocols import KeyHolder


class KeyHolderActor:
    """Opens its role at once, so that the key is made where it will stay.

    Args:
        open_key_holder: makes the role, here.
        identity: what the node's identity file must name; None where any node will do.

    Raises:
        ResourcesError: the node is another's.
    """

    def __init__(self, open_key_holder: Callable[[], KeyHolder], identity: str | None = None) -> None:
        if identity is not None:
            require_here(identity)
        self._role = open_key_holder()

    def identity(self) -> bytes:
        """Its public signing key."""
        return self._role.identity

    def answer(self, message: bytes) -> bytes | tuple[str, str, str]:
        """The answer to a message of the protocol, or why there is none."""
        try:
            return self._role.answer(message)
        except ProtocolError as error:
            return error.found, error.expected, error.remedy


RemoteKeyHolder: Any = ray.remote(KeyHolderActor)


class RayKeyHolder:
    """The server's hold on the key holder's actor. One that is dead for good is made anew, for the next message.

    Args:
        open_key_holder: makes the role, inside the actor.
        place: where the actor must run.
        timeout_s: how long it may take to start, and to answer.
        run: stands in the actor's name; unique in the cluster. A random one when left out.

    Raises:
        ResourcesError: it did not start, or its node is another's.
    """

    def __init__(
        self, open_key_holder: Callable[[], KeyHolder], place: Place, timeout_s: float, run: str | None = None
    ) -> None:
        self._open_key_holder = open_key_holder
        self._place = place
        self._timeout_s = timeout_s
        self._run = run or token_hex(3)
        self._n_made = 0
        self._actor: Any = self._made()
        try:
            self._identity: bytes = ray.get(self._actor.identity.remote(), timeout=timeout_s)
        except ActorDiedError as error:
            if refusal := refusal_in(error):
                raise refusal.error from None
            raise
        except GetTimeoutError:
            ray.kill(self._actor)
            raise ResourcesError(
                f"the key holder did not start within {timeout_s:g} s",
                "a node that fits protection.key_holder",
                "start that node, or correct protection.key_holder",
            ) from None

    @property
    def identity(self) -> bytes:
        return self._identity

    def answer(self, message: bytes) -> bytes:
        """Its answer to a message of the protocol.

        Raises:
            ProtocolError: it refuses, or it is gone.
        """
        try:
            answer = ray.get(self._actor.answer.remote(message), timeout=self._timeout_s)
        except (RayError, GetTimeoutError) as error:
            if isinstance(error, ActorDiedError):
                self._actor = self._made()
            raise ProtocolError(
                f"no answer of the key holder ({type(error).__name__})", "an answer", "see whether its node is there"
            ) from None
        if isinstance(answer, bytes):
            return answer
        raise ProtocolError(*answer)

    def _made(self) -> Any:
        self._n_made += 1
        again = f" ({self._n_made})" if self._n_made > 1 else ""
        return RemoteKeyHolder.options(
            **key_holder_options(self._place),
            **named(KEY_HOLDER, self._run + again),
            # outside a trial's placement group, which holds its owners
            scheduling_strategy=PlacementGroupSchedulingStrategy(None),  # type: ignore[arg-type]  # as Ray documents
        ).remote(self._open_key_holder, identity_at(self._place, KEY_HOLDER))
