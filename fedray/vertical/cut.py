"""Noise on the gradients that leave the label holder, so that they tell feature owners less of the labels.

O. Li et al., "Label Leakage and Protection in Two-party Split Learning", ICLR 2022, section 4: ``max_norm`` (the
heuristic of 4.2) and isotropic noise. Deviations: a gradient of zero stays zero under ``max_norm``, and stands out;
each owner's gradient gets noise of its own, so that owners who join see two draws. Neither is differential privacy: it
makes the attacks of that paper worse, and nothing is proven of others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError

Gradients = NDArray[np.float32]


class CutNoise(Protocol):
    """What is done to the gradients of one batch before an owner gets them."""

    def applied(self, gradients: Gradients, noise: np.random.Generator) -> Gradients:
        """Gradients with noise; shape ``(n, width)``."""


@dataclass(frozen=True)
class NoNoise:
    """Gradients as they are."""

    def applied(self, gradients: Gradients, noise: np.random.Generator) -> Gradients:  # noqa: ARG002  # see the protocol
        return gradients


@dataclass(frozen=True)
class MaxNorm:
    """Noise along each row's gradient, so that all are expected to be as long as the batch's longest."""

    def applied(self, gradients: Gradients, noise: np.random.Generator) -> Gradients:
        squares = np.square(gradients).sum(axis=1, keepdims=True)
        ratios = np.divide(squares.max(initial=0.0), squares, out=np.ones_like(squares), where=squares > 0)
        draws = noise.standard_normal(squares.shape, dtype=np.float32)
        noised: Gradients = gradients * (1 + np.sqrt(ratios - 1) * draws)
        return noised


@dataclass(frozen=True)
class Isotropic:
    """Gaussian noise in every direction.

    Args:
        times: its expected length over that of the batch's longest gradient: its deviation in each of ``width``
            coordinates is ``times * longest / sqrt(width)``.

    Raises:
        ConfigError: not a positive number.
    """

    times: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.times < math.inf:
            raise ConfigError(f"isotropic noise of {self.times} times", "a positive number", "take 1 to 3")

    def applied(self, gradients: Gradients, noise: np.random.Generator) -> Gradients:
        longest = np.linalg.norm(gradients, axis=1).max(initial=0.0)
        draws = noise.standard_normal(gradients.shape, dtype=np.float32)
        return gradients + np.float32(self.times * longest / math.sqrt(gradients.shape[1])) * draws
