"""The label holder: its labels and top model, and how it drives alignment, training and prediction.

It asks all owners at once, and each once a batch: the gradient of a step goes out with the request for the next
embedding, so that a batch costs one exchange and no owner waits for another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.errors import ConfigError, DataError, ProtocolError
from fedray.psi import Asker, CountingAsker
from fedray.vertical.aligning import Alignment, Common, all_cores, common_rows, order_key, pointers_for
from fedray.vertical.attacks import cosine_leak, norm_leak
from fedray.vertical.batches import Batches
from fedray.vertical.fusion import Fused, Fusion
from fedray.vertical.keys import Keyring
from fedray.vertical.label_privacy import charge, mechanism, randomised
from fedray.vertical.labels import labels_of
from fedray.vertical.line import Line
from fedray.vertical.messages import (
    Ask,
    Count,
    Done,
    Embedding,
    EndEpoch,
    Forward,
    Hello,
    Intersect,
    Intersected,
    Introduction,
    Part,
    Peers,
    Purpose,
    Rows,
    Scores,
)
from fedray.vertical.models import TopMaker
from fedray.vertical.plans import AlignPlan, FitPlan, LabelPrivacy
from fedray.vertical.predictions import write_predictions
from fedray.vertical.records import EpochRecord, Leak
from fedray.vertical.saving import save_module
from fedray.vertical.setting import Setting
from fedray.vertical.tables import Source, open_table
from fedray.vertical.top import Top

_PREDICTED = 4096
"""Rows that are predicted at a time."""


class LabelHolder:
    """The label holder of one session.

    Args:
        setting: what all parties know.
        source: where its table is.
        ask: carries messages to owners.

    Raises:
        DataError: the table cannot be read, or does not hold what it should.
        ConfigError: identities are enrolled, and this machine has no key of this party.
    """

    def __init__(self, setting: Setting, source: Source, ask: Ask) -> None:
        self._setting = setting
        self._name, self._owners, self._seed = setting.holder, setting.owners, setting.seed
        self._table = open_table(source, setting.id_column, setting.holder)
        self._keyring = Keyring(setting.holder, setting.enrolled)
        self._line = Line(ask)
        self._run = os.urandom(16)
        self._plan = FitPlan()
        self._label_dp: LabelPrivacy | None = None
        self._n_epochs = self._number = 0

    def describe(self) -> int:
        """How many people have labels."""
        return len(self._table.ids)

    def meet(self) -> None:
        """Have all parties agree on keys; comes first, and once.

        Raises:
            ProtocolError: an owner is not who it should be.
        """
        own = self._keyring.introduction(self._run)
        hello = Hello(self._run, own, list(self._owners))
        introductions = self._line.ask(dict.fromkeys(self._owners, hello), Introduction)
        for name, one in introductions.items():
            if one.name != name:
                raise ProtocolError(f"an introduction of {one.name!r} by {name!r}", "its own", f"check {name!r}")
        self._keyring.meet(introductions.values())
        self._line.ask(dict.fromkeys(self._owners, Peers(list(introductions.values()))), Done)

    def align(self, plan: AlignPlan) -> Alignment:
        """Find the common rows with every owner, fix their order, and tell it.

        Raises:
            DataError: labels cannot be learned from, or there are too few common rows.
            ProtocolError: an owner answers what it should not.
        """
        column = plan.holdout if isinstance(plan.holdout, str) else None
        self._labels = labels_of(self._table, self._setting.target, column)
        holdout = float(plan.holdout) if column is None else self._is_held_out(column)
        shared = self._intersect()
        key = order_key(self._seed, self._table.ids)
        common = common_rows(shared, self._table.ids, plan.missing, holdout, key)
        self._tell(common, shared)
        n_holdout = len(common.rows) - common.n_train
        n_shared = {name: len(rows) for name, rows in shared.items()}
        return Alignment(common.n_train, n_holdout, common.n_alone, n_shared)

    def count(self) -> dict[str, int]:
        """How many people each owner shares with this party, and not whom; once.

        Raises:
            ProtocolError: an owner answers what it should not.
        """
        ids, kind = self._table.ids, Count.__name__
        with all_cores() as work:
            askers = {name: CountingAsker(ids, self._keyring.key(name, 32, kind), **work) for name in self._owners}
            requests = {name: Count(asker.request()) for name, asker in askers.items()}
            answers = self._line.ask(requests, Intersected)
            return {name: askers[name].count(one.offer, one.answer) for name, one in answers.items()}

    def prepare(self, maker: TopMaker, fusion: Fusion, widths: Mapping[str, int]) -> None:
        """Make the top model.

        Args:
            maker: the model, or what makes it.
            fusion: how it gets embeddings.
            widths: owner's name to the width of its embeddings.

        Raises:
            ConfigError: the fusion is not for so few owners.
            ModelError: models do not fit each other, or the labels.
        """
        self._fusion, self._widths = fusion, dict(widths)
        self._top = Top(maker, fusion.check(widths), self._labels, self._seed)

    def begin(self, plan: FitPlan) -> None:
        """Train by this plan from now on. Private labels are charged and randomised here, once.

        Raises:
            ConfigError: labels are private otherwise than they were before, or the optimizer cannot be made.
            BudgetExhausted: the label holder's ledger does not allow it.
        """
        if self._n_epochs and plan.label_dp != self._label_dp:
            raise ConfigError(
                f"label privacy {plan.label_dp} after training with {self._label_dp}",
                "the same as before",
                "start a new run: what was learned from other labels is in the model",
            )
        self._top.begin(plan)
        if plan.label_dp != self._label_dp:
            self._targets = self._randomised(plan.label_dp) if plan.label_dp else self._truth
        self._plan, self._label_dp = plan, plan.label_dp

    def epoch(self) -> EpochRecord:
        """Train one epoch, then evaluate.

        Raises:
            RunError: an owner is gone, or the loss is no longer finite.
            ProtocolError: an owner answers what it should not.
        """
        self._n_epochs += 1
        sent, received, began = self._line.n_sent, self._line.n_received, time.monotonic()
        loss, gradients = self._train()
        trained = time.monotonic()
        leaks = self._leaks(gradients)
        holdout = self._labels.figures(*self._predicted("holdout"))
        return EpochRecord(
            epoch=self._n_epochs,
            loss=loss,
            holdout=holdout,
            leaks=leaks,
            seconds={"train": trained - began, "evaluate": time.monotonic() - trained},
            bytes_sent=self._line.n_sent - sent,
            bytes_received=self._line.n_received - received,
            n_batches=self._batches.count("step", self._plan.batch_size),
        )

    def predict(self, part: Part) -> NDArray[np.float32]:
        """Predictions in the common order: see ``Labels.predictions``."""
        return self._labels.predictions(self._predicted(part)[0])

    def write_predictions(self, part: Part, file: str | Path) -> None:
        """Write ids and predictions to a CSV or Parquet file on this party's node.

        Raises:
            ConfigError: it cannot be written.
        """
        n_train = self._batches.n_train
        rows = self._rows[:n_train] if part == "train" else self._rows[n_train:]
        write_predictions(Path(file), [self._table.ids[row] for row in rows], self.predict(part))

    def save(self, folder: str | Path) -> None:
        """Write the top model to ``NAME.safetensors`` in a folder of this node.

        Raises:
            ConfigError: it cannot be written.
        """
        save_module(self._top.network, folder, self._name)

    def _is_held_out(self, column: str) -> NDArray[np.bool_]:
        values = self._table.columns.get(column)
        if values is None or values.dtype.kind not in "biu" or not np.isin(values, (0, 1)).all():
            raise DataError(f"no column {column!r} of true and false with the labels", "one", "name it in holdout")
        return values.astype(bool)

    def _intersect(self) -> dict[str, NDArray[np.int64]]:
        """The label holder's rows that each owner has too."""
        ids, kind = self._table.ids, Intersect.__name__
        with all_cores() as work:
            askers = {name: Asker(ids, self._keyring.key(name, 32, kind), **work) for name in self._owners}
            requests = {name: Intersect(asker.request()) for name, asker in askers.items()}
            answers = self._line.ask(requests, Intersected)
            return {name: askers[name].matches(one.offer, one.answer) for name, one in answers.items()}

    def _tell(self, common: Common, shared: Mapping[str, NDArray[np.int64]]) -> None:
        orders = {
            name: pointers_for(common, rows, self._table.ids, self._keyring.key(name, 32, "pointers"))
            for name, rows in shared.items()
        }
        self._line.ask({name: Rows(order, common.n_train) for name, order in orders.items()}, Done)
        self._rows = common.rows
        self._truth = self._labels.targets[torch.from_numpy(common.rows)]
        self._targets = self._truth
        self._batches = Batches(common.n_train, len(common.rows), self._seed)

    def _randomised(self, label_dp: LabelPrivacy) -> Tensor:
        """Targets of which those to train on are randomised, charged to the ledger before."""
        event = mechanism(self._labels, label_dp.epsilon)
        charge(event, self._setting, self._run.hex())
        n_train = self._batches.n_train
        return torch.cat([randomised(self._truth[:n_train], event), self._truth[n_train:]])

    def _train(self) -> tuple[float, Mapping[str, bytes]]:
        """The mean loss, and the gradients that owners still wait for."""
        total, gradients = 0.0, dict.fromkeys(self._owners, b"")
        for batch in range(self._batches.count("step", self._plan.batch_size)):
            positions, fused = self._forward("step", batch, self._plan.batch_size, gradients)
            loss, gradients = self._top.step(fused, self._targets[positions], self._n_epochs, batch)
            total += loss * len(positions)
        return total / self._batches.n_train, gradients

    def _forward(self, purpose: Purpose, batch: int, size: int, gradients: Mapping[str, bytes]) -> tuple[Tensor, Fused]:
        """Positions of a batch, and its embeddings from all owners, each asked once under this number."""
        self._number += 1
        epoch = self._n_epochs if purpose == "step" else 0
        positions = self._batches.batch(purpose, epoch, batch, size)
        requests = {
            name: Forward(self._number, purpose, epoch, batch, size, gradients.get(name, b"")) for name in self._owners
        }
        answers = self._line.ask(requests, Embedding)
        values = {name: one.values for name, one in answers.items()}
        return positions, self._fusion.fused(values, len(positions), self._widths)

    def _predicted(self, part: Part) -> tuple[Tensor, Tensor]:
        """Outputs and true targets of a part."""
        n_batches = self._batches.count(part, _PREDICTED)
        found = [self._top.outputs(self._forward(part, batch, _PREDICTED, {})[1]) for batch in range(n_batches)]
        n_train = self._batches.n_train
        truth = self._truth[:n_train] if part == "train" else self._truth[n_train:]
        return torch.cat(found) if found else torch.zeros(0, self._labels.n_outputs), truth

    def _leaks(self, gradients: Mapping[str, bytes]) -> dict[str, Leak]:
        """End the epoch at the owners, and tell how well the scores that they have found give labels away."""
        endings = {name: EndEpoch(gradients[name]) for name in self._owners}
        scores = self._line.ask(endings, Scores)
        if self._labels.n_classes != 2:
            return {}
        return {name: self._leak(name, one) for name, one in scores.items()}

    def _leak(self, name: str, scores: Scores) -> Leak:
        size = self._plan.batch_size
        order = self._batches.batch("step", self._n_epochs, 0, self._batches.n_train)
        labels = [part.numpy() for part in torch.split(self._truth[order], size)]
        norms, cosines = (_split(one, name, self._batches.n_train, size) for one in (scores.norm, scores.cosine))
        return Leak(norm_leak(zip(norms, labels, strict=True)), cosine_leak(zip(cosines, labels, strict=True)))


def _split(scores: bytes, name: str, n: int, size: int) -> list[NDArray[np.float32]]:
    if len(scores) != 4 * n:
        raise ProtocolError(f"{len(scores)} bytes of scores of {name!r}", f"{4 * n}", f"check {name!r}")
    values = np.frombuffer(scores, dtype="<f4")
    return [values[start : start + size] for start in range(0, n, size)]
