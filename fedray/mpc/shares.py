"""Replicated shares: a word x is x_0 + x_1 + x_2 modulo 2**64, and party i holds x_i and x_(i+1).

Any two parties hold all three; any one holds two numbers that are uniform and independent of x.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.errors import ProtocolError
from fedray.mpc.randomness import KEY_BYTES, Stream

N_PARTIES = 3


@dataclass(frozen=True, eq=False)
class Share:
    """What one party holds of a shared tensor.

    Args:
        own: x_i, int64.
        next: x_(i+1), of the same shape.
        precision: fractional bits of the words; 0 for whole numbers.
    """

    own: Tensor
    next: Tensor
    precision: int

    @property
    def shape(self) -> torch.Size:
        return self.own.shape

    def map(self, function: Callable[[Tensor], Tensor]) -> Share:
        """A linear function of the words, which each half goes through alike."""
        return Share(function(self.own), function(self.next), self.precision)

    def __add__(self, other: Share) -> Share:
        left, right = aligned(self, other)
        return Share(left.own + right.own, left.next + right.next, left.precision)

    def __neg__(self) -> Share:
        return self.map(torch.neg)

    def __sub__(self, other: Share) -> Share:
        return self + -other

    def __repr__(self) -> str:
        return f"Share(shape={tuple(self.shape)}, precision={self.precision})"


def aligned(left: Share, right: Share) -> tuple[Share, Share]:
    """Two shares with the same fractional bits, the larger of theirs."""
    precision = max(left.precision, right.precision)
    return raised(left, precision), raised(right, precision)


def raised(share: Share, precision: int) -> Share:
    """The same numbers with more fractional bits."""
    gap = precision - share.precision
    return share if gap == 0 else Share(share.own << gap, share.next << gap, precision)


def split(words: Tensor, precision: int) -> tuple[Share, Share, Share]:
    """Shares of a tensor, drawn from the operating system's generator."""
    noise = Stream(os.urandom(KEY_BYTES))
    first, second = noise.words(words.shape), noise.words(words.shape)
    third = words - first - second
    return Share(first, second, precision), Share(second, third, precision), Share(third, first, precision)


def joined(shares: Sequence[Share]) -> Tensor:
    """The words of which these are all parties' shares.

    Raises:
        ProtocolError: what two parties hold alike differs.
    """
    for party, share in enumerate(shares):
        following = shares[(party + 1) % N_PARTIES]
        if share.next.shape != following.own.shape or not torch.equal(share.next, following.own):
            raise ProtocolError(
                f"shares of parties {party} and {(party + 1) % N_PARTIES} that do not belong together",
                "the same share wherever two parties hold it",
                "do not use the result; one of the parties computed or sent something else",
            )
    return shares[0].own + shares[1].own + shares[2].own
