"""Banded noise against dense matrices, and its sensitivity against every way to take part."""

from __future__ import annotations

import numpy as np
import pytest
from dense_noise import Matrix, matrix, patterns, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.noise import BandedNoise


def dense(coefficients: Matrix, n_rounds: int) -> Matrix:
    """``C``: the coefficients from the diagonal down, each column over its norm."""
    found = np.zeros((n_rounds, n_rounds))
    for column in range(n_rounds):
        fitting = coefficients[: n_rounds - column]
        found[column : column + len(fitting), column] = fitting / np.linalg.norm(fitting)
    return found


@settings(deadline=None, max_examples=60)
@given(n_rounds=st.integers(1, 40), data=st.data())
def test_streamed_noise_is_that_of_the_dense_inverse(n_rounds: int, data: st.DataObject) -> None:
    bands = data.draw(st.integers(1, n_rounds))
    noise = BandedNoise(2.0, n_rounds, bands, 1)
    draws = np.random.default_rng(n_rounds).standard_normal((n_rounds, 3))
    expected = np.linalg.solve(dense(noise.coefficients, n_rounds), 2.0 * draws)
    np.testing.assert_allclose(stream(noise, draws), expected, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(n_rounds=st.integers(1, 40), data=st.data())
def test_prefix_variances_are_the_squared_rows_of_the_dense_factor(n_rounds: int, data: st.DataObject) -> None:
    noise = BandedNoise(2.0, n_rounds, data.draw(st.integers(1, n_rounds)), 1)
    factor = np.tri(n_rounds) @ np.linalg.inv(dense(noise.coefficients, n_rounds))
    np.testing.assert_allclose(noise.prefix_variances(n_rounds), 4 * (factor**2).sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize(("n_rounds", "bands"), [(9, 2), (12, 3), (13, 5), (8, 8)])
def test_no_owner_moves_the_run_by_more_than_the_root_of_its_participations(n_rounds: int, bands: int) -> None:
    """All patterns, with parts of norm 1 in random directions, alike, and opposed."""
    encoder = np.linalg.inv(matrix(BandedNoise(1.0, n_rounds, bands, 1), n_rounds))
    np.testing.assert_allclose(np.linalg.norm(encoder, axis=0), 1, rtol=1e-10)
    random = np.random.default_rng(3)
    for rounds in patterns(n_rounds, bands, -(-n_rounds // bands)):
        k = len(rounds)
        drawn = random.standard_normal((k, 4))
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        for parts in (drawn, np.ones((k, 1)), (-1.0) ** np.arange(k)[:, None]):
            moved = np.linalg.norm(encoder[:, rounds] @ parts)
            assert moved == pytest.approx(k**0.5, rel=1e-9)


def test_owners_that_come_back_within_the_bands_would_move_it_further() -> None:
    """The separation is no formality: the test above fails without it."""
    noise = BandedNoise(1.0, 12, 3, 1)
    encoder = np.linalg.inv(matrix(noise, 12))
    assert np.linalg.norm(encoder[:, [4, 4 + noise.separation - 1]].sum(axis=1)) > 1.05 * 2**0.5


def test_a_run_is_one_gaussian_mechanism() -> None:
    assert BandedNoise(6.0, 100, 10, 9).charges() == (Charge(Gaussian(2.0), 1),)


def test_one_band_is_independent_noise() -> None:
    draws = np.random.default_rng(0).standard_normal((8, 3))
    np.testing.assert_array_equal(stream(BandedNoise(2.0, 8, 1, 8), draws), 2.0 * draws)


def test_only_as_many_past_rounds_as_there_are_further_bands_are_kept() -> None:
    noise = BandedNoise(1.0, 30, 7, 4)
    state = noise.init(5)
    for _ in range(20):
        state, _ = noise.next(state, np.ones)
        assert state["past"].shape == (6, 5)
