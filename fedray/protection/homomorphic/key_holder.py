"""The key holder: makes keys, opens one sum a round, and gives it out only if it is what its owners say they sent.

It gives out a TenSEAL key pair for ``key_rounds`` rounds, then makes a new one. Rounds are prepared ahead, so that it
keeps the key before until the last of its rounds is over. It never receives one owner's contribution: only sums,
signed entries of who is in them, and the sum of owners' answers to its probe.

Refusals. Two kinds, told apart by what they depend on:

* Whatever is refused before decryption (malformed, another round or key, an entry that is not signed, too few owners)
  depends on nothing secret. It does not cost the round: a server that lost an owner hands in another sum.
* A sum that was decrypted and does not agree with the answers is evidence of a lie, and *that* it does not agree is one
  bit that depends on the secret key. It costs the round and the key. So whoever tries to learn the key, or an update,
  bit by bit from what is refused (Bleichenbacher's way) has one try a key, and each new key hides only what is
  encrypted under it from then on. Someone who lies can make every round fail; that is stated, not prevented.

A sum, once given out, is never given out again, nor is another of the same round.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ProtocolError, UpdateRefused
from fedray.protection import wire
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic import probe
from fedray.protection.homomorphic.keys import KeyRing, RoundKey
from fedray.protection.homomorphic.manifest import require_all
from fedray.protection.homomorphic.messages import (
    Answers,
    Challenge,
    ContextAsked,
    Contribution,
    Opened,
    Place,
    SumSent,
    signed_by,
)
from fedray.protection.homomorphic.parameters import Parameters
from fedray.protection.homomorphic.words import Packing
from fedray.protection.identity import Identity, Trust
from fedray.protection.wire import MOST_OWNERS
from fedray.values import Payload


@dataclass(frozen=True)
class _Committed:
    """A sum that was handed in and is not decrypted yet."""

    place: Place
    manifest: list[Contribution]
    payload: Payload
    pads: probe.Forms
    challenge: Challenge


class KeyHolderRole:
    """Opens sums of at least ``min_owners`` owners.

    Args:
        identity: what it signs with.
        trust: which owners it believes.
        parameters: what keys are made for.
        fixed_point: shape and bounds of updates.
        min_owners: fewest contributions of a sum that it opens.
        key_rounds: rounds after which it makes a new key.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        parameters: Parameters,
        fixed_point: FixedPoint,
        min_owners: int,
        key_rounds: int,
    ) -> None:
        self._identity = identity
        self._trust = trust
        self._parameters = parameters
        self._fixed_point = fixed_point
        self._min_owners = min_owners
        self._ring = KeyRing(identity, parameters, key_rounds)
        self._packing = Packing(parameters, fixed_point.length)
        self._lock = Lock()
        self._committed: _Committed | None = None
        self.n_opened = 0
        self.n_refused = 0

    @property
    def identity(self) -> bytes:
        return self._identity.public

    @property
    def n_keys(self) -> int:
        """Keys made so far."""
        return self._ring.n_made

    def answer(self, message: bytes) -> bytes:
        """Answer ``ContextAsked``, ``SumSent`` or ``Answers``.

        Raises:
            ProtocolError: see the module; nothing is given out.
        """
        with self._lock:
            return self._counted(message)

    def _counted(self, message: bytes) -> bytes:
        try:
            if len(message) > self._packing.n_bytes + MOST_OWNERS * 2**10:
                raise ProtocolError(f"a message of {len(message)} bytes", "one sum at most", "check the parameters")
            return wire.encode(self._answered(wire.decode(message, ContextAsked, SumSent, Answers)))
        except ProtocolError:
            self.n_refused += 1
            raise

    def _answered(self, request: wire.Message) -> wire.Message:
        match request:
            case ContextAsked():
                return self._ring.give(request.run, request.round)
            case SumSent():
                return self._challenged(request)
            case Answers():
                return self._opened(request)
        raise AssertionError

    def _challenged(self, request: SumSent) -> Challenge:
        """Take a sum in, in place of any before, and draw what its owners must answer."""
        place = Place(request.run, request.round, request.key_id)
        key = self._ring.of(place)
        require_all(place, request.manifest, self._trust, self._min_owners, self._fixed_point.n_owners)
        payload = np.frombuffer(request.payload, dtype=np.uint8)
        try:
            self._packing.check(payload)
        except UpdateRefused as error:
            raise ProtocolError(error.found, error.expected, error.remedy) from None
        key.n_attempts += 1
        challenge = Challenge(
            run=request.run,
            round=request.round,
            key_id=request.key_id,
            attempt=key.n_attempts,
            seed=secrets.token_bytes(32),
            owners=sorted(entry.owner for entry in request.manifest),
        )
        challenge = signed_by(self._identity, challenge)
        pads = self._pads(key, request.manifest, challenge.attempt)
        self._committed = _Committed(place, request.manifest, payload, pads, challenge)
        return challenge

    def _opened(self, answers: Answers) -> Opened:
        """Decrypt, and give out what agrees with the answers."""
        committed = self._committed
        if committed is None or not _is_asked(committed.challenge, answers):
            raise ProtocolError("answers to no challenge", "a sum first", "hand in the sum")
        self._committed = None
        with self._ring.last_use(committed.place) as key:
            summed, forms = self._decrypted(key, committed)
            n = len(committed.manifest)
            is_bounded = max(summed.max(), -summed.min()) <= n * self._fixed_point.value_bound
            if not is_bounded or probe.to_bytes(forms + committed.pads) != answers.forms:
                raise ProtocolError(
                    "a sum that is not the one its owners sent",
                    "all contributions in the manifest, each once, and nothing else",
                    "find out who lies, the server or an owner; this round and key are spent",
                )
        self.n_opened += 1
        return Opened(answers.run, answers.round, n, summed.astype("<i4").tobytes())

    def _decrypted(self, key: RoundKey, committed: _Committed) -> tuple[NDArray[np.int64], probe.Forms]:
        length = self._fixed_point.length
        pieces = self._packing.pieces(committed.payload)
        slots = self._parameters.n_slots
        summed = np.empty(length, dtype=np.int64)
        asked = probe.Probe(committed.challenge.seed)
        for start, words in zip(range(0, length, slots), pieces, strict=True):
            piece = key.secret.open(words)[: length - start]
            summed[start : start + slots] = piece
            asked.feed(piece)
        return summed, asked.forms

    @staticmethod
    def _pads(key: RoundKey, manifest: list[Contribution], attempt: int) -> probe.Forms:
        total = np.zeros(probe.N_FORMS, dtype=np.uint64)
        for entry in manifest:
            total += probe.pad(key.channel, entry.channel, entry.run, entry.round, entry.key_id, entry.owner, attempt)
        return total


def _is_asked(challenge: Challenge, answers: Answers) -> bool:
    return (challenge.run, challenge.round, challenge.attempt) == (answers.run, answers.round, answers.attempt)
