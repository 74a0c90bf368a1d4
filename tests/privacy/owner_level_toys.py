"""A task that pushes where it is told, and experiments over it: what tests of owner-level privacy share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedray import data
from fedray.build import open_federation
from fedray.config import Experiment
from fedray.federation import Federation
from fedray.pools import InProcessCohort
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile
from fedray.values import Assignment, Examples, Schema, Shard, Tally, Update, Vector

N_VALUES = 5

Push = Callable[[str, int], Sequence[float]]


def along(owner: str, round: int) -> Sequence[float]:  # all alike
    return np.eye(N_VALUES)[0].tolist()


class Pushing:
    """A task whose update is told by (owner, round), and whose accuracy is told beforehand.

    Args:
        push: shape ``(N_VALUES,)`` for an owner's name and a round.
        accuracy: of every row.
        weight: of every update.
    """

    n_parameters = N_VALUES

    def __init__(self, push: Push = along, accuracy: float = 0.75, weight: int = 1) -> None:
        self._push = push
        self._accuracy = accuracy
        self._weight = weight
        self.trained: list[tuple[str, int]] = []

    def __call__(self, schema: Schema) -> Pushing:  # stands for its own factory
        return self

    def initial(self, seed: int) -> Vector:
        return np.zeros(N_VALUES, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        self.trained.append((assignment.owner, assignment.plan.round))
        push = np.asarray(self._push(assignment.owner, assignment.plan.round), dtype=np.float32)
        return Update(push, self._weight, n_steps=1, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": 1.0 * len(examples), "accuracy": self._accuracy * len(examples)}, len(examples))


def experiment(privacy: Mapping[str, Any], task: Any = None, *, n_owners: int = 6, **settings: Any) -> Experiment:
    """Owners that count alike, on few rows, with noised figures so that nothing else need tell of the model."""
    return Experiment.model_validate(
        {
            "data": {"name": "synthetic", "owners": n_owners},
            "task": task or Pushing(),
            "strategy": {"name": "fedavg", "weighting": "uniform"},
            "protection": "plain",
            "evaluation": {"noise_multiplier": 50.0},
            "rounds": 3,
            **settings,
            "privacy": {"delta": 1e-3, **privacy},
        }
    )


def names(n_owners: int) -> tuple[str, ...]:
    return data.owner_names(experiment({"name": "owner", "noise_multiplier": 1.0}, n_owners=n_owners).data)


def federation(asked: Experiment, folder: Path) -> Federation:
    """All parts of a run in this process; each owner keeps a ledger in its folder."""
    return open_federation(asked, InProcessCohort, folder)


def ledger(folder: Path, owner: str) -> Ledger:
    """What an owner of such a federation has on its ledger, read anew."""
    return Ledger(LedgerFile(folder / owner / "ledger.jsonl"), owner)
