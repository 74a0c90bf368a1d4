"""Products of shares, and truncation.

A product costs one message of a word to the previous party (Araki et al. 2016, Section 2.2). Its parts add up to the
product and hide it, so truncation starts from them. It is that of D. Escudero et al., *Improved Primitives for MPC over
Mixed Arithmetic-Binary Circuits*, CRYPTO 2020, Figure 9, for three parties of which at most one is corrupt: the result
is exact or larger by one unit of the last place, always. ABY3's own (Section 5.1.1) is far off once in 2**(62 - m)
numbers of m bits, which a convolution reaches.

Where this differs from the paper: party 2 plays the dealer of the random word r and never sees the word that is opened,
parties 0 and 1 see it and not r. Party 0's part of what the dealer deals comes from the stream that both draw.

What is opened has uniform last bits c, and the result is rounded up where those of the exact number are beyond c. So
parties 0 and 1 know by which public, random c a result was rounded, and the promise is that of rounding by a public c:
a party that is also told the result knows the number that was truncated to one unit instead of two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedray.mpc.party import Party
from fedray.mpc.randomness import Stream
from fedray.mpc.ring import WORD_BITS, encoded_shortest, shifted
from fedray.mpc.shares import Share

_DEALER = 2
_OFFSET = 1 << (WORD_BITS - 2)
_LOW = (1 << (WORD_BITS - 1)) - 1


def product(party: Party, left: Share, right: Share, bilinear: Callable[[Tensor, Tensor], Tensor]) -> Share:
    """A bilinear function of two shared tensors, with at most the party's fractional bits.

    Args:
        party: whose side this is.
        left: one factor.
        right: the other.
        bilinear: the function, such as ``torch.mul`` or ``torch.matmul``.
    """
    words = bilinear(left.own, right.own + right.next) + bilinear(left.next, right.own)
    return settled(party, words, left.precision + right.precision)


def settled(party: Party, words: Tensor, precision: int) -> Share:
    """Shares of what three parties' words add up to, with at most the party's fractional bits."""
    hidden = words + party.zero(words.shape)
    excess = precision - party.precision
    if excess > 0:
        return _truncated(party, hidden, excess)
    return Share(hidden, party.passed_on(hidden), precision)


def scaled(party: Party, share: Share, factor: Tensor, bilinear: Callable[[Tensor, Tensor], Tensor]) -> Share:
    """A bilinear function of a shared tensor and a public one. It costs messages only if the factor is not whole."""
    words, precision = encoded_shortest(factor, party.precision)
    exact = Share(bilinear(share.own, words), bilinear(share.next, words), share.precision + precision)
    return exact if exact.precision <= party.precision else settled(party, exact.own, exact.precision)


def _truncated(party: Party, hidden: Tensor, n_bits: int) -> Share:
    """Shares of the sum without its last bits, from parts of it that are uniform but for their sum."""
    if party.index == _DEALER:
        return _deal(party, hidden, n_bits)
    return _open(party, hidden, n_bits)


def _parts_of_first(stream: Stream, shape: torch.Size, top: int) -> tuple[Tensor, Tensor]:
    """Party 0's parts of what is dealt: of r without its last bits, and of the bit that is lost when r runs over."""
    return stream.words(shape), stream.words(shape) << top


def _deal(party: Party, hidden: Tensor, n_bits: int) -> Share:
    """The dealer's side: it knows r, which is what party 0 will mask its part with, less the dealer's own part."""
    shape, top = hidden.shape, WORD_BITS - 1 - n_bits
    r = party.with_next.words(shape) - hidden
    low, carry = _parts_of_first(party.with_next, shape, top)
    first = party.with_next.words(shape)
    party.channel.send(1, -((r & _LOW) >> n_bits) - low)
    party.channel.send(1, shifted((shifted(r, WORD_BITS - 1) << top) - carry, top).to(torch.int32))
    return Share(party.with_previous.words(shape), first, party.precision)


def _open(party: Party, hidden: Tensor, n_bits: int) -> Share:
    """Parties 0 and 1: both learn the sum plus r, and exchange parts of the truncated sum that hide it."""
    shape, top = hidden.shape, WORD_BITS - 1 - n_bits
    is_first, peer = party.index == 0, 1 - party.index
    if is_first:
        said = hidden + party.with_previous.words(shape)
        low, carry = _parts_of_first(party.with_previous, shape, top)
        outer = party.with_previous.words(shape)
        party.channel.send(peer, said)
    else:
        said = hidden
        party.channel.send(peer, said)
        low = party.channel.receive(_DEALER, hidden)
        carry = party.channel.receive(_DEALER, torch.empty(shape, dtype=torch.int32)).to(torch.int64) << top
        outer = party.with_next.words(shape)
    opened = said + party.channel.receive(peer, said) + _OFFSET
    is_high = shifted(opened, WORD_BITS - 1)
    part = low + (1 - 2 * is_high) * carry - outer
    party.channel.send(peer, part)
    known = ((opened & _LOW) >> n_bits) + (is_high << top) - (_OFFSET >> n_bits)
    inner = part + party.channel.receive(peer, part) + known
    return Share(outer, inner, party.precision) if is_first else Share(inner, outer, party.precision)
