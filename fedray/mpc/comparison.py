"""The sign of shared numbers, by a binary circuit.

x_0 + x_1, which party 0 knows, and x_2, which the two others know, become bits that are shared by exclusive or
(ABY3, Section 5.3); a tree of carries adds them, 64 bits to 32 to 16, of which only the carry into the sign is kept.
Each level is one AND of words half as wide as the last, in one message. The sign bit becomes a whole number again as
u + v - 2 u v (ABY3, Section 5.4, without its oblivious transfer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.mpc.party import Party
from fedray.mpc.products import product
from fedray.mpc.ring import WORD_BITS, shifted
from fedray.mpc.shares import Share

_LAST = 2
_WIRE = {64: torch.int64, 32: torch.int32, 16: torch.int16, 8: torch.uint8}
_NARROWEST = 8
_EVERY_OTHER = (
    0x5555555555555555,
    0x3333333333333333,
    0x0F0F0F0F0F0F0F0F,
    0x00FF00FF00FF00FF,
    0x0000FFFF0000FFFF,
    0x00000000FFFFFFFF,
)


@dataclass(frozen=True, eq=False)
class Bits:
    """What one party holds of words whose bits are shared by exclusive or; as ``Share``."""

    own: Tensor
    next: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Bits:
        """A function that is linear in bits, which each half goes through alike."""
        return Bits(function(self.own), function(self.next))

    def __xor__(self, other: Bits) -> Bits:
        return Bits(self.own ^ other.own, self.next ^ other.next)


def is_negative(party: Party, share: Share) -> Share:
    """1 where a shared number is negative, 0 elsewhere, as a whole number. Exact."""
    left, right = _of_first(party, share), _of_last(party, share)
    propagates, generates = left ^ right, _and(party, left, right, WORD_BITS)
    sign = propagates.map(lambda words: shifted(words, WORD_BITS - 1))
    carry = _carry_out(party, generates.map(lambda words: words << 1), propagates.map(lambda words: words << 1))
    return _as_number(party, sign ^ carry)


def _of_first(party: Party, share: Share) -> Bits:
    """Bits of x_0 + x_1, which party 0 knows."""
    return Bits(*_given_by_first(party, share.own + share.next, torch.bitwise_xor))


def _given_by_first(party: Party, words: Tensor, hide: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Both halves of what party 0 knows: it gives party 1 the words, hidden by what it draws with party 2."""
    if party.index == 0:
        noise = party.with_previous.words(words.shape)
        hidden = hide(words, noise)
        party.channel.send(1, hidden)
        return noise, hidden
    if party.index == 1:
        return party.channel.receive(0, words), torch.zeros_like(words)
    return torch.zeros_like(words), party.with_next.words(words.shape)


def _of_last(party: Party, share: Share) -> Bits:
    """Bits of x_2, which two parties hold."""
    held = party.held(share.own if party.index == _LAST else share.next, _LAST, 0)
    return Bits(held.own, held.next)


def _and(party: Party, left: Bits, right: Bits, width: int) -> Bits:
    """The AND of words of which only the last bits, so many as the width, count."""
    wire = _WIRE[max(width, _NARROWEST)]
    words = (left.own & (right.own ^ right.next)) ^ (left.next & right.own)
    own = words.to(wire) ^ party.zero_bits(words.shape, wire)
    return Bits(own, party.passed_on(own)).map(lambda half: half.to(torch.int64))


def _carry_out(party: Party, generates: Bits, propagates: Bits) -> Bits:
    """The carry out of 64 places, by a tree of neighbours: the lower one's carry goes on where the higher lets it."""
    width = WORD_BITS
    while width > 1:
        width //= 2
        below, above = _halves(generates, width), _halves(generates.map(_above), width)
        lets_below, lets_above = _halves(propagates, width), _halves(propagates.map(_above), width)
        joined = _and(party, _packed(lets_above, lets_above, width), _packed(below, lets_below, width), 2 * width)
        generates, propagates = above ^ _places(joined, 0, width), _places(joined, width, width)
    return generates


def _above(words: Tensor) -> Tensor:
    return shifted(words, 1)


def _halves(bits: Bits, width: int) -> Bits:
    return bits.map(lambda words: _every_other(words, width))


def _every_other(words: Tensor, width: int) -> Tensor:
    """The bits at even places, close together: so many as the width."""
    kept = words & _EVERY_OTHER[0]
    for level in range(1, width.bit_length()):
        kept = (kept | shifted(kept, 1 << (level - 1))) & _EVERY_OTHER[level]
    return kept


def _packed(low: Bits, high: Bits, width: int) -> Bits:
    return low ^ high.map(lambda words: words << width)


def _places(bits: Bits, first: int, width: int) -> Bits:
    return bits.map(lambda words: shifted(words, first) & ((1 << width) - 1))


def _as_number(party: Party, bit: Bits) -> Share:
    """A shared bit as a shared whole number: what party 0 knows of it, and what the two others know."""
    left = Share(*_given_by_first(party, (bit.own ^ bit.next) & 1, torch.sub), 0)
    right = _last_part(party, bit)
    both = product(party, left, right, torch.mul)
    return left + right - both.map(lambda words: 2 * words)


def _last_part(party: Party, bit: Bits) -> Share:
    return party.held((bit.own if party.index == _LAST else bit.next) & 1, _LAST, 0)
