"""The actor that is one of three computing parties.

Its keys are made inside it and leave it in no answer. Messages of the two others reach it by a thread of their own, and
each is sealed: neither Ray's object store nor whoever else reads it learns a share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from fedray.actors.refusal import require_here
from fedray.errors import FedrayError, ProtocolError, RunError
from fedray.mpc.keys import Reader, party_of
from fedray.mpc.shares import N_PARTIES
from fedray.mpc.worker import QUESTIONS, Worker

SILENCE_S = 1.0
"""How long a message is waited for before it is asked whether its sender lives."""
_PULSE_S = 5.0
_PATIENCE_S = 300.0
_MAIL = "mail"


class Mail:
    """A post between actors.

    Args:
        index: this party.
        peers: the others' actors, by party.
    """

    def __init__(self, index: int, peers: Mapping[int, Any]) -> None:
        self._index = index
        self._peers = peers
        self._arrived: dict[int, SimpleQueue[bytes]] = {peer: SimpleQueue() for peer in peers}

    def put(self, sender: int, sealed: bytes) -> None:
        """Take in what a party sent."""
        self._arrived[sender].put(sealed)

    def send(self, receiver: int, sealed: bytes) -> None:
        """Send, and go on at once."""
        self._peers[receiver].deliver.remote(self._index, sealed)

    def receive(self, sender: int) -> bytes:
        """Wait for the next message of a party, as long as it is at work.

        Raises:
            RunError: it is gone, has stopped, or is silent for too long.
        """
        began = time.monotonic()
        while time.monotonic() - began < _PATIENCE_S:
            try:
                return self._arrived[sender].get(timeout=SILENCE_S)
            except Empty:
                self._require_at_work(sender)
        raise _lost(sender, f"it was silent for {_PATIENCE_S:g} s")

    def _require_at_work(self, sender: int) -> None:
        try:
            stopped = ray.get(self._peers[sender].pulse.remote(), timeout=_PULSE_S)
        except (RayError, GetTimeoutError) as error:
            raise _lost(sender, f"no sign of life ({type(error).__name__})") from None
        if stopped and self._arrived[sender].empty():
            raise _lost(sender, f"it stopped: {stopped}")


class PartyActor:
    """One party.

    Args:
        index: 0, 1 or 2.
        precision: fractional bits of fixed-point numbers.
        identity: what the node's identity file must name; None where any node will do.

    Raises:
        ResourcesError: the node is another's.
    """

    def __init__(self, index: int, precision: int, identity: str | None = None) -> None:
        if identity is not None:
            require_here(identity)
        self._index = index
        self._precision = precision
        self._key = Reader()
        self._worker: Worker | None = None
        self._mail: Mail | None = None

    @ray.method(concurrency_group=_MAIL)
    def public(self) -> bytes:
        """Its public key."""
        return self._key.public

    def join(self, parties: list[Any]) -> list[bytes]:
        """Agree on keys with the two others, whose public keys it asks of them itself. Once: keys are never used anew.

        Returns:
            all three public keys.

        Raises:
            ProtocolError: it has joined before.
        """
        if self._worker is not None:
            raise ProtocolError("a party that is asked to join again", "one that has not joined", "start new parties")
        publics: list[bytes] = [
            self._key.public if index == self._index else ray.get(party.public.remote())
            for index, party in enumerate(parties)
        ]
        self._mail = Mail(self._index, {index: parties[index] for index in range(N_PARTIES) if index != self._index})
        self._worker = Worker(party_of(self._index, self._precision, self._key, publics, self._mail), self._key)
        return publics

    @ray.method(concurrency_group=_MAIL)
    def deliver(self, sender: int, sealed: bytes) -> None:
        """Take a message of another party."""
        if self._mail is not None:
            self._mail.put(sender, sealed)

    @ray.method(concurrency_group=_MAIL)
    def pulse(self) -> str:
        """A sign of life: empty, or why this party has stopped."""
        return self._worker.stopped if self._worker else ""

    def ask(self, method: str, *args: Any) -> Any:
        """Have the worker do something, after all that was asked before.

        Returns:
            what it returns, or the ``FedrayError`` that it raises.
        """
        try:
            _require_question(method)
            return getattr(self._joined(), method)(*args)
        except FedrayError as error:
            return error

    def _joined(self) -> Worker:
        if self._worker is None:
            raise ProtocolError("a party that has not joined", "one that agreed on keys", "start the parties again")
        return self._worker


_in_threads: Any = ray.remote(concurrency_groups={_MAIL: 1})  # type: ignore[call-overload]  # not in Ray's stubs
RemoteParty: Any = _in_threads(PartyActor)


def _require_question(method: str) -> None:
    if method not in QUESTIONS:
        raise ProtocolError(f"a party that is asked for {method!r}", f"one of {sorted(QUESTIONS)}", "use Parties")


def _lost(party: int, why: str) -> RunError:
    return RunError(
        f"party {party} is gone: {why}", "three parties at work", "start the parties again, then share again"
    )
