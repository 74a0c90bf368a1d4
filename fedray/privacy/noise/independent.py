"""Fresh Gaussian noise in every round: what correlated noise is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.noise import limits
from fedray.privacy.noise.protocol import Draw
from fedray.protocols import State


@dataclass(frozen=True, slots=True)
class Independent:
    """``z N(0, I)`` in each round; owners may take part in consecutive rounds.

    Args:
        noise_multiplier: z, deviation of the noise over the norm of one part.
        n_rounds: rounds of the run.
        max_participations: most rounds that one owner takes part in.

    Raises:
        ConfigError: the noise multiplier is not positive, or there are more participations than rounds.
    """

    noise_multiplier: float
    n_rounds: int
    max_participations: int

    def __post_init__(self) -> None:
        limits.check_noise_multiplier(self.noise_multiplier)
        limits.check_participations(self.max_participations, self.n_rounds)

    @property
    def separation(self) -> int:
        return 1

    def init(self, n_values: int) -> State:
        return {"round": np.zeros(1), "size": np.full(1, float(n_values))}

    def next(self, state: State, draw: Draw) -> tuple[State, NDArray[np.float64]]:
        passed = limits.rounds_before(state, self.n_rounds)
        noise = self.noise_multiplier * draw(int(state["size"][0]))
        return {**state, "round": np.full(1, passed + 1.0)}, noise

    def charges(self) -> tuple[Charge, ...]:
        return (Charge(Gaussian(self.noise_multiplier), self.max_participations),)

    def prefix_variances(self, n_rounds: int) -> NDArray[np.float64]:
        limits.check_within("n_rounds", n_rounds, self.n_rounds)
        return self.noise_multiplier**2 * np.arange(1.0, n_rounds + 1)
