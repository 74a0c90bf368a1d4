"""All that owners and server of a masked sum say to each other, in the order in which they say it.

Sealed shares can be read by the owner they are for alone. Everything else may be known to anyone.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from fedray.protection.masked.shamir import SHARE_BYTES
from fedray.protection.wire import MOST_OWNERS, Digest, Key, Message, Name, Names, Round, Run, Signature

SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Two shares and the tag of AES-GCM."""

Share = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
SealedShares = Annotated[bytes, Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Shares = Annotated[dict[Name, Share], Meta(max_length=MOST_OWNERS)]
SharesByPeer = Annotated[dict[Name, SealedShares], Meta(max_length=MOST_OWNERS)]


class Invite(Message, frozen=True):
    """Server to owner: a round begins; make keys for it."""

    run: Run
    round: Round


class Keys(Message, frozen=True):
    """Owner to server, and on to its neighbours: two fresh X25519 keys, signed by the owner's identity."""

    run: Run
    round: Round
    owner: Name
    identity: Key
    channel: Key
    mask: Key
    signature: Signature


class KeyList(Message, frozen=True):
    """Server to owner: who takes part, and the keys of its neighbours."""

    max_bytes: ClassVar[int] = 2**23

    run: Run
    round: Round
    names: Names
    keys: Annotated[list[Keys], Meta(max_length=MOST_OWNERS)]


class Shared(Message, frozen=True):
    """Owner to server: shares of its two secrets, sealed for each neighbour, and a commitment to the self mask."""

    max_bytes: ClassVar[int] = 2**22

    run: Run
    round: Round
    owner: Name
    commitment: Digest
    sealed: SharesByPeer


class Delivery(Message, frozen=True):
    """Server to owner: the shares that its neighbours sealed for it."""

    max_bytes: ClassVar[int] = 2**22

    run: Run
    round: Round
    sealed: SharesByPeer


class Receipt(Message, frozen=True):
    """Owner to server: whose shares it could not open."""

    run: Run
    round: Round
    owner: Name
    unreadable: Names


class Briefing(Message, frozen=True):
    """Server to owner, with the model: between whom pairwise masks are to be added."""

    max_bytes: ClassVar[int] = 2**22

    run: Run
    round: Round
    owners: Names


class Alive(Message, frozen=True):
    """Server to owner: whose masked updates have arrived."""

    max_bytes: ClassVar[int] = 2**22

    run: Run
    round: Round
    owners: Names


class AliveSigned(Message, frozen=True):
    """Owner to server, and on to its neighbours: its signature on that list, the only one it signs in the round."""

    run: Run
    round: Round
    owner: Name
    signature: Signature


class Reveal(Message, frozen=True):
    """Server to owner: the signatures of its neighbours on that list."""

    max_bytes: ClassVar[int] = 2**22

    run: Run
    round: Round
    signatures: Annotated[dict[Name, Signature], Meta(max_length=MOST_OWNERS)]


class Revealed(Message, frozen=True):
    """Owner to server: for each peer one share, of its self mask if it is alive, else of its key."""

    max_bytes: ClassVar[int] = 2**22

    run: Run
    round: Round
    owner: Name
    of_self_masks: Shares
    of_keys: Shares
