"""A mean over seeds with its 95 % confidence interval. SciPy is imported when the first interval is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and what is known of its spread.

    Attributes:
        mean: arithmetic mean of the values.
        half_width: half the width of the 95 % interval (Student t); None for a single value.
        n: number of values.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.mean)

    def is_apart_from(self, other: Interval) -> bool:
        """Whether both have an interval and these do not overlap."""
        if self.half_width is None or other.half_width is None:
            return False
        return self.high < other.low or other.high < self.low


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95 % interval of independent values; None for no values."""
    n = len(values)
    if n == 0:
        return None
    mean = sum(values) / n
    if n == 1 or not all(math.isfinite(value) for value in values):
        return Interval(mean, None, n)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, _t_quantile(n - 1) * deviation / math.sqrt(n), n)


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
