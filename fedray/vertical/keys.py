"""One party's keys of a session: who it is to the others, and the secrets that it shares with each of them.

Every session has a fresh X25519 key (RFC 7748) a party, signed by its Ed25519 identity (RFC 8032). The secret of two
parties is expanded by HKDF-SHA256 (RFC 5869) for one purpose and run at a time, and never leaves either. With enrolled
identities the label holder, which hands public keys around, cannot put itself between two owners; without, it could.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.errors import ConfigError, ProtocolError
from fedray.protection.identity import Identity, Trust, is_signed, key_file
from fedray.protection.masked.masks import agreed, derived
from fedray.vertical.messages import Introduction

_PURPOSE = "vertical key"


def enrolled_keys(identities: Mapping[str, str]) -> dict[str, bytes]:
    """Public signing keys from their hex digits.

    Raises:
        ConfigError: one is no key.
    """
    keys = {}
    for name, digits in identities.items():
        try:
            keys[name] = bytes.fromhex(digits)
        except ValueError:
            keys[name] = b""
        if len(keys[name]) != 32:
            raise ConfigError(
                f"identities.{name} is no public key", "64 hex digits, as fedray enrol prints", "enrol the party again"
            )
    return keys


class Keyring:
    """A party's keys of one session.

    Args:
        name: the party's name.
        enrolled: party's name to public signing key; where empty, the first key heard of each party is believed.

    Raises:
        ConfigError: identities are enrolled, and this machine has no key of this party.
    """

    def __init__(self, name: str, enrolled: Mapping[str, bytes]) -> None:
        self._name = name
        self._identity = Identity.read(key_file(name)) if enrolled else Identity()
        self._trust = Trust(enrolled)
        self._private = X25519PrivateKey.generate()
        self._secrets: dict[str, bytes] = {}
        self._run = b""

    def introduction(self, run: bytes) -> Introduction:
        """What this party says of itself, and nothing secret."""
        self._run = run
        public = self._private.public_key().public_bytes_raw()
        signature = self._identity.sign(_PURPOSE, run, self._name, public)
        return Introduction(self._name, public, self._identity.public, signature)

    def meet(self, introductions: Iterable[Introduction]) -> None:
        """Agree on a secret with each of these parties.

        Raises:
            ProtocolError: a signature is false, a party is not enrolled, a key is of small order or this party's own.
        """
        for one in introductions:
            self._trust.require(one.name, one.identity)
            if not is_signed(one.identity, one.signature, _PURPOSE, self._run, one.name, one.public):
                raise ProtocolError(
                    f"a key of {one.name!r} that {one.name!r} has not signed",
                    "a key signed for this run",
                    "suspect whoever handed it on",
                )
            self._secrets[one.name] = agreed(self._private, one.public)

    def key(self, peer: str, n_bytes: int, *purpose: object) -> bytes:
        """A key for one purpose that this party and a peer share.

        Raises:
            ProtocolError: they have not met.
        """
        return derived(self.secret(peer), n_bytes, *purpose, self._run, *sorted((self._name, peer)))

    def secret(self, peer: str) -> bytes:
        """What this party and a peer share.

        Raises:
            ProtocolError: they have not met.
        """
        if peer not in self._secrets:
            raise ProtocolError(f"no key of {peer!r}", "keys before anything else", "start a new run")
        return self._secrets[peer]
