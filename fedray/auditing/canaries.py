"""Canaries: what is put into a run to be found again, and the coins that say which of it is in.

The worst cases of M. Nasr et al., "Adversary Instantiation: Lower Bounds for Differentially Private Machine Learning",
2021: "Dirac" canaries, each with parameters of its own on which nothing but it and the noise acts, so that one run
tests as many as there are parameters. An example's gradient is the same in every step, far above the clip; an owner's
update likewise. A canary that is out gives zeros, as the neighbours have it that epsilon is accounted for.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedray import seeds
from fedray.values import Assignment, Examples, Shard, Tally, Update, Vector

LOUDNESS = 100.0
"""Norm of a canary over the clip."""
N_ORDINARY_FEATURES = 8
"""Parameters that belong to ordinary rows."""


def toss(n_canaries: int, unsafe_replay_seed: int | None = None) -> NDArray[np.bool_]:
    """Fair coins, shape ``(n_canaries,)``, by the operating system's generator unless the run is to be replayed."""
    if unsafe_replay_seed is not None:
        return seeds.generator(unsafe_replay_seed, "canaries").random(n_canaries) < 0.5
    return np.unpackbits(np.frombuffer(secrets.token_bytes(-(-n_canaries // 8)), np.uint8))[:n_canaries].astype(bool)


def canary_features(coins: NDArray[np.bool_], n_rows: int, norm: float, seed: int) -> NDArray[np.float32]:
    """One owner's rows: a canary a coin, each in a feature of its own or all zeros, then ordinary rows.

    Returns:
        Shape ``(n_rows, n_canaries + 8)``.
    """
    n_canaries = len(coins)
    features = np.zeros((n_rows, n_canaries + N_ORDINARY_FEATURES), dtype=np.float32)
    np.fill_diagonal(features, norm * coins)
    n_ordinary = n_rows - n_canaries
    features[n_canaries:, n_canaries:] = seeds.generator(seed, "ordinary rows").normal(
        size=(n_ordinary, N_ORDINARY_FEATURES)
    )
    return features


def canary_module(n_features: int) -> nn.Module:
    """A linear function without bias, from zeros: under ``canary_loss`` a row's gradient is its features."""
    linear = nn.Linear(n_features, 1, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def canary_loss(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001  # a loss is given targets
    """The mean output."""
    return outputs.mean()


class CanaryTask:
    """Owners that are canaries: each has one parameter of its own and pushes on it in every round, or not at all.

    Args:
        is_in: owner's name to its coin, in the order of parameters.
        norm: of the update of an owner that is in.
    """

    def __init__(self, is_in: Mapping[str, bool], norm: float) -> None:
        self._updates = {name: (place, norm * coin) for place, (name, coin) in enumerate(is_in.items())}

    @property
    def n_parameters(self) -> int:
        return len(self._updates)

    def initial(self, seed: int) -> Vector:  # noqa: ARG002  # the same whatever the seed
        return np.zeros(self.n_parameters, dtype=np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:  # noqa: ARG002
        place, value = self._updates[assignment.owner]
        delta = np.zeros_like(vector)
        delta[place] = value
        return Update(delta, weight=1, n_steps=assignment.work.amount, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:  # noqa: ARG002  # nothing is learned
        return Tally({"loss": 0.0}, len(examples))
