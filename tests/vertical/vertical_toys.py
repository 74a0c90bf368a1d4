"""Small vertical federations whose every message can be read; imported as ``vertical_toys``."""

from __future__ import annotations

from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedray.protection.wire import Message, decode
from fedray.vertical.aligning import Alignment
from fedray.vertical.fusion import Concat, Fusion
from fedray.vertical.messages import (
    Count,
    Done,
    Embedding,
    EndEpoch,
    Forward,
    Hello,
    Intersect,
    Intersected,
    Introduction,
    Peers,
    Rows,
    Scores,
)
from fedray.vertical.models import BottomMaker, TopMaker, mlp_of, sgd
from fedray.vertical.plans import AlignPlan, FitPlan
from fedray.vertical.session import OpensHolder, OpensOwner
from fedray.vertical.setting import Setting

QUESTIONS = (Hello, Peers, Intersect, Count, Rows, Forward, EndEpoch)
ANSWERS = (Introduction, Done, Intersected, Embedding, Scores)
Columns = dict[str, Any]


def names(n: int) -> list[str]:
    return [f"Person {number:04d}" for number in range(n)]


def table(rows: np.ndarray, **columns: np.ndarray) -> Columns:
    """These people's rows of some columns, under ids that differ in case and space between parties."""
    ids = [names(int(rows.max()) + 1)[row] for row in rows]
    return {"pid": [one.upper() + " " if row % 2 else one for row, one in enumerate(ids)], **columns}


def people(n: int = 120, seed: int = 3, n_classes: int = 2, lacking: int = 0) -> tuple[dict[str, Columns], Columns]:
    """Two owners with 4 and 3 columns and a label that both bear on; each lacks other people, rows in any order."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 7)).astype(np.float32)
    scores = x @ draw.normal(size=(7, n_classes)) + 0.3 * draw.normal(size=(n, n_classes))
    labels = scores.argmax(1)
    owners = {}
    for name, columns in {"bank": slice(0, 4), "shop": slice(4, 7)}.items():
        rows = draw.permutation(n)[: n - lacking]
        owners[name] = table(rows, x=x[rows, columns])
    rows = draw.permutation(n)
    return owners, table(rows, label=labels[rows])


class Talk:
    """All parties in this process, and all that they said.

    Attributes:
        said: (owner, message to it, its answer) in order.
    """

    def __init__(
        self,
        owners: Mapping[str, Columns],
        labels: Columns,
        seed: int = 0,
        folder: Path = Path("nowhere"),
        enrolled: Mapping[str, bytes] | None = None,
        target: str | None = None,
    ) -> None:
        self.setting = Setting("toy", tuple(sorted(owners)), "hospital", "pid", target, seed, enrolled or {}, folder)
        self.owners = {name: OpensOwner(self.setting, name, owners[name])() for name in sorted(owners)}
        self.holder = OpensHolder(self.setting, labels, self.ask)()
        self.said: list[tuple[str, bytes, bytes]] = []

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        answers = {}
        for name, message in messages.items():
            answers[name] = self.owners[name].answer(message)
            self.said.append((name, message, answers[name]))
        return answers

    def aligned(self, plan: AlignPlan | None = None) -> Alignment:
        self.holder.meet()
        return self.holder.align(plan or AlignPlan())

    def prepared(
        self,
        fusion: Fusion | None = None,
        bottom: BottomMaker | None = None,
        top: TopMaker | None = None,
        width: int = 5,
    ) -> None:
        fusion = fusion or Concat()
        widths = {name: owner.prepare(bottom or mlp_of(width, (6,)), fusion) for name, owner in self.owners.items()}
        self.holder.prepare(top or top_of, fusion, widths)

    def begun(self, plan: FitPlan | None = None) -> None:
        plan = plan or FitPlan(batch_size=32, optimizer=sgd(0.5))
        for party in (*self.owners.values(), self.holder):
            methodcaller("begin", plan)(party)

    def heard(self, kind: type[Message]) -> list[tuple[str, Any]]:
        """Messages of one kind, to owners or from them, and which owner."""
        kinds = QUESTIONS if kind in QUESTIONS else ANSWERS
        place = 1 if kind in QUESTIONS else 2
        found = [(one[0], decode(one[place], *kinds)) for one in self.said]
        return [(name, message) for name, message in found if isinstance(message, kind)]


def top_of(width: int, n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, n_outputs))


def ready(fusion: Fusion | None = None, plan: FitPlan | None = None, **options: Any) -> Talk:
    """Parties that have aligned, made models and begun."""
    talk = Talk(*people(**options))
    talk.aligned(AlignPlan("allow"))
    talk.prepared(fusion)
    talk.begun(plan)
    return talk


def values(message: bytes, dtype: str = "<f4") -> np.ndarray:
    return np.frombuffer(message, dtype=dtype)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
