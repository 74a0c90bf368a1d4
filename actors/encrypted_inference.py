"""The actor that serves a model on encrypted inputs, and a client's hold on it.

The model is opened inside the actor and is in none of its answers. Requests and replies are ciphertexts, so that they
may pass through Ray's object store; the secret key stays with the client, which is no actor's business.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError

from fedray.actors.resources import key_holder_options, named
from fedray.config.cluster import Place
from fedray.encrypted import Description, EncryptedModel
from fedray.errors import FedrayError, ModelError, ProtocolError, ResourcesError

MODEL = "encrypted model"
"""What actors of models are named by."""

T = TypeVar("T")
Refused = tuple[type[FedrayError], str, str, str]


class EncryptedModelActor:
    """Opens its model on first use, so that a model that cannot be opened is an error of that call.

    Args:
        open_model: makes the model, here.
    """

    def __init__(self, open_model: Callable[[], EncryptedModel]) -> None:
        self._open_model = open_model
        self._opened: EncryptedModel | None = None

    def public_description(self) -> Description | Refused:
        """What clients are made from, or why there is no model."""
        return _attempted(lambda: self._model().public_description)

    def answer(self, request: bytes) -> bytes | Refused:
        """The encrypted outputs, or why there are none."""
        return _attempted(lambda: self._model()(request))

    def _model(self) -> EncryptedModel:
        if self._opened is None:
            self._opened = self._open_model()
        return self._opened


RemoteEncryptedModel: Any = ray.remote(EncryptedModelActor)


class RayEncryptedModel:
    """A model in an actor, used as an ``EncryptedModel`` is.

    Args:
        open_model: makes the model, inside the actor.
        place: where the actor must run; anywhere when left out.
        timeout_s: how long it may take to start, and to answer.

    Raises:
        ModelError: the model cannot be computed so.
        ResourcesError: the actor did not start.
    """

    def __init__(
        self, open_model: Callable[[], EncryptedModel], place: Place | None = None, timeout_s: float = 120.0
    ) -> None:
        self._timeout_s = timeout_s
        options = {**key_holder_options(place or Place()), **named(MODEL, token_hex(3))}
        self._actor: Any = RemoteEncryptedModel.options(**options).remote(open_model)
        try:
            self._description: Description = self._got(self._actor.public_description.remote())
        except (RayError, GetTimeoutError) as error:
            self.close()
            raise ResourcesError(
                f"no encrypted model ({type(error).__name__})",
                f"one within {timeout_s:g} s",
                "see Ray's logs of its actor",
            ) from None
        except FedrayError:
            self.close()
            raise

    @property
    def public_description(self) -> Description:
        return self._description

    def __call__(self, request: bytes) -> bytes:
        """The encrypted outputs for encrypted inputs.

        Raises:
            ProtocolError: it refuses, or does not answer.
        """
        try:
            reply: bytes = self._got(self._actor.answer.remote(request))
        except (RayError, GetTimeoutError) as error:
            raise ProtocolError(
                f"no answer of the model ({type(error).__name__})", "an answer", "see whether its node is there"
            ) from None
        return reply

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)

    def _got(self, ref: Any) -> Any:
        answer = ray.get(ref, timeout=self._timeout_s)
        if isinstance(answer, tuple):
            kind, *said = answer
            raise kind(*said)
        return answer


def _attempted(compute: Callable[[], T]) -> T | Refused:
    try:
        return compute()
    except (ModelError, ProtocolError) as error:
        return type(error), error.found, error.expected, error.remedy
