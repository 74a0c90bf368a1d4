"""The rotation against scipy's Hadamard matrices, and as what it must be: orthonormal, invertible, spreading."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard as sylvester

from fedray.privacy.distributed.rotation import Rotation, hadamard

KEY = bytes(range(16))


@pytest.mark.parametrize("bits", range(13))
def test_the_transform_is_the_product_with_sylvesters_matrix(bits: int) -> None:
    values = np.random.default_rng(bits).standard_normal(2**bits)
    expected = sylvester(2**bits) @ values / np.sqrt(2**bits)
    np.testing.assert_allclose(hadamard(values), expected, atol=1e-13)
    narrow = hadamard(values.astype(np.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, expected, atol=1e-5)


@pytest.mark.parametrize("bits", [16, 18, 20])
def test_long_transforms_keep_the_norm_and_undo_themselves(bits: int) -> None:
    values = np.random.default_rng(bits).standard_normal(2**bits).astype(np.float32)
    found = hadamard(values)
    assert np.linalg.norm(found.astype(float)) == pytest.approx(np.linalg.norm(values.astype(float)), rel=1e-6)
    np.testing.assert_allclose(hadamard(found), values, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.binary(min_size=16, max_size=16), st.sampled_from([np.float32, np.float64]))
def test_rotating_back_gives_the_vector_and_the_norm_stays(n: int, key: bytes, dtype: type[np.float64]) -> None:
    values = np.random.default_rng(n).standard_normal(n).astype(dtype)
    rotation = Rotation(key, n)
    rotated = rotation.forward(values)
    assert rotated.shape == (rotation.length,)
    assert rotation.length // 2 < n <= rotation.length
    tolerance = 1e-5 if dtype is np.float32 else 1e-13
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values), rel=tolerance)
    np.testing.assert_allclose(rotation.backward(rotated), values, atol=tolerance)


def test_signs_are_the_bits_of_the_keystream_of_the_key() -> None:
    """The first row of the matrix is all ones, so the first coordinate of a unit vector is its sign."""
    stream = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(bytes(16))
    bits = [(stream[k // 8] >> (k % 8)) & 1 for k in range(64)]
    units = np.eye(64)
    found = [Rotation(KEY, 64).forward(units[k])[0] for k in range(64)]
    np.testing.assert_allclose(found, [(1 - 2 * bit) / 8 for bit in bits])
    assert 16 < sum(bits) < 48


def test_a_vector_that_is_all_in_one_place_is_spread_over_all() -> None:
    spike = np.zeros(1000, dtype=np.float32)
    spike[123] = 1
    np.testing.assert_allclose(np.abs(Rotation(KEY, 1000).forward(spike)), 1 / 32, rtol=1e-5)


def test_other_keys_rotate_otherwise() -> None:
    values = np.ones(64)
    assert not np.allclose(Rotation(KEY, 64).forward(values), Rotation(bytes(16), 64).forward(values))
