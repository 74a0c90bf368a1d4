"""Federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, Algorithm 1. Written on updates instead of models, which is the same for a
server learning rate of 1, and with server momentum (T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", 2019, FedAvgM):

    v <- beta v + mean_k (w_k - w_t)        w_{t+1} <- w_t + eta v

Owners that cannot finish their work in time are dropped, as in the comparison of Li et al. 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedray.protocols import State
from fedray.values import RoundPlan, Vector, Work


@dataclass(frozen=True)
class FedAvg:
    """FedAvg: the mean of complete updates.

    Attributes:
        work: local work asked of every owner.
        weighting: weigh updates by training rows, or all alike.
        server_lr: eta above.
        server_momentum: beta above.
    """

    work: Work
    weighting: Literal["examples", "uniform"] = "examples"
    server_lr: float = 1.0
    server_momentum: float = 0.0

    def init(self, parameters: Vector) -> State:
        return {"velocity": np.zeros(parameters.shape, dtype=np.float64)}

    def plan(self, state: State, round: int) -> RoundPlan:  # noqa: ARG002  # other strategies plan by their state
        return RoundPlan(
            round=round,
            work=self.work,
            proximal_mu=0.0,
            accepts_partial_work=False,
            weighting=self.weighting,
        )

    def step(self, state: State, parameters: Vector, mean: NDArray[np.float64]) -> tuple[State, Vector]:
        velocity = self.server_momentum * state["velocity"] + mean
        return {"velocity": velocity}, (parameters + self.server_lr * velocity).astype(np.float32)
