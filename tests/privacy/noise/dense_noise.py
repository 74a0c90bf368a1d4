"""Noise as dense matrices: what streaming gives, written out for small runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from fedray.privacy.events import Charge, Gaussian, Tree
from fedray.privacy.noise import Draw, Noise

Matrix = NDArray[np.float64]


def replay(values: Matrix) -> Draw:
    """Gives the rows of ``values`` one after another instead of random numbers."""
    rows: Iterator[NDArray[np.float64]] = iter(values)

    def draw(n_values: int) -> NDArray[np.float64]:
        row = next(rows)
        assert row.shape == (n_values,)
        return row.copy()

    return draw


def stream(noise: Noise, draws: Matrix) -> Matrix:
    """The noise of as many rounds as there are rows of draws."""
    state, draw, found = noise.init(draws.shape[1]), replay(draws), []
    for _ in draws:
        state, one = noise.next(state, draw)
        found.append(one)
    return np.array(found)


def matrix(noise: Noise, n_rounds: int) -> Matrix:
    """``M`` of ``w = M z``, for noise is linear in what is drawn."""
    return stream(noise, np.eye(n_rounds))


def patterns(n_rounds: int, separation: int, most: int) -> Iterator[tuple[int, ...]]:
    """All ways to take part at most so often, with rounds so far apart."""
    for count in range(1, most + 1):
        for rounds in combinations(range(n_rounds), count):
            if all(later - earlier >= separation for earlier, later in pairwise(rounds)):
                yield rounds


def squared_sensitivity(noise: Noise, n_rounds: int, most: int) -> float:
    """Largest squared change of ``M^-1 g`` by one owner, over the variance of what is added to it.

    Releasing ``g + M z`` is releasing ``M^-1 g + z``. Parts that lie alike and signs that suit them are the worst.
    """
    inverse = np.linalg.inv(matrix(noise, n_rounds))
    gram = np.abs(inverse.T @ inverse)
    return max(float(gram[np.ix_(rounds, rounds)].sum()) for rounds in patterns(n_rounds, noise.separation, most))


def squared_sensitivity_charged(charge: Charge) -> float:
    """That of the one Gaussian mechanism that costs the same; a tree's round has a node for each binary digit."""
    match charge.event:
        case Gaussian(noise_multiplier):
            return charge.count / noise_multiplier**2
        case Tree(noise_multiplier, n_steps):
            return charge.count * len(f"{n_steps:b}") / noise_multiplier**2
        case other:
            raise AssertionError(other)
