"""FedProx's experiment on Synthetic(alpha, beta) (Li et al. 2020, figure 1), over several draws of the data.

30 owners, 10 a round, 20 local epochs, learning rate 0.01, batches of 10, 200 rounds; 0, 50 and 90 % of the cohort are
slow. FedAvg drops slow owners; FedProx uses what they have. Softmax regression is written in numpy, as a task of our
own (five times as fast as the same model through autograd; a test holds the two against each other).

    .venv/bin/python scripts/studies/fedprox_synthetic.py                 # 5 draws; about half an hour on two cores
    .venv/bin/python scripts/studies/fedprox_synthetic.py --draws 1 --rounds 20
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import fedray
from fedray.values import Assignment, Examples, Schema, Shard, Tally, Update, Vector

DATA = ((0.0, 0.0), (1.0, 1.0))
DROPS = (0.0, 0.5, 0.9)
ALGORITHMS: Mapping[str, object] = {
    "FedAvg": "fedavg",
    "FedProx mu=0": {"name": "fedprox", "mu": 0.0},
    "FedProx mu=1": {"name": "fedprox", "mu": 1.0},
}
LR, BATCH, TAIL = 0.01, 10, 10


class SoftmaxRegression:
    """Multinomial logistic regression, its gradient written out; the vector is weights (classes x features), biases."""

    def __init__(self, schema: Schema) -> None:
        assert schema.n_classes is not None
        self._shape = (schema.n_classes, schema.feature_shape[0])

    @property
    def n_parameters(self) -> int:
        return self._shape[0] * (self._shape[1] + 1)

    def initial(self, seed: int) -> Vector:
        torch.manual_seed(seed)
        linear = torch.nn.Linear(self._shape[1], self._shape[0])
        return np.concatenate([linear.weight.detach().numpy().ravel(), linear.bias.detach().numpy()])

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        x, onehot, order = (
            _with_ones(shard.train),
            np.eye(self._shape[0], dtype=np.float32),
            torch.Generator(),
        )
        order.manual_seed(seed)
        start = self._matrix(vector)
        w, mu, n_steps = start.copy(), assignment.plan.proximal_mu, 0
        for _ in range(assignment.work.amount):
            rows = torch.randperm(len(x), generator=order).numpy()
            features, targets = x[rows], onehot[shard.train.targets[rows]]
            for at in range(0, len(x), BATCH):
                batch = features[at : at + BATCH]
                gradient = batch.T @ (_softmax(batch @ w) - targets[at : at + BATCH])
                gradient *= LR / len(batch)
                if mu:
                    gradient += (LR * mu) * (w - start)
                w -= gradient
                n_steps += 1
        delta = np.concatenate([(w - start)[:-1].T.ravel(), (w - start)[-1]])
        return Update(delta, len(x), n_steps, is_complete=not assignment.is_partial)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        probabilities = _softmax(_with_ones(examples) @ self._matrix(vector))
        chosen = probabilities[np.arange(len(examples)), examples.targets]
        right = probabilities.argmax(1) == examples.targets
        return Tally({"loss": float(-np.log(chosen + 1e-12).sum()), "accuracy": float(right.sum())}, len(examples))

    def _matrix(self, vector: Vector) -> NDArray[np.float32]:
        """Shape (features + 1, classes): weights, then biases in the last row."""
        classes, features = self._shape
        weights = vector[: classes * features].reshape(classes, features)
        return np.ascontiguousarray(np.vstack([weights.T, vector[classes * features :]]))


def _with_ones(examples: Examples) -> NDArray[np.float32]:
    return np.hstack([examples.features, np.ones((len(examples), 1), np.float32)]).astype(np.float32)


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    exponentials /= exponentials.sum(1, keepdims=True)
    return exponentials


@dataclass(frozen=True)
class Job:
    """One run: which data, which draw of it, how many slow owners, which algorithm."""

    alpha: float
    beta: float
    draw: int
    drop: float
    algorithm: str
    rounds: int


@dataclass(frozen=True)
class Curve:
    """Test accuracy and training loss a round."""

    accuracy: list[float]
    train_loss: list[float]


def experiment(job: Job) -> fedray.Experiment:
    """The experiment of one run."""
    return fedray.Experiment(
        name="fedprox-synthetic",
        seed=job.draw,
        rounds=job.rounds,
        data={"name": "synthetic", "alpha": job.alpha, "beta": job.beta, "seed": job.draw},
        task=SoftmaxRegression,
        train={"batch_size": BATCH, "epochs": 20},
        strategy=ALGORITHMS[job.algorithm],
        cohort={"name": "fixed", "size": 10},
        stragglers={"fraction": job.drop},
        protection="plain",  # at 90 % FedAvg is left with one owner, whose update no protection could hide
        evaluation={"train": True},
        search={"metric": "accuracy"},
    )


def run(job: Job) -> Curve:
    """Run one job in this process."""
    with tempfile.TemporaryDirectory() as folder:
        records = list(fedray.run(experiment(job), Path(folder) / "run", in_process=True))
    return Curve([r.metrics["accuracy"] for r in records], [r.train_metrics["loss"] for r in records])


def jobs(draws: int, rounds: int) -> list[Job]:
    """All runs; without slow owners FedProx with mu = 0 is FedAvg, so it is left out there."""
    return [
        Job(alpha, beta, draw, drop, algorithm, rounds)
        for alpha, beta in DATA
        for draw in range(draws)
        for drop in DROPS
        for algorithm in ALGORITHMS
        if drop or algorithm != "FedProx mu=0"
    ]


def tail(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation over the last evaluations."""
    return float(np.mean(values[-TAIL:])), float(np.std(values[-TAIL:]))


