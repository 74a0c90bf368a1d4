"""A feature owner: its rows, its bottom model and optimizer, and what it answers.

It answers embeddings only: each once, under a number that has to grow. What it records of gradients, to say later how
much of the labels they would have told it, are two scores a row; they leave for the label holder at an epoch's end.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.errors import ConfigError, ProtocolError
from fedray.protection.wire import Message, decode, encode
from fedray.psi import Answerer, CountingAnswerer, order
from fedray.vertical.aligning import all_cores
from fedray.vertical.attacks import cosine_scores, norm_scores
from fedray.vertical.batches import Batches
from fedray.vertical.bottom import Trainer
from fedray.vertical.fusion import Fusion, Sender
from fedray.vertical.keys import Keyring
from fedray.vertical.messages import (
    Count,
    Done,
    Embedding,
    EndEpoch,
    Forward,
    Hello,
    Intersect,
    Intersected,
    Peers,
    Rows,
    Scores,
)
from fedray.vertical.models import BottomMaker
from fedray.vertical.plans import FitPlan
from fedray.vertical.saving import save_module
from fedray.vertical.setting import Setting
from fedray.vertical.tables import Source, open_table


@dataclass(frozen=True)
class Owned:
    """What is told of an owner's table.

    Attributes:
        n_rows: people in it.
        shape: of one row.
    """

    n_rows: int
    shape: tuple[int, ...]


class FeatureOwner:
    """One feature owner of one session.

    Args:
        name: the owner's name.
        setting: what all parties know.
        source: where its table is.

    Raises:
        DataError: the table cannot be read, or does not hold what it should.
        ConfigError: identities are enrolled, and this machine has no key of this owner.
    """

    def __init__(self, name: str, setting: Setting, source: Source) -> None:
        self._name = name
        self._setting = setting
        table = open_table(source, setting.id_column, name)
        self._ids = table.ids
        self._features = table.features()
        self._keyring = Keyring(name, setting.enrolled)
        self._conversation: _Conversation | None = None
        self._common: _Common | None = None
        self._trainer: Trainer | None = None
        self._sender: Sender | None = None
        self._plan = FitPlan()
        self._number = 0
        self._scores: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._noise = np.random.Generator(np.random.Philox(key=secrets.randbits(128)))

    def describe(self) -> Owned:
        """What the caller is told."""
        return Owned(len(self._ids), tuple(self._features.shape[1:]))

    def prepare(self, maker: BottomMaker, fusion: Fusion) -> int:
        """Make the bottom model.

        Returns:
            The width of its embeddings.

        Raises:
            ModelError: it cannot take the owner's rows.
            ProtocolError: owners have not agreed on keys yet.
        """
        self._met()
        self._sender = fusion.sender(self._keyring, self._name, self._setting.owners)
        self._trainer = Trainer.of(maker, self._features, self._setting.seed, self._name)
        return self._trainer.bottom.width

    def begin(self, plan: FitPlan) -> None:
        """Train by this plan from now on; an epoch that was cut off is forgotten.

        Raises:
            ConfigError: the optimizer cannot be made.
        """
        self._plan, self._scores = plan, []
        self._trained().begin(plan.optimizer)

    def save(self, folder: str | Path) -> None:
        """Write the bottom model to ``NAME.safetensors`` in a folder of this node.

        Raises:
            ConfigError: it cannot be written.
        """
        save_module(self._trained().bottom, folder, self._name)

    def answer(self, message: bytes) -> bytes:
        """Answer the label holder.

        Raises:
            ProtocolError: the message is malformed, or asks for what must not be given. Nothing was given.
        """
        asked = decode(message, Forward, EndEpoch, Hello, Peers, Intersect, Count, Rows)
        return encode(self._answered(asked))

    def _answered(self, asked: Message) -> Message:
        match asked:
            case Forward():
                return self._embed(asked)
            case EndEpoch():
                return self._end(asked)
            case Hello():
                return self._greet(asked)
            case Peers():
                return self._meet(asked)
            case Intersect() | Count():
                return self._intersect(asked)
            case Rows():
                return self._align(asked)
        raise AssertionError(asked)

    def _greet(self, asked: Hello) -> Message:
        if self._conversation is not None:
            raise ProtocolError("a second greeting", "one session", "start a new run")
        if (asked.introduction.name, tuple(asked.owners)) != (self._setting.holder, self._setting.owners):
            raise ProtocolError(
                "a greeting by another label holder, or of other owners",
                "those of this run",
                "suspect the label holder",
            )
        self._conversation = _Conversation(asked.run)
        own = self._keyring.introduction(asked.run)
        self._keyring.meet([asked.introduction])
        return own

    def _meet(self, asked: Peers) -> Message:
        self._met()
        if sorted(one.name for one in asked.introductions) != list(self._setting.owners):
            raise ProtocolError("keys of other owners than those of this run", "theirs", "suspect the label holder")
        self._keyring.meet(one for one in asked.introductions if one.name != self._name)
        return Done()

    def _intersect(self, asked: Intersect | Count) -> Message:
        met, kind = self._met(), type(asked).__name__
        if kind in met.intersected:
            raise ProtocolError("a second intersection of one kind", "one a session", "start a new run")
        met.intersected.add(kind)
        half = Answerer if isinstance(asked, Intersect) else CountingAnswerer
        key = self._keyring.key(self._setting.holder, 32, kind)
        with all_cores() as work:
            answerer = half(self._ids, key, **work)
            return Intersected(answerer.offer(), answerer.answer(asked.request))

    def _align(self, asked: Rows) -> Message:
        n_rows, rest = divmod(len(asked.pointers), 16)
        if rest or not 0 < asked.n_train <= n_rows or self._common is not None:
            raise ProtocolError(f"{len(asked.pointers)} bytes of pointers", "an order of rows, once", "start a new run")
        pointers = np.frombuffer(asked.pointers, dtype=np.uint8).reshape(-1, 16)
        rows = order(pointers, self._ids, self._keyring.key(self._setting.holder, 32, "pointers"))
        self._common = _Common(torch.from_numpy(rows), Batches(asked.n_train, n_rows, self._setting.seed))
        return Done()

    def _embed(self, asked: Forward) -> Message:
        trainer, common = self._trained(), self._aligned()
        self._take(asked.gradient)
        if asked.number <= self._number:
            raise ProtocolError(
                f"a request with number {asked.number} after number {self._number}",
                "a higher number: no embedding is given twice",
                "start a new run",
            )
        self._number = asked.number
        rows = common.batch(asked)
        if asked.purpose == "step":
            embedding = trainer.forward(rows, asked.epoch, asked.batch, self._leaving)
        else:
            embedding = trainer.embeddings(rows, self._leaving)
        return Embedding(self._sending().sent(embedding, asked, self._met().run))

    def _end(self, asked: EndEpoch) -> Message:
        self._take(asked.gradient)
        norms, cosines = zip(*self._scores, strict=True) if self._scores else ((), ())
        self._scores = []
        return Scores(b"".join(one.tobytes() for one in norms), b"".join(one.tobytes() for one in cosines))

    def _take(self, gradient: bytes) -> None:
        """Finish the last step, by a gradient of its shape.

        Raises:
            ProtocolError: the gradient is missing, of another shape, or not finite.
        """
        shape = self._trained().awaits
        n_bytes = 4 * shape[0] * shape[1] if shape else 0
        if len(gradient) != n_bytes:
            raise ProtocolError(f"a gradient of {len(gradient)} bytes", f"{n_bytes} bytes", "check the label holder")
        if shape is None:
            return
        values = np.frombuffer(gradient, dtype="<f4").reshape(shape).copy()
        if not np.isfinite(values).all():
            raise ProtocolError("a gradient that is not finite", "finite numbers", "lower the learning rate")
        self._scores.append((norm_scores(values), cosine_scores(values)))
        self._trained().step(values)

    def _leaving(self, embedding: Tensor) -> Tensor:
        activations = self._plan.activations
        return self._sending().bounded(activations.applied(embedding, self._noise) if activations else embedding)

    def _met(self) -> _Conversation:
        if self._conversation is None:
            raise ProtocolError("a message before any greeting", "a greeting first", "call align() first")
        return self._conversation

    def _aligned(self) -> _Common:
        if self._common is None:
            raise ProtocolError("a request for rows before they are aligned", "the order first", "call align() first")
        return self._common

    def _trained(self) -> Trainer:
        if self._trainer is None:
            raise ConfigError(f"no bottom model of {self._name!r}", "a model", "call models() first")
        return self._trainer

    def _sending(self) -> Sender:
        assert self._sender is not None
        return self._sender


@dataclass
class _Conversation:
    """What was said so far."""

    run: bytes = field(repr=False)
    intersected: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Common:
    """The owner's row of each common row, -1 where it has none."""

    rows: Tensor = field(repr=False)
    batches: Batches

    def batch(self, asked: Forward) -> Tensor:
        """The owner's rows that a request is about.

        Raises:
            ProtocolError: there are none.
        """
        positions = self.batches.batch(asked.purpose, asked.epoch, asked.batch, asked.batch_size)
        if not len(positions):
            raise ProtocolError(f"batch {asked.batch}, which has no rows", "a batch of the epoch", "start a new run")
        return self.rows[positions]
