"""What one owner puts into a sum under owner-level privacy: a vector of norm 1, whatever its data.

It holds the clipped update and, beside it, statistics in [0, 1] that the server wants the mean of: whether the update
was within the clip, metrics on held-out rows. As in Andrew et al. 2021 (Theorem 1) they share one noise multiplier z:
with noise of deviation sigma_j on the sum of statistic j, centred so that it is at most 1/2,

    z^-2 = z_update^-2 + sum_j (2 sigma_j)^-2.

Here that is done by scaling: every statistic takes z / sigma_j of the vector, the update the rest, and the noise on
each coordinate of the sum has deviation z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.values import Vector

UNCLIPPED = "unclipped"
"""The statistic that says whether an update was within the clip."""
_MOST = 0.5
"""Largest share of the squared norm that statistics may take."""
_SLACK = 1 - 1e-6
"""Keeps the norm below 1 through rounding to float32."""


@dataclass(frozen=True)
class Parts:
    """The parts of one owner's vector.

    Args:
        n_values: length of an update.
        noise_multiplier: z, deviation of the noise on each coordinate of the sum of vectors of norm 1.
        statistics: (name, sigma): deviation of the noise on the sum of each statistic.

    Raises:
        ConfigError: the statistics would take more than half of the squared norm.
    """

    n_values: int
    noise_multiplier: float
    statistics: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self._taken > _MOST:
            fewest = self.noise_multiplier * math.sqrt(len(self.statistics) / (4 * _MOST))
            raise ConfigError(
                f"noise of {min(sigma for _, sigma in self.statistics):g} on the sums of "
                f"{', '.join(name for name, _ in self.statistics)}, beside a noise multiplier of "
                f"{self.noise_multiplier:.4g} on updates",
                f"{fewest:.3g} or more on each, so that updates keep half of what the noise hides",
                "raise evaluation.noise_multiplier and privacy.clipping.count_noise, or take fewer metrics",
            )

    @property
    def length(self) -> int:
        """Length of the whole vector."""
        return self.n_values + len(self.statistics)

    @property
    def _taken(self) -> float:
        return sum((self.noise_multiplier / (2 * sigma)) ** 2 for _, sigma in self.statistics)

    @property
    def _update_share(self) -> float:
        return math.sqrt(1 - self._taken) * _SLACK

    @property
    def _amplitudes(self) -> NDArray[np.float64]:
        return np.array([self.noise_multiplier / sigma * _SLACK for _, sigma in self.statistics])

    def pack(self, update: Vector, clip: float, statistics: Mapping[str, float]) -> Vector:
        """A vector of shape ``(length,)`` and norm at most 1, from an update of shape ``(n_values,)``.

        A statistic that the owner has none of counts as 1/2.
        """
        norm = float(np.linalg.norm(update.astype(np.float64)))
        packed = np.empty(self.length, dtype=np.float32)
        factor = self._update_share / max(norm, clip)
        packed[: self.n_values] = np.multiply(update, factor, dtype=np.float64)
        centred = np.array([min(1.0, max(0.0, statistics.get(name, 0.5))) - 0.5 for name, _ in self.statistics])
        packed[self.n_values :] = centred * self._amplitudes
        return packed

    def unpack(
        self, total: NDArray[np.float64], clip: float, n_expected: float
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """Mean update, shape ``(n_values,)``, and mean statistics, from a sum of vectors over ``n_expected`` owners."""
        mean = total / n_expected
        centred = mean[self.n_values :] / self._amplitudes
        statistics = {name: float(value) + 0.5 for (name, _), value in zip(self.statistics, centred, strict=True)}
        return mean[: self.n_values] * (clip / self._update_share), statistics
