"""FedProx.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, Algorithm 2. It differs from FedAvg in two things:

* every owner minimises  F_k(w) + mu/2 ||w - w_t||^2;
* an owner that is slow returns the iterate that it has (a gamma-inexact solution), and it is used.

With mu = 0 and no slow owner it is FedAvg. Deviation: the paper samples owners by their share of rows and averages
alike; like its authors' code we sample uniformly and weigh by rows (``weighting: uniform`` for all alike).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedray.protocols import State
from fedray.strategies.fedavg import FedAvg
from fedray.values import RoundPlan


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term in local training, and with partial work.

    Attributes:
        mu: weight of the proximal term.
    """

    mu: float = 0.1

    def plan(self, state: State, round: int) -> RoundPlan:
        return replace(super().plan(state, round), proximal_mu=self.mu, accepts_partial_work=True)
