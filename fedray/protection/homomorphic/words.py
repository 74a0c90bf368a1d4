"""Ciphertexts as numbers: coefficients below a prime, packed on the wire, added without any key.

Adding ciphertexts of both schemes is adding coefficients modulo q. That takes no key and no SEAL, so that the server
never hands a peer's bytes to either, and a payload has one length for all owners: nothing in it is parsed.

A payload is a header of 8 bytes, then for each piece the coefficients of its two polynomials, little-endian, in as
many whole bytes as q has. SEAL's own form compresses with zstd, which takes a fifth more and some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedray.errors import UpdateRefused
from fedray.protection.homomorphic.parameters import Parameters
from fedray.values import Payload

VERSION = 1
Words = NDArray[np.uint64]
"""Coefficients of both polynomials of a piece, or of all pieces one after the other."""


def add(total: Words, words: Words, modulus: int) -> None:
    """Add coefficients below the modulus, in place."""
    np.add(total, words, out=total)
    np.minimum(total, total - np.uint64(modulus), out=total)


def subtract(total: Words, words: Words, modulus: int) -> None:
    """Subtract coefficients below the modulus, in place."""
    np.subtract(total, words, out=total)
    np.minimum(total, total + np.uint64(modulus), out=total)


class Packing:
    """How vectors of ``length`` integers travel under some parameters."""

    def __init__(self, parameters: Parameters, length: int) -> None:
        self.n_pieces = parameters.n_pieces(length)
        self.words_a_piece = 2 * parameters.poly_degree
        self.n_words = self.n_pieces * self.words_a_piece
        self._width = parameters.word_bytes
        self._item = np.dtype(f"V{self._width}")
        self._modulus = parameters.modulus
        self._header = b"fedhe" + bytes([VERSION, ord(parameters.scheme[0]), self._width])
        self.n_bytes = len(self._header) + self.n_words * self._width

    def zeros(self) -> Words:
        """A sum of nothing."""
        return np.zeros(self.n_words, dtype=np.uint64)

    def empty(self) -> Payload:
        """A payload whose pieces are yet to be put."""
        payload = np.empty(self.n_bytes, dtype=np.uint8)
        payload[: len(self._header)] = np.frombuffer(self._header, dtype=np.uint8)
        return payload

    def put(self, payload: Payload, piece: int, words: Words) -> None:
        """Write one piece into a payload."""
        self._octets(payload, piece * self.words_a_piece, self.words_a_piece)[:] = self._lowest(words)

    def packed(self, words: Words) -> Payload:
        """All pieces as one payload."""
        payload = self.empty()
        for piece, one in enumerate(words.reshape(self.n_pieces, -1)):
            self.put(payload, piece, one)
        return payload

    def check(self, payload: Payload) -> None:
        """Refuse what is no payload of these parameters.

        Raises:
            UpdateRefused: another type, length, version or width, or a coefficient that is not below q.
        """
        if not isinstance(payload, np.ndarray) or payload.dtype != np.uint8 or payload.shape != (self.n_bytes,):
            found = f"{getattr(payload, 'dtype', type(payload).__name__)} of shape {getattr(payload, 'shape', None)}"
            raise _refused(found, f"uint8 of shape ({self.n_bytes},)")
        if payload[: len(self._header)].tobytes() != self._header:
            raise _refused("ciphertexts of another version or other parameters", f"version {VERSION}")
        if any(words.max() >= self._modulus for words in self.pieces(payload)):
            raise _refused("a coefficient beyond the modulus", f"below {self._modulus}")

    def pieces(self, payload: Payload) -> Iterator[Words]:
        """The coefficients in a payload, piece by piece; each is valid until the next is asked for."""
        payload = np.ascontiguousarray(payload)
        words = np.zeros(self.words_a_piece, dtype=np.uint64)
        for start in range(0, self.n_words, self.words_a_piece):
            self._lowest(words)[:] = self._octets(payload, start, self.words_a_piece)
            yield words

    def add(self, total: Words, payload: Payload) -> None:
        """Add a payload that was checked to a sum, in place."""
        for summed, words in zip(total.reshape(self.n_pieces, -1), self.pieces(payload), strict=True):
            add(summed, words, self._modulus)

    def subtract(self, total: Words, payload: Payload) -> None:
        """Take a payload that was added out of a sum, in place."""
        for summed, words in zip(total.reshape(self.n_pieces, -1), self.pieces(payload), strict=True):
            subtract(summed, words, self._modulus)

    def _octets(self, payload: Payload, first: int, n: int) -> NDArray[np.void]:
        """Coefficients in a payload, as items of ``width`` bytes."""
        return np.ndarray(n, self._item, payload.data, len(self._header) + first * self._width)

    def _lowest(self, words: Words) -> NDArray[np.void]:
        """The lowest ``width`` bytes of each coefficient; all hosts that TenSEAL is built for are little-endian."""
        return np.ndarray(len(words), self._item, words.data, 0, (8,))


def _refused(found: str, expected: str) -> UpdateRefused:
    return UpdateRefused(found, expected, "run the same fedray version and experiment on every node")
