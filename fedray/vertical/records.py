"""What leaves a vertical run: figures of each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Leak:
    """How well an owner could have told labels from the gradients that it received: AUC, a half for a guess.

    Attributes:
        norm: by the length of a row's gradient.
        cosine: by its direction, knowing one label in a batch.
    """

    norm: float
    cosine: float


@dataclass(frozen=True)
class EpochRecord:
    """One pass over the rows to train on.

    Attributes:
        epoch: its number, from 1.
        loss: mean over the rows, as training saw it.
        holdout: loss, accuracy and AUC on held-out rows, those that apply; empty without such rows.
        leaks: owner's name to what its gradients leaked; empty where labels are not two classes.
        seconds: of wall time, by what they were spent on.
        bytes_sent: to owners.
        bytes_received: from owners.
        n_batches: steps.
    """

    epoch: int
    loss: float
    holdout: Mapping[str, float]
    leaks: Mapping[str, Leak]
    seconds: Mapping[str, float]
    bytes_sent: int
    bytes_received: int
    n_batches: int
