"""What a party sees, taken together: sums of words that each look random might not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import combinations, product

import pytest
import torch
from three_parties import Party, Trio, seen_by, whole
from torch import Tensor

from fedray.mpc import products
from fedray.mpc.comparison import is_negative
from fedray.mpc.shares import Share

N = 2_000
KINDS = 16


def squared(party: Party, share: Share) -> Share:
    return products.product(party, share, share, torch.mul)


def view(program: Callable[[Party, Share], Share], index: int, word: int) -> list[Tensor]:
    """All that a party has of many runs with one secret: shares before and after, what it heard and what it drew."""
    trio = Trio()
    seen = seen_by(trio.parties[index])
    shared = whole([word] * N, 20)
    after = trio.shares(program, shared)[index]
    return [words.to(torch.int64) for words in (shared[index].own, shared[index].next, after.own, after.next, *seen)]


def sums(seen: list[Tensor]) -> Iterator[Tensor]:
    """Up to three of them, added and subtracted."""
    for n in (1, 2, 3):
        for chosen in combinations(seen, n):
            for signs in product((1, -1), repeat=n - 1):
                yield sum((sign * words for sign, words in zip(signs, chosen[1:], strict=True)), chosen[0])


def exclusive_ors(seen: list[Tensor]) -> Iterator[Tensor]:
    """Up to three of them, by exclusive or."""
    for n in (1, 2, 3):
        for chosen in combinations(seen, n):
            yield reduce(torch.bitwise_xor, chosen)


def differs(left: Tensor, right: Tensor) -> float:
    """Chi-squared of two samples of words, by their last four bits or by their first: the larger."""
    return max(_chi_squared((left >> shift) & 15, (right >> shift) & 15) for shift in (0, 60))


def _chi_squared(left: Tensor, right: Tensor) -> float:
    counts = [torch.bincount(words, minlength=KINDS).double() for words in (left, right)]
    return float(((counts[0] - counts[1]) ** 2 / (counts[0] + counts[1]).clamp(min=1)).sum())


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("program", "combined", "secrets"),
    [(squared, sums, (0, -(700 << 20))), (is_negative, exclusive_ors, (0, -1))],
    ids=["a product", "a sign"],
)
def test_no_three_words_that_a_party_sees_tell_the_secret_together(
    program: Callable[[Party, Share], Share],
    combined: Callable[[list[Tensor]], Iterator[Tensor]],
    secrets: tuple[int, int],
    index: int,
) -> None:
    """A random word that was used twice would fall out of one of these. 16 kinds: beyond 130 once in 10**20."""
    views = (combined(view(program, index, secret)) for secret in secrets)
    assert max(differs(left, right) for left, right in zip(*views, strict=True)) < 130


def test_this_test_sees_a_word_that_is_said_without_a_mask() -> None:
    """Each party passes its second half on, so that the previous one has three shares that add up."""

    def bare(party: Party, share: Share) -> Share:
        return Share(share.next, party.passed_on(share.next), 20)

    views = (sums(view(bare, 0, secret)) for secret in (0, -(700 << 20)))
    assert max(differs(left, right) for left, right in zip(*views, strict=True)) > 1000
