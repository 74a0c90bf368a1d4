"""The parts of a federation, and what its server carries from round to round. It must not import ray or torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from fedray.config import Experiment
from fedray.protocols import Cohort, Combiner, Mechanism, Protection, State, Strategy, Task
from fedray.spending import Spending, WorstSpent
from fedray.values import Examples, Vector


@dataclass(frozen=True)
class Federation:
    """The parts of a run.

    Attributes:
        experiment: what was asked for.
        task: the server's own copy, for initial values and the central test set.
        strategy: the algorithm.
        protection: the server's half of how updates are summed.
        mechanism: the server's half of owner-level privacy.
        cohort: the owners.
        central_test: the server's own test set, where there is one.
        weight_bound: largest weight of an update.
        cohort_seed: what cohorts are drawn from; a secret where being drawn must stay secret.
        evaluates_owners: whether owners' held-out figures are asked for as they are.
        worst_spent: under differential privacy, the most that an owner can have spent.
    """

    experiment: Experiment
    task: Task
    strategy: Strategy
    protection: Protection
    mechanism: Mechanism
    cohort: Cohort
    central_test: Examples | None
    weight_bound: int
    cohort_seed: int
    evaluates_owners: bool = True
    worst_spent: WorstSpent | None = None

    def combiner(self, round: int, owners: Sequence[str]) -> Combiner:
        """The prepared sum of one round."""
        return self.protection.combiner(round, owners, partial(self.cohort.ask, round))


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round; one serialisable value.

    Attributes:
        round: rounds done.
        vector: the global model, shape ``(n_values,)``.
        strategy: the strategy's arrays.
        mechanism: the arrays of owner-level privacy; under noise that is correlated over rounds they hold past noise,
            and are as secret as the updates.
        spending: what owners have spent.
        barren: rounds in a row in which no owner that was asked gave an update, though not for being slow.
        is_exhausted: whether the last round failed for want of owners with a budget left: the run is over.
        draws: owners that were drawn to train so far, where they are drawn one by one.
    """

    round: int
    vector: Vector
    strategy: State
    mechanism: State
    spending: Spending = field(default_factory=Spending)
    barren: int = 0
    is_exhausted: bool = False
    draws: int = 0
