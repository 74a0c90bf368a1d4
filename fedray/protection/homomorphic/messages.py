"""What the roles say to each other, checked against types and lengths before anything else looks at it.

    server -> key holder   ContextAsked      -> Context
    server -> owner        Prepare           -> Ready
    owner  -> server       Contribution, beside the sealed update
    server -> key holder   SumSent           -> Challenge
    server -> owner        the Challenge     -> Answer
    server -> key holder   Answers           -> Opened

``Contribution``, ``Context`` and ``Challenge`` are signed, since they reach their reader by way of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from fedray.protection.homomorphic import probe
from fedray.protection.identity import Identity, Trust, is_signed
from fedray.protection.wire import MOST_OWNERS, Digest, Key, Message, Name, Names, Round, Run, Signature

NOBODY = bytes(32)
UNSIGNED = bytes(64)

Count = Annotated[int, Meta(ge=1, le=2**53)]
Forms = Annotated[bytes, Meta(min_length=probe.N_BYTES, max_length=probe.N_BYTES)]


@dataclass(frozen=True)
class Place:
    """The one sum that a contribution is for."""

    run: bytes
    round: int
    key_id: bytes


class ContextAsked(Message, frozen=True):
    """Which key is this round's?"""

    run: Run
    round: Round


class Context(Message, frozen=True):
    """A public key, on one side of homomorphic encryption, on the other for agreeing on pads."""

    key_id: Digest
    context: Annotated[bytes, Meta(max_length=2**19)]
    channel: Key
    identity: Key = NOBODY
    signature: Signature = UNSIGNED

    def signed(self) -> tuple[str, *tuple[object, ...]]:
        """What the signature covers; the key by its digest."""
        return "context", self.key_id, self.channel


class Prepare(Message, frozen=True):
    """A round begins under this key. ``context`` is an encoded ``Context``; empty if the owner has it already."""

    run: Run
    round: Round
    key_id: Digest
    context: Annotated[bytes, Meta(max_length=2**20)]

    max_bytes: ClassVar[int] = 2**20 + 2**10


class Ready(Message, frozen=True):
    """The owner has the key, and encryptions of zero made with it."""

    run: Run
    round: Round
    key_id: Digest


class Contribution(Message, frozen=True):
    """An owner's signed word that it sent a payload of this digest, made on these terms, into this round's sum."""

    run: Run
    round: Round
    key_id: Digest
    owner: Name
    channel: Key
    terms: Digest
    digest: Digest
    identity: Key = NOBODY
    signature: Signature = UNSIGNED

    max_bytes: ClassVar[int] = 2**11

    def signed(self) -> tuple[str, *tuple[object, ...]]:
        """What the signature covers."""
        place = self.run, self.round, self.key_id
        return "contribution", *place, self.owner, self.channel, self.terms, self.digest


class SumSent(Message, frozen=True):
    """A sum to be opened, packed like one contribution, and who is in it."""

    run: Run
    round: Round
    key_id: Digest
    manifest: Annotated[list[Contribution], Meta(max_length=MOST_OWNERS)]
    payload: bytes

    max_bytes: ClassVar[int] = 2**32 - 1


class Challenge(Message, frozen=True):
    """The seed of the forms that owners of a sum must answer; ``attempt`` is never used twice under one key."""

    run: Run
    round: Round
    key_id: Digest
    attempt: Count
    seed: Key
    owners: Names
    identity: Key = NOBODY
    signature: Signature = UNSIGNED

    max_bytes: ClassVar[int] = MOST_OWNERS * 260

    def signed(self) -> tuple[str, *tuple[object, ...]]:
        """What the signature covers."""
        return "challenge", self.run, self.round, self.key_id, self.attempt, self.seed, self.owners


class Answer(Message, frozen=True):
    """One owner's padded forms."""

    run: Run
    round: Round
    attempt: Count
    forms: Forms


class Answers(Message, frozen=True):
    """The sum of all owners' padded forms."""

    run: Run
    round: Round
    attempt: Count
    forms: Forms


class Opened(Message, frozen=True):
    """The sum in the clear: little-endian signed 32-bit integers."""

    run: Run
    round: Round
    n_contributions: Count
    sums: bytes

    max_bytes: ClassVar[int] = 2**32 - 1


Signed = TypeVar("Signed", Context, Contribution, Challenge)


def signed_by(identity: Identity, message: Signed) -> Signed:
    """The message with an identity's public key and signature."""
    purpose, *fields = message.signed()
    return msgspec.structs.replace(message, identity=identity.public, signature=identity.sign(purpose, *fields))


def is_from(message: Context | Contribution | Challenge, name: str, trust: Trust) -> bool:
    """Whether a message carries a valid signature of an identity that may speak under this name.

    Raises:
        ProtocolError: the signature is valid, but this identity is not to be trusted under the name.
    """
    purpose, *fields = message.signed()
    if not is_signed(message.identity, message.signature, purpose, *fields):
        return False
    trust.require(name, message.identity)
    return True
