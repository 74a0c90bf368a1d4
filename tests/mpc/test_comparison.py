"""Signs of shared numbers, exact over the whole ring."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from three_parties import Trio, whole

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


def test_no_message_of_a_comparison_tells_the_sign() -> None:
    """The last byte of what each party hears, of zeros and of minus ones: chi-squared of 256 kinds, 6 sigma is 391."""
    for word in (0, -1):
        trio = Trio()
        heard: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
        for party in trio.parties:
            listen(party.channel, heard[party.index])
        trio.shares(is_negative, whole([word] * 10_000))
        for words in (words for of_party in heard.values() for words in of_party if words.dtype == torch.int64):
            counts = torch.bincount(words.reshape(-1) & 255, minlength=256).double()
            assert float(((counts - 10_000 / 256) ** 2 / (10_000 / 256)).sum()) < 255 + 6 * (2 * 255) ** 0.5


def listen(channel: object, heard: list[torch.Tensor]) -> None:
    receive = channel.receive  # type: ignore[attr-defined]

    def receiving(sender: int, like: torch.Tensor) -> torch.Tensor:
        words: torch.Tensor = receive(sender, like)
        heard.append(words)
        return words

    channel.receive = receiving  # type: ignore[attr-defined]
