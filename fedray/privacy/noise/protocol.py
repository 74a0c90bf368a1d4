"""What a noise must do, whichever way its rounds are correlated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedray.privacy.events import Charge
from fedray.protocols import State

Draw = Callable[[int], NDArray[np.float64]]
"""Gives so many independent standard normal values, shape ``(n_values,)``, that nobody else knows."""


class Noise(Protocol):
    """Noise of a whole run, for sums in which an owner's part has an L2 norm of at most 1.

    Everything holds for neighbours of which one has nothing in an owner's place ("zero-out"), also if contributions
    depend on what was released before.
    """

    @property
    def separation(self) -> int:
        """An owner that takes part in round ``t`` must not again before round ``t + separation``; whoever selects
        cohorts sees to it."""

    def init(self, n_values: int) -> State:
        """State before the first round, for sums of shape ``(n_values,)``."""

    def next(self, state: State, draw: Draw) -> tuple[State, NDArray[np.float64]]:
        """New state and the noise of the next round, shape ``(n_values,)``; ``state`` is left as it was.

        Calls ``draw`` once. The state tells the noise of past rounds: it is as secret as the sums.

        Raises:
            RunError: all rounds that the noise was planned for have had theirs.
        """

    def charges(self) -> tuple[Charge, ...]:
        """What the whole run costs an owner that takes part as often as it may, whenever that is worst."""

    def prefix_variances(self, n_rounds: int) -> NDArray[np.float64]:
        """Variance of each coordinate of the summed noise of rounds 1 to t, for t up to ``n_rounds``; exact.

        Returns:
            Shape ``(n_rounds,)``.

        Raises:
            ConfigError: more rounds than the noise was planned for.
        """
