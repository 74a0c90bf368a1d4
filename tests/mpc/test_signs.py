"""Signs of shared numbers, exact over the whole ring."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from three_parties import Trio, require_uniform, seen_by, whole

from fedray.mpc.comparison import is_negative

WORDS = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62), 2**32, -(2**32), 255, -256]


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=50))
@example(EDGES)
def test_the_sign_of_every_word_is_exact(words: list[int]) -> None:
    assert Trio().words(is_negative, whole(words)).tolist() == [int(word < 0) for word in words]


def test_signs_of_many_random_numbers_in_ten_rounds() -> None:
    words = torch.randint(-(2**62), 2**62, (5, 400), generator=torch.Generator().manual_seed(1))
    words[0, :200] = torch.arange(-100, 100)
    trio = Trio()
    shares = trio.shares(is_negative, whole(words))
    total = shares[0].own + shares[1].own + shares[2].own
    assert torch.equal(total, (words < 0).long())
    assert [party.channel.bytes_sent for party in trio.parties] == [49 * 2000, 33 * 2000, 33 * 2000]
    assert max(party.channel.depth for party in trio.parties) == 10


@pytest.mark.parametrize("word", [0, -1])
def test_no_message_of_a_comparison_tells_the_sign(word: int) -> None:
    """All bytes of all that each party hears, of 10,000 zeros and of 10,000 minus ones."""
    trio = Trio()
    seen = [seen_by(party) for party in trio.parties]
    trio.shares(is_negative, whole([word] * 10_000))
    for words in (words for each in seen for words in each):
        require_uniform(words, 8 * words.element_size())
