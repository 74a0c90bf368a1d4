"""Heart disease in four hospitals: FLamby's task (Ogier du Terrail et al. 2022), then our privacy-utility curve on it.

FedAvg and FedProx (mu = 0.01): logistic regression, 15 rounds of 100 local updates, batch 4, SGD 0.001. Local and
pooled training: Adam 0.001, 50 epochs. Seeds 42 to 46. Accuracy per hospital, mean over seeds.

    .venv/bin/python scripts/studies/heart_disease.py --data FOLDER        # of UCI's processed.*.data; minutes
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import fedray
from fedray import data
from fedray.build import make_task
from fedray.config import replaced
from fedray.config.data import HeartDisease
from fedray.data.heart import pooled
from fedray.report.html import write_report
from fedray.tasks.descent import ShuffledDescent
from fedray.tune import compare
from fedray.values import Assignment, RoundPlan, Shard, Tally, Work

SEEDS = (42, 43, 44, 45, 46)
BATCH = 4

PUBLIC_CENTER = (55, 0.5, 130, 220, 0.15, 140, 0.5, 1.0, 0.33, 0.33, 0.33, 0.33, 0.33)
PUBLIC_SCALE = (10, 0.5, 20, 60, 0.5, 25, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5)
"""Round figures for adults seen for chest pain, from common knowledge and not from these rows: age, sex, blood
pressure, cholesterol, fasting sugar, heart rate, angina, ST depression, then the indicators."""


def federated(folder: Path, strategy: object, seed: int) -> fedray.Experiment:
    """FLamby's federated setting."""
    return fedray.Experiment(
        name="heart",
        seed=seed,
        rounds=15,
        data={"name": "heart_disease", "path": folder},
        model="logistic",
        loss="binary_cross_entropy",
        metrics=["binary_accuracy"],
        train={"batch_size": BATCH, "steps": 100, "optimizer": {"name": "sgd", "lr": 0.001}},
        strategy=strategy,
        evaluation={"every": 15},
    )


def by_hospital(experiment: fedray.Experiment) -> dict[str, float]:
    """Final accuracy of each hospital."""
    with tempfile.TemporaryDirectory() as folder:
        *_, last = fedray.run(experiment, Path(folder) / "run", in_process=True)
    return {owner.name: owner.metrics["binary_accuracy"] for owner in last.owners}


def alone(folder: Path, shard: Shard, seed: int) -> dict[str, float]:
    """Accuracy at each hospital of a model trained on one shard: 50 epochs of Adam."""
    section = HeartDisease(path=folder)
    adam = replaced(federated(folder, "fedavg", seed), {"train.optimizer": {"name": "adam", "lr": 0.001}})
    task = make_task(adam, data.schema_of(section), ShuffledDescent(BATCH))
    start = task.initial(seed)
    plan = RoundPlan(1, Work(50, "epochs"), 0.0, accepts_partial_work=False, weighting="examples")
    trained = start + task.train(start, Assignment("all", plan, plan.work, None), shard, seed).delta
    tallies: dict[str, Tally] = {
        name: task.evaluate(trained, data.open_shard(section, name).holdout) for name in data.owner_names(section)
    }
    return {name: tally.means["binary_accuracy"] for name, tally in tallies.items()}


def rows(folder: Path) -> dict[str, list[Mapping[str, float]]]:
    """Method to accuracy per hospital, one mapping a seed."""
    section = HeartDisease(path=folder)
    found: dict[str, list[Mapping[str, float]]] = {
        "FedAvg": [by_hospital(federated(folder, "fedavg", seed)) for seed in SEEDS],
        "FedProx mu=0.01": [by_hospital(federated(folder, {"name": "fedprox", "mu": 0.01}, seed)) for seed in SEEDS],
        "pooled": [alone(folder, pooled(folder), seed) for seed in SEEDS],
    }
    for name in data.owner_names(section):
        found[f"local {name}"] = [alone(folder, data.open_shard(section, name), seed) for seed in SEEDS]
    return found


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: a row a method, mean over seeds per hospital, then the mean over hospitals."""
    hospitals = list(next(iter(found.values()))[0])
    lines = ["| method | " + " | ".join(hospitals) + " | mean |", "|---" * (len(hospitals) + 2) + "|"]
    for method, seeds in found.items():
        means = [float(np.mean([seed[name] for seed in seeds])) for name in hospitals]
        lines.append(f"| {method} | " + " | ".join(f"{mean:.3f}" for mean in means) + f" | {np.mean(means):.3f} |")
    return "\n".join(lines)


def curve(folder: Path, out: Path) -> Path:
    """The privacy-utility curve: features scaled by public constants, DP-SGD over all 15 rounds; by Ray Tune."""
    experiment = fedray.Experiment(
        name="heart-privacy",
        rounds=15,
        data={
            "name": "heart_disease",
            "path": folder,
            "scaling": {"name": "fixed", "center": PUBLIC_CENTER, "scale": PUBLIC_SCALE},
        },
        model={"name": "logistic", "zero_init": True},
        loss="binary_cross_entropy",
        metrics=["binary_accuracy"],
        train={"batch_size": 64, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.2}},
        evaluation={"every": 5},
    )
    space = {
        "strategy": ["fedavg", {"name": "fedprox", "mu": 0.1}],
        "privacy": ["none", *({"name": "example", "epsilon": e, "delta": 1e-3} for e in (0.1, 0.3, 1, 3, 10))],
        "seed": list(SEEDS),
    }
    result = compare(experiment, space, out / "curve")
    return write_report(result.runs, out / "curve.html")


def main() -> None:
    """Print the table; with --curve also run the privacy-utility curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/heart-disease"))
    parser.add_argument("--curve", action="store_true", help="also the privacy-utility curve: 60 trials")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = rows(options.data.absolute())
    (options.out / "accuracy.json").write_text(json.dumps(found, indent=2))
    print(table(found))
    if options.curve:
        print(curve(options.data.absolute(), options.out))


if __name__ == "__main__":
    main()
