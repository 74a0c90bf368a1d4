"""Vertical learning measured: accuracy against one joint network, what labels leak, and what a batch costs.

    .venv/bin/python scripts/studies/vertical.py accuracy
    .venv/bin/python scripts/studies/vertical.py leakage
    .venv/bin/python scripts/studies/vertical.py time

The joint network is written out with PyTorch alone and trained in one loop, on rows that are joined by id.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor, nn

import fedray
from fedray.vertical import EpochRecord, Isotropic, MaxNorm, NoNoise, adam, head_of, mlp_of, samples
from fedray.vertical.bottom import Bottom
from fedray.vertical.cut import CutNoise
from fedray.vertical.models import head, mlp

WIDTH, BATCH, LR = 32, 64, 3e-3
DIGITS = {"left": samples.digits_left, "right": samples.digits_right}


def digits(
    seed: int, fuse: str, missing: str, epochs: int, *, in_process: bool = True
) -> tuple[list[EpochRecord], frozenset[str]]:
    """One three-party run: its records, and who was held out, as the label holder has it."""
    labels, folder = ("clinic", samples.digits_labels), _folder()
    with fedray.Vertical(DIGITS, labels, "pid", seed=seed, directory=folder / "run", in_process=in_process) as fed:
        fed.align(missing=missing)
        fed.models(dict.fromkeys(DIGITS, mlp_of(WIDTH)), head_of(), fuse)
        records = fed.fit(epochs, BATCH, adam(LR))
        fed.write_predictions(folder / "held_out.csv")
    lines = (folder / "held_out.csv").read_text().splitlines()[1:]
    return records, frozenset(line.partition(",")[0].upper() for line in lines)


def joined(missing: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, list[str]]:
    """Features by owner, each owner's row of each common person (-1 where it has none), labels, and people."""
    tables = {name: source() for name, source in DIGITS.items()}
    row_of = {name: {pid: row for row, pid in enumerate(one["pid"])} for name, one in tables.items()}
    labels = samples.digits_labels()
    enough = all if missing == "drop" else any
    kept = [i for i, pid in enumerate(labels["pid"]) if enough(pid in rows for rows in row_of.values())]
    people = [str(labels["pid"][i]) for i in kept]
    rows = {name: torch.tensor([of.get(pid, -1) for pid in people]) for name, of in row_of.items()}
    features = {name: torch.from_numpy(one["image"]) for name, one in tables.items()}
    return features, rows, torch.from_numpy(labels["digit"][kept]), people


class Joint(nn.Module):
    """Both bottoms and the top in one."""

    def __init__(self, fuse: str) -> None:
        super().__init__()
        self.bottoms = nn.ModuleDict({name: Bottom(mlp(32, WIDTH), (8, 4)) for name in DIGITS})
        self.top = head(WIDTH * (2 if fuse == "concat" else 1), 10)
        self.is_concat = fuse == "concat"

    def forward(self, features: dict[str, Tensor], rows: dict[str, Tensor], batch: Tensor) -> Tensor:
        parts = [bottom(features[name], rows[name][batch]) for name, bottom in self.bottoms.items()]
        outputs: Tensor = self.top(torch.cat(parts, 1) if self.is_concat else parts[0] + parts[1])
        return outputs


def central(
    seed: int, fuse: str, missing: str, epochs: int, held_out: frozenset[str] = frozenset()
) -> tuple[float, list[float]]:
    """Accuracy of the joint network on the same held-out people, and seconds a batch of each epoch."""
    features, rows, labels, people = joined(missing)
    torch.manual_seed(seed)
    is_held_out = torch.tensor([one in held_out for one in people])
    train, test = (is_wanted.nonzero().flatten() for is_wanted in (~is_held_out, is_held_out))
    model, seconds = Joint(fuse), []
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(epochs):
        began = time.monotonic()
        batches = train[torch.randperm(len(train))].split(BATCH)
        for batch in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features, rows, batch), labels[batch]).backward()
            optimizer.step()
        seconds.append((time.monotonic() - began) / len(batches))
    with torch.no_grad():
        is_right = model(features, rows, test).argmax(1) == labels[test]
    return float(is_right.float().mean()) if len(test) else 0.0, seconds


def accuracy(n_seeds: int = 8, epochs: int = 30) -> None:
    print("fusion, missing: held-out accuracy, split | joint, mean over seeds (each seed)")
    for missing in ("drop", "allow"):
        for fuse in ("concat", "masked_sum"):
            split, joint = [], []
            for seed in range(n_seeds):
                records, held_out = digits(seed, fuse, missing, epochs)
                split.append(records[-1].holdout["accuracy"])
                joint.append(central(seed, fuse, missing, epochs, held_out)[0])
            each = ["/".join(f"{one:.3f}" for one in found) for found in (split, joint)]
            print(f"{fuse}, {missing}: {mean(split):.4f} | {mean(joint):.4f}  ({each[0]} | {each[1]})", flush=True)


def leakage(n_seeds: int = 5, epochs: int = 10) -> None:
    print("noise at the cut: norm attack, cosine attack (AUC, mean over epochs and seeds) | AUC of the model")
    for cut in (NoNoise(), MaxNorm(), Isotropic(1.0), Isotropic(3.0)):
        runs = [list(_tumours(seed, cut, epochs)) for seed in range(n_seeds)]
        leaks = [record.leaks["lab"] for records in runs for record in records]
        model = [records[-1].holdout["auc"] for records in runs]
        figures = f"{mean(one.norm for one in leaks):.3f}, {mean(one.cosine for one in leaks):.3f} | {mean(model):.3f}"
        print(f"{cut}: {figures}", flush=True)


def _tumours(seed: int, cut: CutNoise, epochs: int) -> Iterator[EpochRecord]:
    """Two parties: one with all measurements, one with the labels."""
    labels = ("clinic", samples.tumours_labels)
    with fedray.Vertical(
        {"lab": samples.tumours}, labels, "pid", seed=seed, directory=_folder(), in_process=True
    ) as fed:
        fed.align(holdout=0.3)
        fed.models({"lab": mlp_of(WIDTH)}, head_of(), "concat")
        yield from fed.epochs(epochs, BATCH, adam(LR), cut)


def cost(epochs: int = 12) -> None:
    print(f"milliseconds a batch of {BATCH}, median over {epochs} epochs without the first two")
    bare = central(0, "concat", "allow", epochs)[1]
    print(f"joint network in a bare loop: {1000 * median(bare[2:]):.2f}")
    for fuse in ("concat", "masked_sum"):
        for in_process in (True, False):
            records, _ = digits(0, fuse, "allow", epochs, in_process=in_process)
            each = [record.seconds["train"] / record.n_batches for record in records]
            where = "in process" if in_process else "on Ray"
            print(f"{fuse} {where}: {1000 * median(each[2:]):.2f}", flush=True)


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="vertical-study-"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"accuracy": accuracy, "leakage": leakage, "time": cost}[sys.argv[1]]()
