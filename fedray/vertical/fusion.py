"""How the top model gets the owners' embeddings: side by side, or only their sum.

``masked_sum`` adds fixed-point numbers in the ring of 32-bit integers under pairwise masks (Bonawitz et al., "Practical
Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, section 4.0.1). Deviations: no self masks and no
recovery of dropouts, since a batch that lacks an owner ends the run; and rounding is to the nearest, not stochastic.
A pair's mask is derived from the pair's secret of this session, the number of the embedding and what it is for. An
owner answers each number once, so that no mask is ever used twice, and owners that were asked for different batches
under one number do not cancel. Which rows are in a batch follows from the order that the label holder has told each
owner, and is not bound: a label holder that lies about it, or about gradients, can learn an owner's embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.errors import ConfigError, ModelError, ProtocolError
from fedray.protection.fixed_point import PIECE
from fedray.protection.masked.masks import Mask, scratch
from fedray.protection.wire import canonical
from fedray.vertical.keys import Keyring
from fedray.vertical.messages import Forward

_RING_BITS = 32


@dataclass(frozen=True)
class Fused:
    """A batch's embeddings as the top model sees them.

    Attributes:
        value: shape ``(n, fused_width)``.
        leaves: owner's name to what its gradient is taken of, shape ``(n, width)``.
    """

    value: Tensor
    leaves: Mapping[str, Tensor]

    def gradients(self, leaving: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> dict[str, bytes]:
        """Each owner's gradient as it is told, float32 of shape ``(n, width)``, once the loss was differentiated.

        Args:
            leaving: what is done to gradients first; once for owners that are told the same.
        """
        leaves = {id(leaf): leaf for leaf in self.leaves.values()}
        told = {key: leaving(_array(leaf.grad)).tobytes() for key, leaf in leaves.items() if leaf.grad is not None}
        return {name: told[id(leaf)] for name, leaf in self.leaves.items()}


class Sender(Protocol):
    """An owner's half of a fusion."""

    def bounded(self, embedding: Tensor) -> Tensor:
        """What of an embedding can be sent; gradients pass."""

    def sent(self, embedding: Tensor, request: Forward, run: bytes) -> bytes:
        """The message of a bounded embedding, shape ``(n, width)``.

        Raises:
            ProtocolError: it is masked and not finite, which nobody could tell of the sum.
        """


class Fusion(Protocol):
    """A fusion, public and the same for everyone."""

    def check(self, widths: Mapping[str, int]) -> int:
        """Width of what the top model gets.

        Raises:
            ConfigError: the fusion is not for so few owners.
            ModelError: embeddings do not fit each other.
        """

    def sender(self, keyring: Keyring, name: str, owners: tuple[str, ...]) -> Sender:
        """One owner's half.

        Raises:
            ProtocolError: it shares no key with another owner yet.
        """

    def fused(self, messages: Mapping[str, bytes], n: int, widths: Mapping[str, int]) -> Fused:
        """The label holder's half.

        Raises:
            ProtocolError: a message is malformed.
        """


@dataclass(frozen=True)
class Concat:
    """Embeddings side by side, in the order of owners' names: the label holder sees each of them."""

    name: Literal["concat"] = "concat"

    def check(self, widths: Mapping[str, int]) -> int:
        return sum(widths.values())

    def sender(self, keyring: Keyring, name: str, owners: tuple[str, ...]) -> Sender:  # noqa: ARG002  # see the protocol
        return _Plain()

    def fused(self, messages: Mapping[str, bytes], n: int, widths: Mapping[str, int]) -> Fused:
        leaves = {name: _leaf(_floats(messages[name], name, n, widths[name])) for name in sorted(widths)}
        return Fused(torch.cat(list(leaves.values()), dim=1), leaves)


