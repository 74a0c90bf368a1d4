"""Randomness that two parties draw alike without talking: AES-128 in counter mode under a key that they agreed on.

Each party shares one key with the next and one with the previous (Araki et al. 2016, Section 2.2). Both ends draw the
same amounts in the same order, since all parties run the same program. Keys come from X25519 agreements between fresh
key pairs of the operating system's generator, through HKDF-SHA256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

KEY_BYTES = 16
_ZEROS = bytes(1 << 20)
_WIDTHS = {torch.int64: np.int64, torch.int32: np.int32, torch.int16: np.int16, torch.uint8: np.uint8}


class Stream:
    """Uniform words, the same for all who hold the key.

    Args:
        key: 16 bytes of full entropy.
    """

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(KEY_BYTES))).encryptor()

    def words(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        """The next uniform words, as a tensor of this shape."""
        drawn = np.empty(math.prod(shape), dtype=_WIDTHS[dtype])
        if drawn.size:
            self._fill(drawn.view(np.uint8))
        return torch.from_numpy(drawn).reshape(tuple(shape))

    def _fill(self, room: NDArray[np.uint8]) -> None:
        for start in range(0, len(room), len(_ZEROS)):
            piece = room[start : start + len(_ZEROS)]
            self._encryptor.update_into(memoryview(_ZEROS)[: len(piece)], piece.data)
