"""Coefficients against other optimisers, other libraries, and the best factorisation that there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from dense_noise import Matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm, toeplitz
from scipy.optimize import minimize

from fedray.privacy.noise.factorisation import column_norms, optimal, square_root, squared_row_norms


def uncut_error(coefficients: Matrix, n_rounds: int) -> float:
    """Mean squared error of all prefix sums for the Toeplitz matrix over its first column's norm, dense."""
    column = np.zeros(n_rounds)
    column[: len(coefficients)] = coefficients
    factor = np.tri(n_rounds) @ np.linalg.inv(np.tril(toeplitz(column)))
    return float((factor**2).sum() / n_rounds * (column @ column))


def error(coefficients: Matrix, n_rounds: int) -> float:
    """The same with every column at norm 1."""
    return float(squared_row_norms(coefficients, n_rounds).mean())


def test_the_square_root_times_itself_gives_prefix_sums() -> None:
    root = np.tril(toeplitz(square_root(20)))
    np.testing.assert_allclose(root @ root, np.tri(20), atol=1e-12)
    assert square_root(4).tolist() == [1, 1 / 2, 3 / 8, 5 / 16]


JAX_PRIVACY = [
    (16, 4, 3.7540235664, 3.7000249232),
    (32, 4, 6.0783077435, 6.0391493202),
    (32, 32, 3.8531614271, 3.6946464906),
    (100, 2, 26.8481085277, 26.8409529394),
    (100, 10, 8.6818738986, 8.6263883817),
    (500, 10, 31.0680430887, 31.0433493628),
    (2000, 32, 42.0246545696, 41.9906360986),
]
"""Of jax-privacy 2.0.0 in double precision: ``toeplitz.loss`` of ``toeplitz.optimize_banded_toeplitz``, 1000 steps, and
the mean of ``banded.per_query_error`` of ``banded.ColumnNormalizedBanded.from_banded_toeplitz`` of the same."""


@pytest.mark.parametrize(("n_rounds", "bands", "uncut", "normalised"), JAX_PRIVACY)
def test_errors_are_those_of_jax_privacy(n_rounds: int, bands: int, uncut: float, normalised: float) -> None:
    found = optimal(n_rounds, bands)
    assert error(found, n_rounds) == pytest.approx(normalised, rel=1e-6)
    if n_rounds <= 500:
        assert uncut_error(found, n_rounds) == pytest.approx(uncut, rel=1e-8)


@pytest.mark.parametrize(("n_rounds", "bands"), [(5, 2), (9, 3), (12, 6), (30, 4)])
def test_a_search_without_slopes_or_bounds_finds_nothing_better(n_rounds: int, bands: int) -> None:
    """Powell's method on the dense error, from no correlation at all."""

    def dense_error(further: Matrix) -> float:
        return uncut_error(np.array([1.0, *further]), n_rounds)

    found = minimize(dense_error, np.zeros(bands - 1), method="Powell", options={"xtol": 1e-8, "ftol": 1e-13})
    assert uncut_error(optimal(n_rounds, bands), n_rounds) == pytest.approx(found.fun, rel=1e-7)


def best_of_all(n_rounds: int) -> tuple[float, float]:
    """Bounds from above and below of the least mean squared error of any factorisation with columns of norm 1.

    S. Denisov et al. 2022: Lagrange multipliers as the fixed point of ``v = diag(sqrt(V W V))`` with
    ``V = diag(v)^(1/2)`` and ``W = A^T A``. For any v the dual is ``2 tr sqrt(V W V) - sum(v)``.
    """
    workload = np.tri(n_rounds).T @ np.tri(n_rounds) / n_rounds
    multipliers = np.ones(n_rounds)
    for _ in range(300):
        root = np.real(sqrtm(np.sqrt(np.outer(multipliers, multipliers)) * workload))
        multipliers = np.diag(root).copy()
    root = np.real(sqrtm(np.sqrt(np.outer(multipliers, multipliers)) * workload))
    gram = root / np.sqrt(np.outer(multipliers, multipliers))
    above = np.trace(workload @ np.linalg.inv(gram)) * np.diag(gram).max()
    return float(above), float(2 * np.trace(root) - multipliers.sum())


