"""The actor that carries the key holder of a homomorphic protection, and its counterpart at the server.

Its secret key is made inside it and is in no answer; what it may open it decides itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedray.config.cluster import Place
from fedray.errors import ProtocolError, ResourcesError
from fedray.protocols import KeyHolder


class KeyHolderActor:
    """Opens its role at once, so that the key is made where it will stay.

    Args:
        open_key_holder: makes the role, here.
    """

    def __init__(self, open_key_holder: Callable[[], KeyHolder]) -> None:
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
    """The server's hold on the key holder's actor.

    Args:
        open_key_holder: makes the role, inside the actor.
        place: where the actor must run.
        timeout_s: how long it may take to start, and to answer.

    Raises:
        ResourcesError: it did not start.
    """

    def __init__(self, open_key_holder: Callable[[], KeyHolder], place: Place, timeout_s: float) -> None:
        labels = {"label_selector": dict(place.labels)} if place.labels else {}
        self._timeout_s = timeout_s
        self._actor: Any = RemoteKeyHolder.options(
            num_cpus=0,
            resources=dict(place.resources),
            max_restarts=-1,
            max_task_retries=0,
            # outside a trial's placement group, which holds its owners
            scheduling_strategy=PlacementGroupSchedulingStrategy(None),  # type: ignore[arg-type]  # as Ray documents
            **labels,
        ).remote(open_key_holder)
        try:
            self._identity: bytes = ray.get(self._actor.identity.remote(), timeout=timeout_s)
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
            raise ProtocolError(
                f"no answer of the key holder ({type(error).__name__})", "an answer", "see whether its node is there"
            ) from None
        if isinstance(answer, bytes):
            return answer
        raise ProtocolError(*answer)
