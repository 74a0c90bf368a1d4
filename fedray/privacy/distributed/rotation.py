"""A random rotation that spreads what a vector holds evenly over its coordinates: signs, then a Hadamard matrix.

Kairouz, Liu, Steinke 2021, *The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation*, Algorithm 1 (flattening). The signs are public and come from a key that all sides have; privacy does not
rest on them. A Hadamard matrix of size 2**b is a Kronecker product of small ones: BLAS multiplies by one after the
other, along the axes of an array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedray.protection.fixed_point import power_of_two_from

_RADIX_BITS = 5

Reals = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Rotation:
    """An orthonormal map from ``(n_values,)`` to ``(length,)``, and back.

    Attributes:
        key: 16 bytes that the signs are drawn from; public.
        n_values: values of a vector.
    """

    key: bytes
    n_values: int

    @property
    def length(self) -> int:
        """Coordinates of a rotated vector: the next power of two."""
        return power_of_two_from(self.n_values)

    def forward(self, values: Reals) -> Reals:
        """The rotated vector, shape ``(length,)``, in the precision of ``values``."""
        padded = np.zeros(self.length, dtype=values.dtype)
        np.multiply(values, self._signs(values.dtype), out=padded[: self.n_values])
        return hadamard(padded)

    def backward(self, rotated: Reals) -> Reals:
        """What ``forward`` was given, shape ``(n_values,)``, up to rounding."""
        values = hadamard(rotated)[: self.n_values]
        return values * self._signs(rotated.dtype)

    def _signs(self, dtype: np.dtype[np.floating[Any]]) -> Reals:
        """Each -1 or 1, shape ``(n_values,)``."""
        stream = Cipher(algorithms.AES(self.key), modes.CTR(bytes(16))).encryptor()
        packed = np.frombuffer(stream.update(bytes(-(-self.n_values // 8))), dtype=np.uint8)
        bits = np.unpackbits(packed, count=self.n_values, bitorder="little")
        signs: Reals = np.array([1, -1], dtype=dtype)[bits]
        return signs


def hadamard(values: Reals) -> Reals:
    """The product with the orthonormal Hadamard matrix in Sylvester's order, shape ``(2**b,)``."""
    bits, stride = len(values).bit_length() - 1, 1
    product: Reals = values
    while bits:
        size = 1 << min(bits, _RADIX_BITS)
        factor = _matrix(size).astype(values.dtype)
        grid = product.reshape(-1, size, stride)
        product = grid[:, :, 0] @ factor if stride == 1 else factor @ grid
        bits, stride = bits - size.bit_length() + 1, stride * size
    return product.reshape(-1)


@lru_cache(maxsize=_RADIX_BITS)
def _matrix(size: int) -> NDArray[np.float64]:
    """The orthonormal Hadamard matrix, shape ``(size, size)``; symmetric."""
    pair, matrix = np.array([[1.0, 1.0], [1.0, -1.0]]), np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, pair)
    return matrix / math.sqrt(size)
