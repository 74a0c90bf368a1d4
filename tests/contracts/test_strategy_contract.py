"""Every strategy keeps the Strategy contract."""

from __future__ import annotations

import pytest
from contracts.strategy import StrategyContract

from fedray.protocols import Strategy
from fedray.strategies import FedAvg, FedProx
from fedray.values import Work

WORK = Work(1, "epochs")
SUBJECTS: dict[str, Strategy] = {
    "fedavg": FedAvg(WORK),
    "fedavg with server momentum": FedAvg(WORK, server_lr=0.5, server_momentum=0.9),
    "fedprox": FedProx(WORK),
    "fedprox with server momentum": FedProx(WORK, mu=1.0, server_momentum=0.5),
}


@pytest.mark.parametrize("subject", SUBJECTS)
class TestStrategies(StrategyContract):
    @pytest.fixture
    def strategy(self, subject: str) -> Strategy:
        return SUBJECTS[subject]
