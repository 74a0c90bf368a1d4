"""One ciphertext between SEAL's serialised form and plain coefficients.

TenSEAL wraps SEAL's stream (a header of 16 bytes with the compressed length, then zstd) into a protocol buffer.
Everything but the coefficients is the same for all ciphertexts of one key, so it is learned once from a ciphertext that
this process made. A ciphertext from a peer is put together from that and the peer's coefficients: sizes, scales and
identifiers of parameters never come from a peer. That matters: TenSEAL 0.3.18 believes the number of slots that a
serialised vector claims, and reads beyond its buffer when a larger one is decrypted.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa

from fedray.protection.homomorphic.parameters import Parameters
from fedray.protection.homomorphic.words import Words

_MAGIC = b"\x5e\xa1"
_HEADER = struct.Struct("<5sB2sQ")
_UNCOMPRESSED = 0
_CIPHERTEXTS = b"\x12"
"""Tag of the protocol buffer's field that holds a ciphertext."""


class Stream:
    """Turns ciphertexts of one key into coefficients and back.

    Args:
        sample: a ciphertext that this process encrypted and TenSEAL serialised.
    """

    def __init__(self, parameters: Parameters, sample: bytes) -> None:
        self._n_bytes = 16 * parameters.poly_degree
        start = sample.index(_MAGIC)
        compressed, self._after = self._body(sample, start)
        body = pa.CompressedInputStream(pa.BufferReader(compressed), "zstd").read()
        self._body_bytes = len(body)
        self._prefix = body[: -self._n_bytes]
        magic, _, reserved, _ = _HEADER.unpack_from(sample, start)
        header = _HEADER.pack(magic, _UNCOMPRESSED, reserved, _HEADER.size + len(body))
        sizes = sample[: sample.index(_CIPHERTEXTS)]
        self._before = sizes + _CIPHERTEXTS + _varint(len(header) + len(body)) + header + self._prefix

    def words(self, serialised: bytes) -> Words:
        """The coefficients of a ciphertext that this process made."""
        compressed, _ = self._body(serialised, serialised.index(_MAGIC))
        body = pa.decompress(compressed, decompressed_size=self._body_bytes, codec="zstd", asbytes=True)
        return np.frombuffer(body, dtype="<u8", offset=len(self._prefix)).astype(np.uint64)

    def serialised(self, words: Words) -> bytes:
        """What TenSEAL reads as the ciphertext with these coefficients."""
        serialised: bytes = self._before + words.astype("<u8", copy=False).tobytes() + self._after
        return serialised

    @staticmethod
    def _body(serialised: bytes, start: int) -> tuple[memoryview, bytes]:
        (*_, length) = _HEADER.unpack_from(serialised, start)
        end = start + length
        return memoryview(serialised)[start + _HEADER.size : end], serialised[end:]


def _varint(n: int) -> bytes:
    low, rest = n & 127, n >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
