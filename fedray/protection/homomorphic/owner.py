"""The owner's half: encrypts its update under the key holder's public key, then answers the key holder's probe of it.

A round may be prepared while the one before is still trained, sealed and probed. From ``Prepare`` to sealing an owner
keeps encryptions of zero (16 bytes a value under BFV, 32 under CKKS); from sealing to the next, its integers (2 or 4
bytes a value) and the private end of that contribution's key agreement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.config.learning import KEY_HOLDER
from fedray.errors import ProtocolError
from fedray.protection import wire
from fedray.protection.encoding import Signed
from fedray.protection.fixed_point import PIECE, FixedPoint
from fedray.protection.homomorphic import probe
from fedray.protection.homomorphic.cipher import PublicKey
from fedray.protection.homomorphic.messages import (
    Answer,
    Challenge,
    Context,
    Contribution,
    Prepare,
    Ready,
    is_from,
    signed_by,
)
from fedray.protection.homomorphic.parameters import Parameters
from fedray.protection.homomorphic.words import Packing
from fedray.protection.homomorphic.zeros import Zeros
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.values import Assignment, Payload, Update


@dataclass(frozen=True)
class _Key:
    """A key of the key holder's."""

    context: Context
    public: PublicKey


@dataclass(frozen=True)
class _Prepared:
    """A round that may be sealed."""

    run: bytes
    round: int
    key: _Key
    zeros: Zeros


@dataclass
class _Sealed:
    """A contribution that may be probed."""

    run: bytes
    round: int
    key: _Key
    integers: Payload
    private: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    last_attempt: int = 0


