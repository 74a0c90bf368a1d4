"""What a model is worth: on owners' own rows, and on the server's test set. It must not import ray or torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedray.federation import Federation
from fedray.selection import evaluated
from fedray.values import Released, Tally, Vector


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth; empty where it was not evaluated.

    Attributes:
        metrics: federated means.
        train_metrics: the same over training rows.
        central_metrics: the same on the server's own test set.
        tallies: each owner's held-out tally.
        seconds: wall time.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    central_metrics: Mapping[str, float] = field(default_factory=dict)
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    seconds: float = 0.0


def evaluate(federation: Federation, vector: Vector, round: int, released: Released | None) -> Evaluation:
    """What the model after a round is worth, where this is a round after which it is evaluated."""
    if not is_evaluated(federation, round):
        return Evaluation()
    started = time.perf_counter()
    experiment, cohort = federation.experiment, federation.cohort
    owners = evaluated(experiment.evaluation, cohort.population, experiment.seed, round)
    tallies = dict(cohort.evaluate(vector, "holdout", owners)) if federation.evaluates_owners else {}
    train = dict(cohort.evaluate(vector, "train", owners)) if experiment.evaluation.train else {}
    central = federation.central_test
    return Evaluation(
        metrics={**(released.metrics if released else {}), **merged(tallies).means},
        train_metrics=merged(train).means,
        central_metrics=federation.task.evaluate(vector, central).means if central is not None else {},
        tallies=tallies,
        seconds=time.perf_counter() - started,
    )


def is_evaluated(federation: Federation, round: int) -> bool:
    """Whether the model is evaluated after a round: after every so many, and the last."""
    return round % federation.experiment.evaluation.every == 0 or round == federation.experiment.rounds


def merged(tallies: Mapping[str, Tally]) -> Tally:
    """One tally over all owners' examples, added up in the order of their names."""
    sums: dict[str, float] = {}
    count = 0
    for _, tally in sorted(tallies.items()):
        count += tally.count
        for name, value in tally.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return Tally(sums, count)
