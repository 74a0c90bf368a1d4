"""Streams of random words from AES-128 in counter mode.

A key from the operating system's generator makes a stream unpredictable; a key that is given makes it replay.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray


class Stream:
    """Uniform words, each used once.

    Args:
        key: 16 bytes; left out, they are the operating system's. Never stored.
    """

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(16) if key is None else key), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def bits16(self, n: int) -> NDArray[np.uint16]:
        """The next ``n`` uniform 16-bit words, shape ``(n,)``."""
        return np.frombuffer(self._encryptor.update(bytes(2 * n)), dtype="<u2")

    def bits64(self, n: int) -> NDArray[np.uint64]:
        """The next ``n`` uniform 64-bit words, shape ``(n,)``."""
        return np.frombuffer(self._encryptor.update(bytes(8 * n)), dtype="<u8")
