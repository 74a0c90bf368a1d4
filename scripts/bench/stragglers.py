"""One owner of many is a hundred times as slow: seconds a round, and the loss after equal time, by schedule.

    .venv/bin/python scripts/bench/stragglers.py --owners 64 --seconds 60

Owners are real actors that hold a few rows of a linear regression in numpy and sleep while they "train", so that two
processors are enough for all of them. No two owners have the same slope: without the slow one's updates, or with stale
ones, the model is another.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import ray

from fedray.actors.cohort import RayCohort
from fedray.config import Experiment
from fedray.federation import Federation
from fedray.owners import Owner
from fedray.privacy.plain_mean import PlainMean
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.scheduling import rounds_of
from fedray.strategies import FedAvg
from fedray.values import Assignment, Examples, Shard, Tally, Update, Vector, Work

WIDTH, ROWS = 20, 32


class Regression:
    """Least squares by ten full steps of gradient descent, which take so many seconds."""

    n_parameters = WIDTH

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def initial(self, seed: int) -> Vector:  # noqa: ARG002  # always from nothing
        return np.zeros(WIDTH, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:  # noqa: ARG002
        time.sleep(self._seconds)
        rows, slope = shard.train, vector.astype(np.float64)
        for _ in range(10):
            slope -= 0.1 * rows.features.T @ (rows.features @ slope - rows.targets) / len(rows)
        return Update((slope - vector).astype(np.float32), 1, 10, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": float(((examples.features @ vector - examples.targets) ** 2).sum())}, len(examples))


def shard_of(number: int) -> Shard:
    """One owner's rows: the common slope, and a little of its own."""
    draw = np.random.default_rng([1, number])
    slope = np.linspace(-1, 1, WIDTH) + 0.3 * draw.standard_normal(WIDTH)
    features = draw.standard_normal((2 * ROWS, WIDTH)).astype(np.float32)
    targets = (features @ slope + 0.1 * draw.standard_normal(2 * ROWS)).astype(np.float32)
    return Shard(Examples(features[:ROWS], targets[:ROWS]), Examples(features[ROWS:], targets[ROWS:]))


def open_owner(number: int, name: str, seconds: float, encoding: FixedPoint) -> Owner:
    """An owner, in its actor."""
    return Owner(name, shard_of(number), Regression(seconds), PlainSealer(encoding, 0), 0)


def openers(n_owners: int, fast_s: float, encoding: FixedPoint) -> dict[str, Callable[[], Owner]]:
    """All owners; the first is a hundred times as slow."""
    return {
        f"owner-{number:03d}": partial(
            open_owner, number, f"owner-{number:03d}", fast_s * (1 if number else 100), encoding
        )
        for number in range(n_owners)
    }


def ways(n_owners: int, fast_s: float) -> Mapping[str, dict[str, Any]]:
    """What is compared, as settings of an experiment."""
    n, closing = n_owners, {"name": "synchronous", "close_after_s": 10 * fast_s}
    over = {"name": "fixed", "size": round(0.8 * n), "over_select": 0.1}
    return {
        "wait for all": {},
        f"close_after_s: {10 * fast_s:g}": {"schedule": closing},
        f"over_select: 0.1 (size {over['size']})": {"cohort": over},
        f"buffered (size {n // 4})": {"schedule": {"name": "buffered", "size": n // 4}},
        f"buffered (size {n // 2}, at_work {3 * n // 4})": {
            "schedule": {"name": "buffered", "size": n // 2, "at_work": 3 * n // 4}
        },
    }


def federation(cohort: RayCohort, encoding: FixedPoint, test: Examples, settings: dict[str, Any]) -> Federation:
    """A federation of owners that are there already, evaluated by the server alone."""
    data = {"name": "digits", "owners": len(cohort.population)}  # stands for nothing but their number
    experiment = Experiment.model_validate({"rounds": 10**6, "protection": "plain", "data": data, **settings})
    return Federation(
        experiment=experiment,
        task=Regression(),
        strategy=FedAvg(Work(10, "steps"), weighting="uniform"),
        protection=PlainProtection(encoding, 1),
        mechanism=PlainMean(),
        cohort=cohort,
        central_test=test,
        weight_bound=1,
        cohort_seed=0,
        evaluates_owners=False,
    )


def measured(made: Federation, seconds: float) -> dict[str, str]:
    """What a way of running rounds does in so many seconds."""
    began = time.monotonic()
    updates: list[int] = []
    stale: list[int] = []
    losses: list[float] = []
    for _, record in rounds_of(made.experiment)(made, None):
        updates.append(record.n_updates)
        stale += [owner.staleness for owner in record.owners if owner.outcome == "update"]
        losses.append(record.central_metrics["loss"])
        if time.monotonic() - began >= seconds:
            break
    taken = time.monotonic() - began
    return {
        "rounds": f"{len(updates)}",
        "s a round": f"{taken / len(updates):.2f}",
        "updates a round": f"{np.mean(updates):.1f}",
        "updates a second": f"{sum(updates) / taken:.1f}",
        "mean staleness": f"{np.mean(stale):.2f}",
        "loss": f"{losses[-1]:.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="for every way")
    parser.add_argument("--fast", type=float, default=0.1, help="seconds that a fast owner trains")
    given = parser.parse_args()
    encoding = FixedPoint(WIDTH, given.owners, 8.0, 1e-6)
    held_out = [shard_of(number).holdout for number in range(given.owners)]
    test = Examples(
        np.concatenate([one.features for one in held_out]), np.concatenate([one.targets for one in held_out])
    )
    resources = {"owner_cpus": 1 / (2 * given.owners), "start_timeout_s": 900.0}
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=folder)
        cohort = RayCohort(
            openers(given.owners, given.fast, encoding), Experiment(resources=resources), ray.cluster_resources()["CPU"]
        )
        try:
            for way, settings in ways(given.owners, given.fast).items():
                made = federation(cohort, encoding, test, settings)
                print(way, measured(made, given.seconds), flush=True)
                time.sleep(101 * given.fast)  # whoever is late ends in peace
        finally:
            cohort.close()
            ray.shutdown()


if __name__ == "__main__":
    main()
