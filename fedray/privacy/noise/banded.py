"""Noise correlated by the inverse of a banded matrix: banded matrix factorisation, DP-BandMF.

C. A. Choquette-Choo et al., *(Amplified) Banded Matrix Factorization: A unified approach to private training*, NeurIPS
2023. Noise is ``C^-1 z`` for independent ``z``, solved row by row (Algorithm 9) with the last ``bands - 1`` results.

Privacy is that of the paper's Theorem 2 for owners whose rounds are at least ``bands`` apart: two columns of ``C`` that
far apart share no row. An owner's parts ``u_1, ..., u_k`` of norm at most 1 hence change ``C g`` by
``sum_i c_i u_i^T`` of squared norm ``sum_i |c_i|^2 |u_i|^2 <= k``, whatever their directions and the signs in ``C``.
The whole run is one Gaussian mechanism of sensitivity ``sqrt(k)``; that contributions may depend on earlier releases
is Theorem 2.1 of S. Denisov et al., *Improved Differential Privacy for SGD via Optimal Private Linear Operators on
Adaptive Streams*, NeurIPS 2022.

Where this differs from the paper: no amplification by sampling, and one set of coefficients for all columns instead of
one for each (see ``factorisation``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.noise import factorisation, limits
from fedray.privacy.noise.protocol import Draw
from fedray.protocols import State


@dataclass(frozen=True, slots=True)
class BandedNoise:
    """``z C^-1 N(0, I)`` over the rounds, with the coefficients that are best for the mean over all prefix sums.

    Args:
        noise_multiplier: z, deviation of the noise over the sensitivity of one participation.
        n_rounds: rounds of the run.
        bands: of ``C``; an owner's rounds are at least so far apart. One band is independent noise.
        max_participations: k, most rounds that one owner takes part in.

    Raises:
        ConfigError: the noise multiplier is not positive, there are more bands than rounds, or more participations than
            fit with their separation.
    """

    noise_multiplier: float
    n_rounds: int
    bands: int
    max_participations: int

    def __post_init__(self) -> None:
        limits.check_noise_multiplier(self.noise_multiplier)
        limits.check_within("bands", self.bands, self.n_rounds)
        limits.check_participations(self.max_participations, limits.most_participations(self.n_rounds, self.bands))

    @property
    def separation(self) -> int:
        return self.bands

    @property
    def coefficients(self) -> factorisation.Coefficients:
        """From the diagonal of ``C`` down, before columns that are cut short are scaled; shape ``(bands,)``."""
        return factorisation.optimal(self.n_rounds, self.bands)

    def init(self, n_values: int) -> State:
        """The last results, latest first, each before its column's scaling: shape ``(bands - 1, n_values)``."""
        return {"round": np.zeros(1), "past": np.zeros((self.bands - 1, n_values))}

    def next(self, state: State, draw: Draw) -> tuple[State, NDArray[np.float64]]:
        passed, past = limits.rounds_before(state, self.n_rounds), state["past"]
        coefficients = self.coefficients
        solved = (self.noise_multiplier * draw(past.shape[1]) - coefficients[1:] @ past) / coefficients[0]
        scale = factorisation.column_norms(coefficients, self.n_rounds)[passed]
        past = np.concatenate([solved[None], past])[: self.bands - 1]
        return {"round": np.full(1, passed + 1.0), "past": past}, scale * solved

    def charges(self) -> tuple[Charge, ...]:
        return (Charge(Gaussian(self.noise_multiplier / math.sqrt(self.max_participations))),)

    def prefix_variances(self, n_rounds: int) -> NDArray[np.float64]:
        limits.check_within("n_rounds", n_rounds, self.n_rounds)
        squared = factorisation.squared_row_norms(self.coefficients, self.n_rounds)
        return self.noise_multiplier**2 * squared[:n_rounds]
