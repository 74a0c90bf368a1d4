"""What a round costs on Ray under each protection, against plain protection, with training and without.

10 owners, one million parameters. Owners do not train: they give an update that is ready, at once or after a pause
that stands for training elsewhere (a GPU, another machine). All federations are alive at once and take turns round by
round, so that a machine that changes its speed changes all; ratios are of medians. Keys and zeros for the next round
are made while a round runs, as always; the first round, which nothing was made ahead for, is shown apart.

    .venv/bin/python scripts/bench/protections.py                           # some minutes
    .venv/bin/python scripts/bench/protections.py --only plain masked       # less
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray

import fedray
from fedray.actors.session import RayServer, ray_session
from fedray.environment import environment
from fedray.values import Assignment, Examples, Schema, Shard, Tally, Update, Vector

NARROW = {"clip": 0.25, "precision": 2e-4}
"""Settings under which the sum of ten fits 16 bits."""
PROTECTIONS: dict[str, dict[str, Any]] = {
    "plain": {"name": "plain"},
    "masked": {"name": "masked"},
    "masked, 16 bits": {"name": "masked", **NARROW},
    "bfv": {"name": "bfv"},
    "ckks": {"name": "ckks"},
}


class Ready:
    """A task whose update is there already."""

    def __init__(self, n_values: int, pause_s: float) -> None:
        self._pause_s = pause_s
        self._delta = np.random.default_rng(0).normal(0, 0.01, n_values).astype(np.float32)

    @property
    def n_parameters(self) -> int:
        return len(self._delta)

    def initial(self, seed: int) -> Vector:
        return np.zeros_like(self._delta)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        time.sleep(self._pause_s)
        return Update(self._delta, len(shard.train), 1, True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": float(vector[0])}, 1)


class MakesReady:
    """``task(schema)`` for an experiment."""

    def __init__(self, n_values: int, pause_s: float) -> None:
        self._arguments = n_values, pause_s

    def __call__(self, schema: Schema) -> Ready:
        return Ready(*self._arguments)


def experiment(protection: dict[str, Any], owners: int, values: int, pause_s: float, rounds: int) -> fedray.Experiment:
    return fedray.Experiment(
        rounds=rounds,
        data={"name": "digits", "owners": owners},
        task=MakesReady(values, pause_s),
        protection=protection,
        evaluation={"every": rounds},
        resources={"owner_cpus": 0.01},
    )


def walls(protections: list[str], owners: int, values: int, pause_s: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of each round, the first one first; federations take turns."""
    found: dict[str, list[float]] = {name: [] for name in protections}
    with tempfile.TemporaryDirectory() as folder:
        servers = {
            name: RayServer(
                experiment(PROTECTIONS[name], owners, values, pause_s, repeats + 3), Path(folder) / str(number)
            )
            for number, name in enumerate(protections)
        }
        for _ in range(repeats + 1):
            for name, server in servers.items():
                started = time.perf_counter()
                after = server.advance()
                found[name].append(time.perf_counter() - started)
                assert after is not None
                assert after[1].n_updates == owners, after[1]
                if pause_s == 0:
                    time.sleep(0.5)  # what is made ahead for this federation is not charged to the next
        for server in servers.values():
            server.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(PROTECTIONS), choices=list(PROTECTIONS))
    parser.add_argument("--owners", type=int, default=10)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pauses", type=float, nargs="*", default=[0.0, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/protections.json"))
    asked = parser.parse_args()
    results = {}
    with ray_session():
        for pause_s in asked.pauses:
            found = walls(asked.only, asked.owners, asked.values, pause_s, asked.repeats)
            results[f"{pause_s:g}"] = found
            floor = median(found[asked.only[0]][1:])
            print(f"\n{asked.owners} owners x {asked.values:,} parameters, {pause_s:g} s of training")
            print("protection            first round    round (min - max)      ratio to " + asked.only[0])
            for name, seconds in found.items():
                first, rest = seconds[0], seconds[1:]
                print(
                    f"{name:20s} {first:9.3f} s {median(rest):9.3f} s ({min(rest):.3f} - {max(rest):.3f})"
                    f" {median(rest) / floor:8.2f}",
                    flush=True,
                )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"environment": environment(), "seconds": results}, indent=1))
    ray.shutdown()


if __name__ == "__main__":
    main()
