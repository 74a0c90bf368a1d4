"""What a round of fedray costs over the same training as a bare PyTorch loop on the same cores.

8 owners x 2,000 images of 28 x 28, a CNN of 200,000 parameters, batch 32, one local epoch, SGD. The floor is the best
of two bare loops: all owners one after the other in one process, and one process a core. One thread each everywhere.
Floor and fedray alternate, so that a machine that changes its speed changes both; ratios are of medians.

    .venv/bin/python scripts/bench/overhead.py            # some minutes; prints and writes runs/bench/overhead.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

import fedray
from fedray import data
from fedray.actors.session import RayServer, ray_session
from fedray.build import make_module
from fedray.environment import environment

LR, BATCH = 0.05, 32


def experiment(folder: Path, rounds: int) -> fedray.Experiment:
    """FedAvg over all owners; evaluation only after the last round, as the floor has none."""
    return fedray.Experiment(
        name="overhead",
        rounds=rounds,
        data={"name": "tables", "path": folder, "classes": list(range(10)), "holdout": 0.0},
        model={"name": "cnn", "channels": [16, 32], "hidden": 128},
        train={"batch_size": BATCH, "epochs": 1, "optimizer": {"name": "sgd", "lr": LR}},
        protection="plain",
        evaluation={"every": rounds},
    )


def write_data(folder: Path, owners: int, rows: int) -> None:
    """Random images and labels: what is learned does not matter here."""
    draw = np.random.default_rng(0)
    images = draw.standard_normal((owners * rows, 1, 28, 28), dtype=np.float32)
    labels = draw.integers(0, 10, owners * rows)
    fedray.write_shards(folder, (images, labels), owners=owners, split="iid")


def bare_epoch(module: nn.Module, start: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> None:
    """One owner's epoch, as one would write it without any framework."""
    module.load_state_dict(start)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    order = torch.randperm(len(x))
    for rows in order.split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()


def bare_worker(config: fedray.Experiment, names: Sequence[str], gate: Any, done: Any) -> None:
    """Train the named owners one after the other, each time the gate opens."""
    torch.set_num_threads(1)
    shards = [data.open_shard(config.data, name).train for name in names]
    tensors = [(torch.from_numpy(shard.features), torch.from_numpy(shard.targets)) for shard in shards]
    module = make_module(config)
    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bare_epoch(module, start, *tensors[0])
    done.put("ready")
    while gate.get():
        for x, y in tensors:
            bare_epoch(module, start, x, y)
        done.put("done")


class Bare:
    """Bare loops in so many processes, ready to be timed."""

    def __init__(self, config: fedray.Experiment, processes: int) -> None:
        names = data.owner_names(config.data)
        context = get_context("spawn")
        self._gates = [context.Queue() for _ in range(processes)]
        self._done = context.Queue()
        self._workers = [
            context.Process(target=bare_worker, args=(config, names[i::processes], gate, self._done))
            for i, gate in enumerate(self._gates)
        ]
        for worker in self._workers:
            worker.start()
        for _ in self._workers:
            self._done.get()

    def round(self) -> float:
        """Seconds that all owners' training takes."""
        started = time.perf_counter()
        for gate in self._gates:
            gate.put(True)
        for _ in self._workers:
            self._done.get()
        return time.perf_counter() - started

    def close(self) -> None:
        """End the processes."""
        for gate, worker in zip(self._gates, self._workers, strict=True):
            gate.put(False)
            worker.join()


def measure(owners: int, rows: int, repeats: int) -> dict[str, Any]:
    """Seconds a round of the two floors and of fedray, alternating."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ray_session():
        write_data(Path(folder) / "data", owners, rows)
        config = experiment(Path(folder) / "data", rounds=repeats + 2)
        started = time.perf_counter()
        server = RayServer(config, Path(folder) / "owners")
        start_up = time.perf_counter() - started
        sequential, parallel = Bare(config, 1), Bare(config, cores)
        first = server.advance()
        assert first is not None
        times: dict[str, list[float]] = {"bare, 1 process": [], f"bare, {cores} processes": [], "fedray": []}
        for _ in range(repeats):
            times["bare, 1 process"].append(sequential.round())
            times[f"bare, {cores} processes"].append(parallel.round())
            started = time.perf_counter()
            assert server.advance() is not None
            times["fedray"].append(time.perf_counter() - started)
        n_parameters = server.vector().size
        for running in (sequential, parallel, server):
            running.close()
    medians = {name: median(values) for name, values in times.items()}
    floor = min(value for name, value in medians.items() if name != "fedray")
    return {
        "owners": owners,
        "rows": rows,
        "parameters": n_parameters,
        "seconds a round, median": medians,
        "all": times,
        "fedray over the best floor": medians["fedray"] / floor,
        "start-up, s": start_up,
        "first round, s": first.seconds["total"],
        "environment": environment() | {"ray": ray.__version__},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--owners", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/overhead.json"))
    options = parser.parse_args()
    result = measure(options.owners, options.rows, options.repeats)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print(json.dumps({key: value for key, value in result.items() if key != "all"}, indent=2))


if __name__ == "__main__":
    main()
