"""What is learned: labels of the label holder as targets, and which loss and figures go with them.

Numbers with a fraction (floating point) are regressed. Everything else names classes: two of them take one output and
binary cross-entropy, more take an output each and cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.errors import DataError, ModelError
from fedray.tasks.losses import LOSSES, METRICS, NamedLoss
from fedray.vertical.attacks import auc
from fedray.vertical.tables import Table

Kind = Literal["binary_cross_entropy", "cross_entropy", "mse"]


@dataclass(frozen=True)
class Labels:
    """Targets of all rows of the label holder.

    Attributes:
        kind: the loss.
        targets: class numbers, int64, or float32 numbers; shape ``(n_rows,)``.
        n_classes: how many; None for numbers.
    """

    kind: Kind
    targets: Tensor = field(repr=False)
    n_classes: int | None

    @property
    def n_outputs(self) -> int:
        """Outputs of the top model."""
        return self.n_classes if self.n_classes and self.n_classes > 2 else 1

    @property
    def loss(self) -> NamedLoss:
        """Mean over a batch."""
        return LOSSES[self.kind]

    def check(self, outputs: Tensor, n_rows: int) -> None:
        """Refuse a top model whose outputs are not of these labels.

        Raises:
            ModelError: another shape.
        """
        shapes = [(n_rows, self.n_outputs)] + ([(n_rows,)] if self.n_outputs == 1 else [])
        if tuple(outputs.shape) not in shapes:
            what = f"{self.n_classes} classes" if self.n_classes else "numbers"
            raise ModelError(
                f"a top model with outputs of shape {tuple(outputs.shape[1:])} for labels that are {what}",
                f"{self.n_outputs} output{'s' if self.n_outputs > 1 else ''}",
                "correct the top model, or the labels: floating-point numbers are regressed, all else are classes",
            )

    def predictions(self, outputs: Tensor) -> NDArray[np.float32]:
        """Probability of the second of two classes ``(n,)``, of each class ``(n, n_classes)``, or numbers ``(n,)``."""
        if self.kind == "cross_entropy":
            return _array(outputs.softmax(-1))
        flat = outputs.reshape(len(outputs))
        return _array(flat.sigmoid() if self.kind == "binary_cross_entropy" else flat)

    def figures(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Loss, accuracy where there are classes, and AUC where there are two; empty for no rows."""
        if not len(targets):
            return {}
        found = {"loss": float(self.loss(outputs, targets))}
        if self.kind != "mse":
            metric = "accuracy" if self.kind == "cross_entropy" else "binary_accuracy"
            found["accuracy"] = float(METRICS[metric](outputs, targets).mean())
        if self.kind == "binary_cross_entropy":
            found["auc"] = auc(_array(outputs.reshape(len(outputs))), targets.numpy())
        return found


def labels_of(table: Table, target: str | None, besides: str | None = None) -> Labels:
    """The labels in a table.

    Args:
        table: the label holder's.
        target: name of the label's column; the only one when left out.
        besides: a column that is no label.

    Raises:
        DataError: the column is missing, or holds no labels.
    """
    names = [name for name in table.columns if name != besides]
    if target is None and len(names) == 1:
        (target,) = names
    if target not in names:
        raise DataError(
            f"labels with the columns {', '.join(names) or 'none'} besides the id",
            f"a column {target!r}" if target else "one column besides the id",
            "name the label's column in target",
        )
    return _labels(target, table.columns[target])


def _labels(target: str, values: NDArray[Any]) -> Labels:
    if values.ndim != 1 or values.dtype.kind not in "fiubUSO":
        raise DataError(f"a label {target!r} of {values.dtype} with {values.ndim} axes", "one value a row", "encode it")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(f"a label {target!r} that is missing somewhere", "a label in every row", "leave rows out")
        return Labels("mse", torch.from_numpy(values.astype(np.float32)), None)
    try:
        classes, numbers = np.unique(values, return_inverse=True)
    except TypeError:
        raise DataError(f"a label {target!r} of several types", "one type", "encode it") from None
    if len(classes) < 2:
        raise DataError(f"a label {target!r} with one class", "two or more", "check the column")
    kind: Kind = "binary_cross_entropy" if len(classes) == 2 else "cross_entropy"
    return Labels(kind, torch.from_numpy(numbers.astype(np.int64)), len(classes))


def _array(values: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().numpy()
    return found