@pytest.mark.parametrize(("n_rounds", "loss"), [(8, 1.032), (16, 1.032), (32, 1.033)])
def test_with_all_bands_little_is_lost_against_the_best_factorisation(n_rounds: int, loss: float) -> None:
    above, below = best_of_all(n_rounds)
    assert below == pytest.approx(above, rel=1e-6)
    assert below <= error(optimal(n_rounds, n_rounds), n_rounds) <= loss * below


def test_the_best_factorisation_is_that_of_jax_privacy() -> None:
    """``banded.optimize`` with all bands; so the loss above is no artefact of the fixed point."""
    assert best_of_all(32)[1] == pytest.approx(3.5799907133, rel=1e-7)


def best_of_all_with_bands(n_rounds: int, bands: int) -> float:
    """Convex in the entries of ``X = C^T C`` within the bands, the diagonal 1: least ``tr(A^T A X^-1) / n``."""
    workload = np.tri(n_rounds).T @ np.tri(n_rounds) / n_rounds
    rows, columns = np.nonzero(np.tri(n_rounds, k=-1) - np.tri(n_rounds, k=-bands))

    def value_and_slope(entries: Matrix) -> tuple[float, Matrix]:
        gram = np.eye(n_rounds)
        gram[rows, columns] = gram[columns, rows] = entries
        if np.linalg.eigvalsh(gram)[0] < 1e-6:
            return 1e6, np.zeros_like(entries)
        inverse = np.linalg.inv(gram)
        slope = -inverse @ workload @ inverse
        return float(np.trace(workload @ inverse)), 2 * slope[rows, columns]

    found = minimize(value_and_slope, np.zeros(len(rows)), jac=True, method="BFGS", options={"gtol": 1e-7})
    return float(found.fun)


@pytest.mark.parametrize(("n_rounds", "bands", "loss"), [(16, 4, 1.022), (24, 3, 1.017), (24, 2, 1.012)])
def test_one_set_of_coefficients_loses_little_against_one_for_each_column(
    n_rounds: int, bands: int, loss: float
) -> None:
    best = best_of_all_with_bands(n_rounds, bands)
    assert best * (1 - 1e-9) <= error(optimal(n_rounds, bands), n_rounds) <= loss * best


@settings(deadline=None, max_examples=50)
@given(n_rounds=st.integers(2, 90), data=st.data())
def test_optimal_coefficients_decrease_and_beat_those_of_the_square_root(n_rounds: int, data: st.DataObject) -> None:
    bands = data.draw(st.integers(2, n_rounds))
    found = optimal(n_rounds, bands)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert (found > 0).all()
    assert (np.diff(found) < 0).all()
    assert uncut_error(found, n_rounds) < uncut_error(square_root(bands), n_rounds) * (1 + 1e-9)
    if 4 * bands <= n_rounds:
        assert error(found, n_rounds) < error(square_root(bands), n_rounds) * (1 + 1e-9)


def test_more_bands_leave_less_noise() -> None:
    errors = [error(optimal(500, bands), 500) for bands in (1, 2, 4, 8, 16, 32, 64)]
    assert errors[0] == pytest.approx(501 / 2)
    assert all(more < 0.8 * fewer for fewer, more in itertools.pairwise(errors))


def test_thousands_of_rounds_are_no_obstacle() -> None:
    assert error(optimal(4000, 64), 4000) == pytest.approx(44.776, rel=1e-4)


def test_the_last_columns_are_cut_short() -> None:
    norms = column_norms(np.array([0.8, 0.48, 0.36]), 5)
    np.testing.assert_allclose(norms, [1, 1, 1, (0.64 + 0.2304) ** 0.5, 0.8], rtol=1e-12)


def test_coefficients_that_are_kept_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        optimal(10, 3)[0] = 1
