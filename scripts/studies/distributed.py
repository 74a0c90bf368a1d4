"""Distributed differential privacy against a trusted server's noise, at equal epsilon, and its noise against theory.

Forty owners of scikit-learn's digits, all in every round, masked sums. ``distributed`` tolerates no dropout and no
corrupt owner in the first rows, a tenth and a fifth in the second: the owners that are left must then carry the noise.

    .venv/bin/python scripts/studies/distributed.py            # 3 seeds, minutes
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

import fedray
from fedray.bounding import encoding_of, owner_plan
from fedray.privacy.distributed import NoisyIntegers
from fedray.values import Assignment, RoundPlan, Update, Work

OWNERS, ROUNDS, DELTA = 40, 30, 1e-3
N_VALUES = 650
STRICT = {"name": "masked", "corrupt": 0.0, "dropouts": 0.0}
TOLERANT = {"name": "masked", "corrupt": 0.2, "dropouts": 0.1}


def experiment(privacy: dict[str, Any], protection: Any, seed: int) -> fedray.Experiment:
    return fedray.Experiment(
        name="distributed",
        seed=seed,
        rounds=ROUNDS,
        data={"name": "digits", "owners": OWNERS, "split": "iid", "holdout": 0.0, "central_test": 0.2},
        model="logistic",
        train={"epochs": 5, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.5}},
        strategy={"name": "fedavg", "weighting": "uniform"},
        privacy={**privacy, "delta": DELTA, "clip": 1.0},
        protection=protection,
        evaluation={"every": ROUNDS},
    )


def accuracy(settings: fedray.Experiment) -> tuple[float, float]:
    """Final accuracy on the central test set, and the epsilon it cost."""
    with tempfile.TemporaryDirectory() as folder:
        *_, last = fedray.run(settings, Path(folder) / "run", in_process=True)
    assert last.epsilon is not None
    return last.central_metrics["accuracy"], last.epsilon


def kinds(epsilon: float) -> Iterator[tuple[str, dict[str, Any], Any]]:
    yield "central", {"name": "owner", "epsilon": epsilon}, "plain"
    for noise in ("discrete_gaussian", "skellam"):
        yield noise, {"name": "distributed", "epsilon": epsilon, "noise": noise}, STRICT
    yield "discrete_gaussian, 10 % + 20 %", {"name": "distributed", "epsilon": epsilon}, TOLERANT
    yield "local", {"name": "local", "epsilon": epsilon}, "plain"


def summed_noise(encoding: NoisyIntegers, n_owners: int) -> np.ndarray:
    """The sum of owners' vectors of zeros: all that it holds is noise and rounding."""
    update = Update(np.zeros(encoding.n_values, np.float32), 1, 1, True)
    total = np.zeros(encoding.length, dtype=encoding.ring)
    for number in range(n_owners):
        plan = RoundPlan(1, Work(1, "steps"), 0.0, False, "uniform")
        total += encoding.encode(update, Assignment(str(number), plan, plan.work, None), seed=0)
    return encoding.signed(total)[:-1].astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'noise':<32}{'epsilon':>9}{'z':>8}{'bits':>6}{'accuracy':>10}{'sd':>8}")
    for epsilon in (5.0, 10.0):
        for label, privacy, protection in kinds(epsilon):
            settings = [experiment(privacy, protection, seed) for seed in range(options.seeds)]
            found, spent = zip(*(accuracy(one) for one in settings), strict=True)
            plan = owner_plan(settings[0], N_VALUES)
            bits = np.dtype(encoding_of(settings[0], N_VALUES).ring).itemsize * 8 if plan.n_honest else 0
            print(
                f"{label:<32}{max(spent):>9.3f}{plan.noise_multiplier:>8.3f}{bits or '-':>6}"
                f"{np.mean(found):>10.4f}{np.std(found, ddof=1):>8.4f}",
                flush=True,
            )
    print(
        "\nsummed noise of 40 owners, 65,536 coordinates: variance in squared steps, and the chance of one so far off"
    )
    for noise in ("discrete_gaussian", "skellam"):
        settings = experiment({"name": "distributed", "epsilon": 5.0, "noise": noise}, STRICT, 0)
        encoding = encoding_of(settings, 65_536)
        values, expected = summed_noise(encoding, OWNERS), OWNERS * encoding.noise.table.variance
        statistic = float((values**2).sum() / expected)
        chance = 2 * min(chi2.cdf(statistic, len(values)), chi2.sf(statistic, len(values)))
        print(f"{noise:<32}{np.mean(values**2):>12.1f} against {expected:.1f}, p = {chance:.2f}")


if __name__ == "__main__":
    main()
