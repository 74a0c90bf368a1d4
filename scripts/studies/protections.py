"""Final accuracy under every protection, on digits and on FedProx's synthetic task: what protection costs in accuracy.

Plain, masked and BFV sums must give the same model to the bit, CKKS the same accuracy within 0.2 points.

    .venv/bin/python scripts/studies/protections.py                  # some minutes, all owners in this process
    .venv/bin/python scripts/studies/protections.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fedray

PROTECTIONS = ("plain", "masked", "bfv", "ckks")
TASKS: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"name": "digits", "owners": 10, "split": {"name": "dirichlet", "alpha": 0.5}},
        "model": {"name": "mlp", "hidden": [32]},
        "train": {"batch_size": 32, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.3}},
        "rounds": 20,
    },
    "synthetic (1,1), FedProx mu=1, half the owners slow": {
        "data": {"name": "synthetic", "alpha": 1.0, "beta": 1.0},
        "model": {"name": "logistic"},
        "train": {"batch_size": 10, "epochs": 20, "optimizer": {"name": "sgd", "lr": 0.01}},
        "strategy": {"name": "fedprox", "mu": 1.0},
        "cohort": {"name": "fixed", "size": 10},
        "stragglers": {"fraction": 0.5},
        "rounds": 20,
    },
}


def outcome(task: dict[str, Any], protection: str) -> dict[str, Any]:
    """The last round of one run, and what all rounds took."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = fedray.Experiment(**task, protection=protection)
        records = list(fedray.run(experiment, Path(folder) / "run", in_process=True))
    return {
        "accuracy": records[-1].metrics["accuracy"],
        "model": records[-1].parameters_sha256[:16],
        "kilobytes up a round": sum(record.bytes_up for record in records) / len(records) / 1e3,
        "seconds a round": sum(record.seconds["total"] for record in records) / len(records),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="fewer rounds than the tasks ask for")
    parser.add_argument("--out", type=Path, default=Path("runs/studies/protections.json"))
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        rounds = asked.rounds or task["rounds"]
        found[name] = {protection: outcome({**task, "rounds": rounds}, protection) for protection in PROTECTIONS}
        print(f"\n{name}, {rounds} rounds")
        print("protection  accuracy  model             kB up a round  s a round")
        for protection, one in found[name].items():
            print(
                f"{protection:10s}  {one['accuracy']:8.4f}  {one['model']}  {one['kilobytes up a round']:13.1f}"
                f"  {one['seconds a round']:9.3f}",
                flush=True,
            )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1))
    sys.exit(not all(map(_is_as_promised, found.values())))


def _is_as_promised(outcomes: dict[str, dict[str, Any]]) -> bool:
    exact = {outcomes[name]["model"] for name in ("plain", "masked", "bfv")}
    gap = abs(outcomes["ckks"]["accuracy"] - outcomes["plain"]["accuracy"])
    return len(exact) == 1 and gap <= 0.002


if __name__ == "__main__":
    main()
