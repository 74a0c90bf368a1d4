"""One party's side of every protocol: all three run the same program, each on its own shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.mpc.channel import Channel
from fedray.mpc.randomness import Stream
from fedray.mpc.ring import encoded_shortest
from fedray.mpc.shares import N_PARTIES, Share


@dataclass
class Party:
    """What a party computes with.

    Args:
        index: 0, 1 or 2.
        precision: fractional bits of fixed-point numbers.
        channel: to the two others.
        with_next: draws what the next party draws.
        with_previous: draws what the previous party draws.
    """

    index: int
    precision: int
    channel: Channel
    with_next: Stream
    with_previous: Stream

    @property
    def following(self) -> int:
        return (self.index + 1) % N_PARTIES

    @property
    def preceding(self) -> int:
        return (self.index - 1) % N_PARTIES

    def zero(self, shape: Sequence[int]) -> Tensor:
        """This party's part of three uniform words that add up to zero."""
        return self.with_next.words(shape) - self.with_previous.words(shape)

    def zero_bits(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """This party's part of three uniform words whose exclusive or is zero."""
        return self.with_next.words(shape, dtype) ^ self.with_previous.words(shape, dtype)

    def held(self, words: Tensor, index: int, precision: int) -> Share:
        """The shares in which x_index is the word and the two others are nothing.

        Args:
            words: the word, at the two parties that hold x_index; of the same shape at the third.
            index: which.
            precision: fractional bits.
        """
        nothing = torch.zeros_like(words)
        own = words if self.index == index else nothing
        return Share(own, words if self.following == index else nothing, precision)

    def public(self, value: Tensor) -> Share:
        """Shares of what everybody knows."""
        words, precision = encoded_shortest(value, self.precision)
        return self.held(words, 0, precision)

    def passed_on(self, words: Tensor) -> Tensor:
        """Say words to the previous party; what the next one said."""
        self.channel.send(self.preceding, words)
        return self.channel.receive(self.following, words)
