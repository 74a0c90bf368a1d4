"""Held-out figures with noise: sums of metrics in [0, 1] over one owner's rows, each with Gaussian noise.

One row moves each sum by at most one, so k metrics by sqrt(k) together. The loss is left out: nothing bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedray.privacy.account import Account
from fedray.privacy.events import Charge, Gaussian
from fedray.values import Tally

Draw = Callable[[int], NDArray[np.float64]]


def event(noise: float, n_metrics: int) -> Gaussian:
    """What one owner's figures cost: one row moves ``n_metrics`` sums by at most one each."""
    return Gaussian(noise / math.sqrt(n_metrics))


class NoisyTally:
    """Makes one owner's held-out figures private, at the level of examples.

    Args:
        metrics: names of metrics in [0, 1].
        noise: deviation of the noise on each metric's sum.
        account: the owner's account of this run.
        draw: standard normal values from a secret generator.
    """

    def __init__(self, metrics: tuple[str, ...], noise: float, account: Account, draw: Draw) -> None:
        self._metrics = metrics
        self._noise = noise
        self._account = account
        self._draw = draw
        self._n_taken = 0

    def __call__(self, evaluate: Callable[[], Tally]) -> Tally:
        """The figures that ``evaluate`` gives, with noise; the number of rows is public.

        Raises:
            BudgetExhausted: the owner's budget does not allow it.
        """
        self._n_taken += 1
        self._account.charge(self._n_taken, Charge(event(self._noise, len(self._metrics))), "evaluate")
        tally = evaluate()
        noise = self._noise * self._draw(len(self._metrics))
        sums = {name: tally.sums[name] + float(extra) for name, extra in zip(self._metrics, noise, strict=True)}
        return Tally(sums, tally.count)
