"""The norm that owners clip to, as it follows what a round released."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Clipping(Protocol):
    """How the clipping norm moves from round to round."""

    def next(self, clip: float, unclipped: float | None) -> float:
        """The norm of the next round.

        Args:
            clip: the norm of this round.
            unclipped: noised share of the expected cohort whose updates were within it; None where nobody was asked.
        """


@dataclass(frozen=True)
class Constant:
    """The norm stays."""

    def next(self, clip: float, unclipped: float | None) -> float:  # noqa: ARG002  # see the protocol
        return clip


@dataclass(frozen=True)
class QuantileTracking:
    """G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, "Differentially Private Learning with Adaptive Clipping",
    NeurIPS 2021, Algorithm 1, geometric update:  C <- C exp(-eta (b - gamma)).

    Attributes:
        quantile: gamma, the share of updates that the norm shall leave unclipped.
        rate: eta.
    """

    quantile: float
    rate: float

    def next(self, clip: float, unclipped: float | None) -> float:
        return clip if unclipped is None else clip * math.exp(-self.rate * (unclipped - self.quantile))