@dataclass(frozen=True)
class MaskedSum:
    """The sum of embeddings and nothing else; the label holder sees no owner's own.

    Args:
        clip: largest absolute value of an embedding, as a float32; what is beyond is clipped, and passes no gradient.

    Raises:
        ConfigError: the clip is not a positive number.
    """

    clip: float = 16.0
    name: Literal["masked_sum"] = "masked_sum"

    def __post_init__(self) -> None:
        if not 2.0**-20 < self.clip < 2.0**20:
            raise ConfigError(f"a clip of {self.clip}", "a number between 2^-20 and 2^20", "leave it out: it is 16")

    def check(self, widths: Mapping[str, int]) -> int:
        if len(widths) < 2:
            raise ConfigError(
                "masked_sum with one feature owner",
                "two or more: the sum of one embedding is that embedding, and nothing would hide it",
                "take concat, and read what it shows in docs/vertical.md",
            )
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{name} {width}" for name, width in sorted(widths.items()))
            raise ModelError(
                f"embeddings of different widths under masked_sum: {found}",
                "the same width at every owner",
                "change the bottom models' last layers, or take concat",
            )
        return next(iter(widths.values()))

    @property
    def largest(self) -> float:
        """The clip as embeddings can have it."""
        return float(np.float32(self.clip))

    def step(self, n_owners: int) -> float:
        """Value of one unit: the smallest power of two with which no sum of ``n_owners`` leaves the signed ring."""
        return math.ldexp(1.0, math.ceil(math.log2(n_owners * self.largest)) - (_RING_BITS - 2))

    def sender(self, keyring: Keyring, name: str, owners: tuple[str, ...]) -> Sender:
        secrets = {peer: keyring.secret(peer) for peer in owners if peer != name}
        return _Masking(self.largest, self.step(len(owners)), name, secrets)

    def fused(self, messages: Mapping[str, bytes], n: int, widths: Mapping[str, int]) -> Fused:
        width = next(iter(widths.values()))
        total = np.zeros(n * width, dtype=np.uint32)
        for name in sorted(widths):
            total += _units(messages[name], name, n, width)
        signed = total.view(np.int32)
        bound = len(widths) * math.ceil(self.largest / self.step(len(widths)))
        if max(int(signed.max(initial=0)), -int(signed.min(initial=0))) > bound:
            raise ProtocolError(
                "a sum of embeddings beyond its bound",
                "masks that cancel, and embeddings within the clip",
                "run the same fedray version at every owner; if they do, one of them lies",
            )
        leaf = _leaf((signed * self.step(len(widths))).astype(np.float32).reshape(n, width))
        return Fused(leaf, dict.fromkeys(sorted(widths), leaf))


@dataclass(frozen=True)
class _Plain:
    def bounded(self, embedding: Tensor) -> Tensor:
        return embedding

    def sent(self, embedding: Tensor, request: Forward, run: bytes) -> bytes:  # noqa: ARG002  # see the protocol
        return _array(embedding).tobytes()


@dataclass(frozen=True)
class _Masking:
    largest: float
    step: float
    name: str
    secrets: Mapping[str, bytes] = field(repr=False)

    def bounded(self, embedding: Tensor) -> Tensor:
        return embedding.clamp(-self.largest, self.largest)

    def sent(self, embedding: Tensor, request: Forward, run: bytes) -> bytes:
        values = _finite(_array(embedding), self.name).astype(np.float64).ravel()
        units = np.rint(values / self.step).astype(np.int64).astype(np.uint32)
        terms = canonical(request.purpose, request.epoch, request.batch, request.batch_size, len(units))
        self._mask(units, [self._pair(peer, request.number, terms, run) for peer in self.secrets])
        return units.tobytes()

    def _pair(self, peer: str, number: int, terms: bytes, run: bytes) -> Mask:
        return Mask.pair(self.secrets[peer], run, number, terms, self.name, peer)

    def _mask(self, units: NDArray[np.uint32], masks: list[Mask]) -> None:
        room = scratch()
        for stream in [mask.stream() for mask in masks]:
            for start in range(0, len(units), PIECE):
                stream.apply(units[start : start + PIECE], room)


def _floats(message: bytes, name: str, n: int, width: int) -> NDArray[np.float32]:
    return _finite(np.frombuffer(_sized(message, name, n, width), dtype="<f4"), name).reshape(n, width)


def _finite(values: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise ProtocolError(f"an embedding of {name!r} that is not finite", "finite numbers", "lower the learning rate")
    return values


def _units(message: bytes, name: str, n: int, width: int) -> NDArray[np.uint32]:
    return np.frombuffer(_sized(message, name, n, width), dtype="<u4")


def _sized(message: bytes, name: str, n: int, width: int) -> bytes:
    if len(message) != 4 * n * width:
        raise ProtocolError(
            f"an embedding of {name!r} of {len(message)} bytes",
            f"{4 * n * width} bytes, for {n} rows of {width}",
            f"check {name!r}: its code or its bottom model differs",
        )
    return message


def _leaf(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values.copy()).requires_grad_()


def _array(values: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().numpy()
    return found
