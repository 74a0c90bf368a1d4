"""The key holder's keys: which round is under which, and when one is forgotten.

A key is given out for a number of rounds, then a new one is made. Rounds are prepared ahead, so the key before is kept
until the last of its rounds is over. Which rounds are over is kept as one number a run: rounds come in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.errors import ProtocolError
from fedray.protection.homomorphic.cipher import SecretKey
from fedray.protection.homomorphic.messages import Context, Place, signed_by
from fedray.protection.homomorphic.parameters import Parameters
from fedray.protection.identity import Identity


@dataclass
class RoundKey:
    """A key pair, its private end of key agreements, and the rounds that it was given out for."""

    secret: SecretKey = field(repr=False)
    channel: X25519PrivateKey = field(repr=False)
    card: Context
    rounds: set[tuple[bytes, int]] = field(default_factory=set)
    n_attempts: int = 0


class KeyRing:
    """At most two keys: the current one, and the one before while its rounds are not over.

    Args:
        identity: what public keys are signed with.
        parameters: what keys are made for.
        key_rounds: rounds that a key is given out for.
    """

    def __init__(self, identity: Identity, parameters: Parameters, key_rounds: int) -> None:
        self._identity = identity
        self._parameters = parameters
        self._key_rounds = key_rounds
        self._keys: list[RoundKey] = []
        self._last_over: dict[bytes, int] = {}
        self.n_made = 0

    def give(self, run: bytes, round: int) -> Context:
        """The public half of a round's key: the same whenever it is asked for.

        Raises:
            ProtocolError: the round is over.
        """
        self._require_not_over(run, round)
        for key in self._keys:
            if (run, round) in key.rounds:
                return key.card
        if not self._keys or len(self._keys[-1].rounds) >= self._key_rounds:
            self._keys = [*self._keys[-1:], self._made()]
        self._keys[-1].rounds.add((run, round))
        return self._keys[-1].card

    def of(self, place: Place) -> RoundKey:
        """The key of a round that is not over and that the key was given for.

        Raises:
            ProtocolError: it is over, or this is not its key, or no more.
        """
        self._require_not_over(place.run, place.round)
        for key in self._keys:
            if key.card.key_id == place.key_id and (place.run, place.round) in key.rounds:
                return key
        raise ProtocolError(
            f"a sum of round {place.round} under a key that is not its own", "the round's key", "ask for the key"
        )

    @contextmanager
    def last_use(self, place: Place) -> Iterator[RoundKey]:
        """A round's key, once and for all: then the round is over, and if anything was raised the key is gone.

        Raises:
            ProtocolError: see ``of``.
        """
        used = self.of(place)
        self._last_over[place.run] = place.round
        try:
            yield used
        except BaseException:
            self._keys = [key for key in self._keys if key is not used]
            raise
        before = [key for key in self._keys[:-1] if not all(self._is_over(*one) for one in key.rounds)]
        self._keys = before + self._keys[-1:]

    def _made(self) -> RoundKey:
        secret, channel = SecretKey(self._parameters), X25519PrivateKey.generate()
        card = Context(secret.id, secret.public, channel.public_key().public_bytes_raw())
        self.n_made += 1
        return RoundKey(secret, channel, signed_by(self._identity, card))

    def _is_over(self, run: bytes, round: int) -> bool:
        return round <= self._last_over.get(run, 0)

    def _require_not_over(self, run: bytes, round: int) -> None:
        if self._is_over(run, round):
            raise ProtocolError(f"round {round} again", "a round after the last that was opened", "go on to the next")