def table(curves: Mapping[Job, Curve]) -> str:
    """Markdown: a row for data, slow share and algorithm; each draw's accuracy, the mean, the loss's spread."""
    draws = sorted({job.draw for job in curves})
    lines = [
        "| data | slow | algorithm | " + " | ".join(f"draw {draw}" for draw in draws) + " | mean | loss sd (max) |",
        "|---|---|---|" + "---|" * (len(draws) + 2),
    ]
    for alpha, beta in DATA:
        for drop in DROPS:
            for algorithm in ALGORITHMS:
                found = [
                    c
                    for j, c in sorted(curves.items(), key=lambda item: item[0].draw)
                    if _key(j) == (alpha, beta, drop, algorithm)
                ]
                if found:
                    means = [tail(curve.accuracy)[0] for curve in found]
                    spread = max(tail(curve.train_loss)[1] for curve in found)
                    cells = " | ".join(f"{mean:.3f}" for mean in means)
                    lines.append(
                        f"| ({alpha:g},{beta:g}) | {drop:.0%} | {algorithm} | {cells} "
                        f"| {np.mean(means):.3f} | {spread:.3f} |"
                    )
    return "\n".join(lines)


def verdict(curves: Mapping[Job, Curve]) -> dict[str, object]:
    """What the paper claims, held against these runs."""

    def accuracy(alpha: float, drop: float, algorithm: str) -> NDArray[np.float64]:
        name = "FedAvg" if not drop and algorithm == "FedProx mu=0" else algorithm
        found = sorted(
            (j.draw, tail(c.accuracy)[0])
            for j, c in curves.items()
            if (j.alpha, j.drop, j.algorithm) == (alpha, drop, name)
        )
        return np.array([value for _, value in found])

    smooth = max(tail(c.train_loss)[1] for j, c in curves.items() if j.algorithm == "FedProx mu=1")
    above = {
        f"({a:g},{a:g}) {d:.0%}": bool((accuracy(a, d, "FedProx mu=1") > accuracy(a, d, "FedAvg")).all())
        for a, _ in DATA
        for d in DROPS
    }
    order = {f"({a:g},{a:g})": [float(accuracy(a, 0.9, name).mean()) for name in ALGORITHMS] for a, _ in DATA}
    gap = accuracy(1.0, 0.9, "FedProx mu=1") - accuracy(1.0, 0.9, "FedAvg")
    return {
        "largest deviation of mu=1's training loss over the last rounds": smooth,
        "mu=1 above FedAvg at every draw": above,
        "mean accuracy at 90 % slow: FedAvg, mu=0, mu=1": order,
        "gap of mu=1 over FedAvg on (1,1) at 90 % slow, points, by draw": [float(100 * g) for g in gap],
        "mean gap, points": float(100 * gap.mean()),
    }


def plot(curves: Mapping[Job, Curve], path: Path) -> None:
    """Training loss (upper rows) and test accuracy (lower rows): mean over draws, each draw thin."""
    figure = Figure(figsize=(11, 11), layout="constrained")
    axes = figure.subplots(4, len(DROPS), sharex=True)
    colours = {"FedAvg": "#4477aa", "FedProx mu=0": "#ccbb44", "FedProx mu=1": "#aa3377"}
    for i, (alpha, beta) in enumerate(DATA):
        for column, drop in enumerate(DROPS):
            for row, (field, label) in enumerate((("train_loss", "training loss"), ("accuracy", "test accuracy"))):
                panel = axes[2 * i + row][column]
                for algorithm, colour in colours.items():
                    lines = [getattr(c, field) for j, c in curves.items() if _key(j) == (alpha, beta, drop, algorithm)]
                    for line in lines:
                        panel.plot(range(1, len(line) + 1), line, color=colour, alpha=0.15, linewidth=0.7)
                    if lines:
                        mean = np.mean(lines, axis=0)
                        panel.plot(range(1, len(mean) + 1), mean, color=colour, label=algorithm, linewidth=1.6)
                panel.set_title(f"Synthetic({alpha:g},{beta:g}), {drop:.0%} slow", fontsize=10)
                panel.spines[["top", "right"]].set_visible(False)
                if field == "train_loss":
                    panel.set_ylim(0, 3)
                if column == 0:
                    panel.set_ylabel(label)
    axes[0][-1].legend(frameon=False)
    for panel in axes[-1]:
        panel.set_xlabel("round")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _key(job: Job) -> tuple[float, float, float, str]:
    return job.alpha, job.beta, job.drop, job.algorithm


def main() -> None:
    """Run what is missing, then print the table and the verdict and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/fedprox-synthetic"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / f"curves-{options.rounds}.jsonl"
    curves = _stored(store)
    missing = [job for job in jobs(options.draws, options.rounds) if job not in curves]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(options.processes) as pool, store.open("a") as file:
        for job, curve in zip(missing, pool.map(run, missing), strict=True):
            curves[job] = curve
            file.write(json.dumps({"job": asdict(job), "curve": asdict(curve)}) + "\n")
            file.flush()
            print(f"{len(curves)} {job}: {tail(curve.accuracy)[0]:.3f}", file=sys.stderr, flush=True)
    wanted = {job: curves[job] for job in jobs(options.draws, options.rounds)}
    text = table(wanted) + "\n\n" + json.dumps(verdict(wanted), indent=2)
    (options.out / "result.md").write_text(text + "\n")
    plot(wanted, options.out / "fedprox-synthetic.png")
    print(text)


def _stored(path: Path) -> dict[Job, Curve]:
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Job(**line["job"]): Curve(**line["curve"]) for line in lines}


if __name__ == "__main__":
    main()
