"""Keys of a party: agreed with the two others for drawing alike and for talking, and of those who may read results."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fedray.errors import ProtocolError
from fedray.mpc.channel import Channel, Direction, Post
from fedray.mpc.party import Party
from fedray.mpc.randomness import KEY_BYTES, Stream
from fedray.mpc.shares import N_PARTIES
from fedray.protection.masked.masks import agreed, derived

_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)


class Reader:
    """Who may read what is sealed for it (HPKE, RFC 9180). Its private key comes from the operating system.

    Attributes:
        public: 32 bytes by which others name it.
    """

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def open(self, sealed: bytes, *purpose: object) -> bytes:
        """What was sealed for this reader and this purpose.

        Raises:
            ProtocolError: it was sealed for somebody or something else, or altered.
        """
        try:
            return bytes(_HPKE.decrypt(sealed, self._private, _info(purpose)))
        except (InvalidTag, ValueError):
            raise ProtocolError(
                "a sealed message that does not open", "one that is sealed for this reader", "ask for it again"
            ) from None

    def agree(self, public: bytes) -> bytes:
        """The secret of this reader and another.

        Raises:
            ProtocolError: the public key is of small order.
        """
        return agreed(self._private, public)


def sealed_for(public: bytes, content: bytes, *purpose: object) -> bytes:
    """A message that only the reader of this public key opens, for this purpose only."""
    return bytes(_HPKE.encrypt(content, X25519PublicKey.from_public_bytes(public), _info(purpose)))


def party_of(index: int, precision: int, key: Reader, publics: Sequence[bytes], post: Post) -> Party:
    """A party, from its own key and the public keys of all three.

    Raises:
        ProtocolError: a public key is of small order.
    """
    following, preceding = (index + 1) % N_PARTIES, (index - 1) % N_PARTIES
    secrets = {peer: key.agree(publics[peer]) for peer in (following, preceding)}

    def derive(peer: int, *purpose: object) -> bytes:
        return derived(secrets[peer], KEY_BYTES, "mpc", *purpose, *publics)

    channel = Channel(
        post,
        outward={peer: Direction(derive(peer, "message", index, peer)) for peer in secrets},
        inward={peer: Direction(derive(peer, "message", peer, index)) for peer in secrets},
    )
    with_next, with_previous = (Stream(derive(peer, "draws")) for peer in (following, preceding))
    return Party(index, precision, channel, with_next, with_previous)


def _info(purpose: tuple[object, ...]) -> bytes:
    return msgspec.msgpack.encode(("fedray mpc", *purpose))
