"""Who signs: an Ed25519 identity (RFC 8032) for each party, and whose public keys a party trusts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from platformdirs import user_data_path

from fedray.errors import ConfigError, ProtocolError
from fedray.protection.wire import canonical


def key_file(owner: str) -> Path:
    """Where this machine keeps the enrolled signing key of an owner; ``$FEDRAY_KEYS`` names another folder."""
    folder = Path(os.environ.get("FEDRAY_KEYS") or user_data_path("fedray") / "keys")
    return folder / f"{quote(owner, safe='')}.pem"


class Identity:
    """A party's private signing key. It never leaves the party but for its own key file.

    Args:
        private: the key; a fresh one of the operating system's generator when left out.
        path: where it is written before it signs for the first time; nowhere when left out.
    """

    def __init__(self, private: Ed25519PrivateKey | None = None, path: Path | None = None) -> None:
        self._private = private or Ed25519PrivateKey.generate()
        self._path = path
        self.public = self._private.public_key().public_bytes_raw()

    def sign(self, purpose: str, *fields: object) -> bytes:
        """A signature of 64 bytes over a purpose and fields."""
        self.save()
        return self._private.sign(canonical("fedray", purpose, *fields))

    def save(self) -> None:
        """Write the key to its file, readable by its owner alone, if it is not there yet.

        Raises:
            ConfigError: it cannot be written there.
        """
        path, self._path = self._path, None
        if path is None:
            return
        try:
            self._write(path)
        except OSError as error:
            raise ConfigError(
                f"a signing key that cannot be written to {path} ({error.strerror})",
                "a folder that you may write to",
                "name another in FEDRAY_KEYS, or mend the permissions",
            ) from None

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        os.replace(partial, path)

    @classmethod
    def read(cls, path: Path) -> Identity:
        """The identity in a key file.

        Raises:
            ConfigError: the file is missing, unreadable or holds another kind of key.
        """
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"no signing key in {path} ({type(error).__name__})",
                "an Ed25519 key in PEM",
                "run fedray enrol on this owner's machine",
            ) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"a key of another kind in {path}", "an Ed25519 key", "run fedray enrol with a new file")
        return cls(private)

    @classmethod
    def kept(cls, path: Path) -> Identity:
        """The identity in a key file, or a new one that will be kept there."""
        return cls.read(path) if path.exists() else cls(path=path)


def is_signed(public: bytes, signature: bytes, purpose: str, *fields: object) -> bool:
    """Whether the holder of a public key signed these fields for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, canonical("fedray", purpose, *fields))
    except (InvalidSignature, ValueError):
        return False
    return True


class Trust:
    """The public keys that one party takes for true: those enrolled, or each party's first where none are.

    Args:
        enrolled: party's name to its public key; where empty, the first key heard of each party is kept.
    """

    def __init__(self, enrolled: Mapping[str, bytes]) -> None:
        self._keys = dict(enrolled)
        self.is_enrolled = bool(enrolled)

    def require(self, name: str, public: bytes) -> None:
        """Accept a party's public key, or refuse it.

        Raises:
            ProtocolError: the party is not enrolled, or was known by another key.
        """
        known = self._keys.get(name) if self.is_enrolled else self._keys.setdefault(name, public)
        if known is None:
            raise ProtocolError(f"a party {name!r} that is not enrolled", "enrolled parties only", "enrol it")
        if known != public:
            raise ProtocolError(
                f"another signing key of {name!r} than the one known",
                "the same key in every round",
                "suspect a server that lies; if the owner lost its key, enrol it again",
            )
