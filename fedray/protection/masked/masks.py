"""Masks: vectors of a ring that nobody can tell from random ones without the seed.

A mask is AES-128 in counter mode over zeros, under a key that HKDF-SHA256 derives for one use from a secret of full
entropy: an X25519 agreement between two owners, or 32 bytes of the operating system's generator.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedray.errors import ProtocolError
from fedray.protection.fixed_point import PIECE
from fedray.protection.wire import canonical
from fedray.values import Payload

KEY_BITS = 128
_BLOCK = 16
_ZEROS = bytes(4 * PIECE)


def derived(secret: bytes, n_bytes: int, *purpose: object) -> bytes:
    """A key for one purpose (HKDF, RFC 5869)."""
    return HKDF(SHA256(), n_bytes, salt=None, info=canonical("fedray", *purpose)).derive(secret)


def agreed(private: X25519PrivateKey, public: bytes) -> bytes:
    """The secret of two owners (X25519, RFC 7748).

    Raises:
        ProtocolError: the public key is of small order.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError("a public key of small order", "an X25519 key", "suspect a peer that lies") from None


def require_agreeable(*publics: bytes) -> None:
    """Refuse public keys that nobody can agree with.

    Raises:
        ProtocolError: one is of small order.
    """
    for public in publics:
        agreed(X25519PrivateKey.generate(), public)


class Mask:
    """A mask that is added to a vector, or taken from it.

    Args:
        key: 16 bytes.
        is_added: False to take it away.
    """

    def __init__(self, key: bytes, is_added: bool) -> None:
        self._key = key
        self._apply = np.add if is_added else np.subtract

    @classmethod
    def own(cls, seed: bytes, run: bytes, round: int, owner: str) -> Mask:
        """The self mask, as its owner adds it."""
        return cls(derived(seed, _BLOCK, "self mask", run, round, owner), True)

    @classmethod
    def pair(cls, secret: bytes, run: bytes, round: int, terms: bytes, owner: str, peer: str) -> Mask:
        """The mask that ``owner`` and ``peer`` agree on, as ``owner`` applies it: the first of the two adds.

        Under different terms they do not agree, and nothing can be read of a sum with both.
        """
        key = derived(secret, _BLOCK, "pair mask", run, round, terms, *sorted((owner, peer)))
        return cls(key, owner < peer)

    @property
    def inverse(self) -> Mask:
        """What undoes this mask."""
        return Mask(self._key, self._apply is np.subtract)

    def stream(self, n_bytes_before: int = 0) -> Masking:
        """The mask from a byte on, which must be a multiple of 16."""
        counter = (n_bytes_before // _BLOCK).to_bytes(_BLOCK, "big")
        return Masking(Cipher(algorithms.AES(self._key), modes.CTR(counter)).encryptor(), self._apply)


class Masking:
    """A mask on its way along a vector, piece by piece."""

    __slots__ = ("_apply", "_encryptor")

    def __init__(self, encryptor: CipherContext, apply: np.ufunc) -> None:
        self._encryptor = encryptor
        self._apply = apply

    def apply(self, piece: Payload, scratch: NDArray[np.uint8]) -> None:
        """Mask the next piece in place; ``scratch`` holds at least its bytes."""
        n_bytes = piece.nbytes
        self._encryptor.update_into(_ZEROS if n_bytes == len(_ZEROS) else _ZEROS[:n_bytes], scratch.data[:n_bytes])
        self._apply(piece, scratch[:n_bytes].view(piece.dtype), out=piece)


def scratch() -> NDArray[np.uint8]:
    """Room for the keystream of one piece."""
    return np.empty(len(_ZEROS), dtype=np.uint8)


def apply_all(vector: Payload, masks: Sequence[Mask]) -> None:
    """Apply many masks in place, on all processors: each thread takes one range of the vector."""
    n_threads = os.cpu_count() or 1
    n_pieces = -(-len(vector) // PIECE)
    bounds = [PIECE * (n_pieces * part // n_threads) for part in range(n_threads)] + [len(vector)]
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(lambda ends: _apply_to_range(vector, masks, *ends), pairwise(bounds)))


def _apply_to_range(vector: Payload, masks: Sequence[Mask], start: int, stop: int) -> None:
    streams = [mask.stream(start * vector.itemsize) for mask in masks]
    room = scratch()
    for at in range(start, stop, PIECE):
        piece = vector[at : min(at + PIECE, stop)]
        for stream in streams:
            stream.apply(piece, room)
