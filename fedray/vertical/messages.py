"""What the label holder and a feature owner say to each other; all of it is bytes on the wire.

The label holder asks, a feature owner answers. Feature owners never talk to each other: their public keys, signed,
come by way of the label holder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from fedray.protection.wire import Key, Message, Name, Names, Run, Signature

Ask = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
"""Send each owner a message, all at once, and wait for all answers."""

Part = Literal["train", "holdout"]
"""Which of the common rows."""
Purpose = Literal["step", "train", "holdout"]
"""What an embedding is for: a step of training, which a gradient follows, or predictions of a part."""

_Number = Annotated[int, Meta(ge=0, le=2**62)]
_LARGE = 2**31 - 1


class Introduction(Message, frozen=True):
    """A party's public key for this session, signed by its identity."""

    name: Name
    public: Key
    identity: Key
    signature: Signature


class Hello(Message, frozen=True):
    """Label holder to owner: who it is, which run this is, and who takes part."""

    run: Run
    introduction: Introduction
    owners: Names


class Peers(Message, frozen=True):
    """Label holder to owner: what the owners have said of themselves."""

    introductions: list[Introduction]


class Done(Message, frozen=True):
    """Owner to label holder: it did what it was asked."""


class Intersect(Message, frozen=True):
    """Label holder to owner: its request for their private set intersection."""

    request: bytes
    max_bytes: ClassVar[int] = _LARGE


class Count(Message, frozen=True):
    """Label holder to owner: the same for the number of common ids alone."""

    request: bytes
    max_bytes: ClassVar[int] = _LARGE


class Intersected(Message, frozen=True):
    """Owner to label holder: what it offers of its own set, and its answer."""

    offer: bytes
    answer: bytes
    max_bytes: ClassVar[int] = _LARGE


class Rows(Message, frozen=True):
    """Label holder to owner: the order of the common rows, those to train on first.

    Attributes:
        pointers: 16 bytes a row, under a key of the two; random bytes where the owner lacks the row.
        n_train: rows to train on.
    """

    pointers: bytes
    n_train: _Number
    max_bytes: ClassVar[int] = _LARGE


class Forward(Message, frozen=True):
    """Label holder to owner: the gradient of the last step, and which rows' embeddings are wanted next.

    Attributes:
        number: counts up over all of a session's embeddings; none is ever answered twice.
        purpose: what for.
        epoch: number of the epoch, from 1; 0 outside of training.
        batch: number of the batch in it, from 0.
        batch_size: rows a batch.
        gradient: float32 of the last step's embedding's shape; empty where none is due.
    """

    number: _Number
    purpose: Purpose
    epoch: _Number
    batch: _Number
    batch_size: Annotated[int, Meta(ge=1, le=2**31)]
    gradient: bytes
    max_bytes: ClassVar[int] = _LARGE


class Embedding(Message, frozen=True):
    """Owner to label holder: a batch's embedding, as its fusion has it, shape ``(rows, width)``."""

    values: bytes
    max_bytes: ClassVar[int] = _LARGE


class EndEpoch(Message, frozen=True):
    """Label holder to owner: the gradient of the epoch's last step."""

    gradient: bytes
    max_bytes: ClassVar[int] = _LARGE


class Scores(Message, frozen=True):
    """Owner to label holder: how it would rank the epoch's rows by the gradients that it received.

    Attributes:
        norm: float32, a score a row in the order of the epoch.
        cosine: the same by the other attack.
    """

    norm: bytes
    cosine: bytes
    max_bytes: ClassVar[int] = _LARGE
