"""A thousand owners under owner-level differential privacy, next to TensorFlow Federated's EMNIST tutorial.

TFF's tutorial (3,383 writers, cohorts of 120 by Poisson sampling, noise multiplier 1.2, 100 rounds, adaptive clip):
0.796 at (2, 1e-5) against 0.805 without privacy. Here: owners of 20 images each, made of scikit-learn's digits by
shifts of a pixel and a little noise, from 80 % of its 1,797 images, five classes an owner at most; accuracy on the
other 20 %, as they are. A cohort of 120 is a larger share of 1,000 owners than of 3,383 and costs more, so that
three settings are
shown: that noise with 1,000 owners, the noise that keeps 1,000 owners to epsilon 2, and that noise with 3,383 owners.

    .venv/bin/python scripts/studies/owner_level.py            # 2 seeds, a quarter of an hour
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import fedray
from fedray.build import make_task
from fedray.tasks.descent import ShuffledDescent
from fedray.values import Examples, Schema, Vector
from fedray.vectors import Layout

PER_OWNER, COHORT, CLASSES = 20, 120, 5
DELTA = 1e-5
SCHEMA = Schema((64,), "float32", (), 10)

OWNER: dict[str, Any] = {"name": "owner", "delta": DELTA, "clip": 0.3, "clipping": {"name": "adaptive", "rate": 0.2}}
SETTINGS: Sequence[tuple[str, int, Any]] = (
    ("no privacy", 1000, "none"),
    ("noise 1.2", 1000, {**OWNER, "noise_multiplier": 1.2}),
    ("epsilon 2", 1000, {**OWNER, "epsilon": 2.0}),
    ("epsilon 2, fixed clip", 1000, {**OWNER, "epsilon": 2.0, "clip": 0.5, "clipping": "fixed"}),
    ("no privacy", 3383, "none"),
    ("noise 1.2", 3383, {**OWNER, "noise_multiplier": 1.2}),
)
"""Label, owners, privacy."""


def shifted(images: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Images of shape ``(n, 8, 8)``, each moved by up to a pixel either way, with noise."""
    moved = [np.roll(image, draw.integers(-1, 2, size=2), axis=(0, 1)) for image in images]
    return np.clip(np.stack(moved) + draw.normal(0, 0.03, images.shape), 0, 1).astype(np.float32)


def write_owners(folder: Path, images: np.ndarray, labels: np.ndarray, n_owners: int) -> None:
    """A shard an owner."""
    draw = np.random.default_rng(0)
    features, targets, names = [], [], []
    for owner in range(n_owners):
        chosen = np.flatnonzero(np.isin(labels, draw.choice(10, CLASSES, replace=False)))
        rows = draw.choice(chosen, PER_OWNER)
        features.append(shifted(images[rows], draw).reshape(-1, 64))
        targets.append(labels[rows])
        names += [f"owner-{owner:04d}"] * PER_OWNER
    fedray.write_shards(folder, (np.concatenate(features), np.concatenate(targets)), target="digit", owner=names)


def experiment(folder: Path, privacy: Any, rounds: int, seed: int, n_owners: int) -> fedray.Experiment:
    return fedray.Experiment(
        name="owner-level",
        seed=seed,
        rounds=rounds,
        data={"name": "tables", "path": folder, "target": "digit", "classes": list(range(10)), "holdout": 0.1},
        model={"name": "mlp", "hidden": [32]},
        train={"epochs": 5, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.2}},
        strategy={"name": "fedavg", "weighting": "uniform", "server_momentum": 0.9, "server_lr": 0.5},
        cohort={"name": "poisson", "rate": COHORT / n_owners},
        privacy=privacy,
        protection={"name": "plain", "precision": 1e-4},
        evaluation={"every": rounds, "noise_multiplier": 12.0},
    )


def final_model(settings: fedray.Experiment) -> tuple[Vector, float | None, str]:
    """The trained model, and the epsilon it cost."""
    with tempfile.TemporaryDirectory() as folder:
        *_, last = fedray.run(settings, Path(folder) / "run", in_process=True)
        vector = Layout(fedray.load_model(settings, Path(folder) / "run")).read()
    return vector, last.epsilon, last.accountant or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    digits = load_digits()
    images, labels = digits.images / 16, digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:359], order[359:]
    examples = Examples(images[test].reshape(-1, 64).astype(np.float32), labels[test])
    print(f"{'setting':<24}{'owners':>8}{'epsilon':>9}{'by':>5}{'accuracy':>10}{'sd':>8}")
    with tempfile.TemporaryDirectory() as root:
        for label, n_owners, privacy in SETTINGS:
            folder = Path(root) / str(n_owners)
            if not folder.exists():
                write_owners(folder, images[train], labels[train], n_owners)
            found, epsilon, accountant = [], None, ""
            for seed in range(options.seeds):
                settings = experiment(folder, privacy, options.rounds, seed, n_owners)
                vector, epsilon, accountant = final_model(settings)
                task = make_task(settings, SCHEMA, ShuffledDescent(1))
                found.append(task.evaluate(vector, examples).means["accuracy"])
            spent = "-" if epsilon is None else f"{epsilon:.3f}"
            line = (
                f"{label:<24}{n_owners:>8}{spent:>9}{accountant:>5}{np.mean(found):>10.4f}{np.std(found, ddof=1):>8.4f}"
            )
            print(line, flush=True)


if __name__ == "__main__":
    main()