class HomomorphicSealer:
    """An owner's half of homomorphic protection.

    Args:
        owner: the owner's name.
        identity: what it signs with.
        trust: which key holder it believes.
        parameters: what keys must be for.
        fixed_point: how updates become integers.
        seed: the experiment's seed, for stochastic rounding.
        min_owners: fewest contributions of a sum that this owner will be part of.
        journal: rounds that it has sealed and helped to open.
    """

    def __init__(
        self,
        owner: str,
        identity: Identity,
        trust: Trust,
        parameters: Parameters,
        fixed_point: FixedPoint,
        seed: int,
        min_owners: int,
        journal: Journal,
    ) -> None:
        self._owner = owner
        self._identity = identity
        self._trust = trust
        self._parameters = parameters
        self._fixed_point = fixed_point
        self._seed = seed
        self._min_owners = min_owners
        self._packing = Packing(parameters, fixed_point.length)
        self._journal = journal
        self._lock = Lock()
        self._key: _Key | None = None
        self._prepared: dict[int, _Prepared] = {}
        self._sealed: _Sealed | None = None

    @property
    def identity(self) -> bytes:
        return self._identity.public

    def answer(self, message: bytes) -> bytes:
        """Answer ``Prepare`` (making encryptions of zero takes .2 to .5 s a million values) or ``Challenge``.

        Raises:
            ProtocolError: malformed, badly signed, out of turn, or under a key that must not be used.
        """
        match wire.decode(message, Prepare, Challenge):
            case Prepare() as prepare:
                return wire.encode(self._prepare(prepare))
            case Challenge() as challenge:
                return wire.encode(self._probed(challenge))
        raise AssertionError

    def seal(self, update: Update, assignment: Assignment, terms: bytes) -> tuple[Payload, bytes]:
        """The encrypted update, and the owner's signed word on it and on the terms that it was made on.

        Raises:
            UpdateRefused: the update is non-finite, misshapen or beyond the bound of the sum.
            ProtocolError: the round was not prepared, or was sealed before.
        """
        encoded = self._fixed_point.encode(update, assignment, self._seed)
        prepared = self._begun(assignment.plan.round, terms, update.n_steps)
        payload = self._encrypted(prepared, encoded)
        sealed = self._sealed = _Sealed(prepared.run, prepared.round, prepared.key, encoded)
        contribution = Contribution(
            run=sealed.run,
            round=sealed.round,
            key_id=sealed.key.context.key_id,
            owner=self._owner,
            channel=sealed.private.public_key().public_bytes_raw(),
            terms=terms,
            digest=hashlib.sha256(payload.data).digest(),
        )
        return payload, wire.encode(signed_by(self._identity, contribution))

    def _prepare(self, prepare: Prepare) -> Ready:
        with self._lock:
            self._journal.require_open(prepare.run, prepare.round)
            key = self._key = self._believed(prepare)
            still = {n: one for n, one in self._prepared.items() if n >= prepare.round - 1 and one.run == prepare.run}
            prepared = still.get(prepare.round)
            if prepared is None or prepared.key is not key:
                prepared = _Prepared(prepare.run, prepare.round, key, Zeros(key.public, self._packing.n_pieces))
            self._prepared = {**still, prepare.round: prepared}
        prepared.zeros.fill()
        return Ready(prepare.run, prepare.round, prepare.key_id)

    def _believed(self, prepare: Prepare) -> _Key:
        """The key that a round is under: the one at hand, or the one that comes along."""
        if self._key is not None and self._key.context.key_id == prepare.key_id:
            return self._key
        if not prepare.context:
            raise ProtocolError("a key that this owner does not have", "the key itself", "send it along")
        context = wire.decode(prepare.context, Context)
        if not is_from(context, KEY_HOLDER, self._trust):
            raise ProtocolError("a public key without the key holder's signature", "a signed one", "suspect the server")
        if not context.key_id == prepare.key_id == hashlib.sha256(context.context).digest():
            raise ProtocolError("a public key under another's name", "its own digest", "suspect the server")
        return _Key(context, PublicKey(self._parameters, context.context))

    def _begun(self, round: int, terms: bytes, n_steps: int) -> _Prepared:
        """From here on the round counts as sealed, so that this server can have no second payload of it."""
        with self._lock:
            prepared = self._prepared.pop(round, None)
            if prepared is None:
                raise ProtocolError(f"round {round}, which is not prepared or sealed", "a prepared round", "prepare it")
            prepared.zeros.stop()
            self._journal.seal(prepared.run, round, terms, n_steps)
            return prepared

    def _encrypted(self, prepared: _Prepared, encoded: Payload) -> Payload:
        payload = self._packing.empty()
        for piece, integers in enumerate(self._pieces(encoded, self._parameters.n_slots)):
            self._packing.put(payload, piece, prepared.key.public.seal(prepared.zeros.take(), integers))
        return payload

    def _probed(self, challenge: Challenge) -> Answer:
        with self._lock:
            sealed = self._require_mine(challenge)
            self._journal.open(sealed.run, sealed.round, sorted(challenge.owners))
            sealed.last_attempt = challenge.attempt
        asked = probe.Probe(challenge.seed)
        for integers in self._pieces(sealed.integers, PIECE):
            asked.feed(integers)
        context = (sealed.run, sealed.round, challenge.key_id, self._owner, challenge.attempt)
        padded = asked.forms + probe.pad(sealed.private, sealed.key.context.channel, *context)
        return Answer(sealed.run, sealed.round, challenge.attempt, probe.to_bytes(padded))

    def _require_mine(self, challenge: Challenge) -> _Sealed:
        """The contribution that is probed. Each attempt has its own pad, and is answered once."""
        sealed = self._sealed
        of = challenge.run, challenge.round, challenge.key_id
        if sealed is None or of != (sealed.run, sealed.round, sealed.key.context.key_id):
            raise ProtocolError(f"a challenge for round {challenge.round}", "the round that was sealed", "ask in turn")
        if not is_from(challenge, KEY_HOLDER, self._trust):
            raise ProtocolError("a challenge without the key holder's signature", "a signed one", "suspect the server")
        if challenge.attempt <= sealed.last_attempt:
            raise ProtocolError("a challenge that was answered before", "a new one", "suspect the server")
        if self._owner not in challenge.owners or len(set(challenge.owners)) < self._min_owners:
            raise ProtocolError(
                f"a challenge for a sum of {len(set(challenge.owners))} owners",
                f"{self._min_owners} at least, this one among them",
                "ask more owners",
            )
        return sealed

    def _pieces(self, encoded: Payload, size: int) -> Iterator[Signed]:
        for start in range(0, len(encoded), size):
            yield self._fixed_point.signed(encoded[start : start + size])
