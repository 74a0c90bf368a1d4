"""Products and truncations of shares, against Python's integers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from three_parties import Party, Trio, whole

from fedray.errors import DataError, ProtocolError
from fedray.mpc.products import product, scaled, settled
from fedray.mpc.ring import decoded, encoded, limit
from fedray.mpc.shares import Share, joined, split

WORDS = st.integers(-(2**63), 2**63 - 1)
SAFE = st.integers(-(2**62), 2**62 - 1)


def wrapped(value: int) -> int:
    """An integer modulo 2**64, signed."""
    return (value + 2**63) % 2**64 - 2**63


@given(st.lists(WORDS, min_size=1, max_size=20))
def test_shares_add_up_to_what_was_split(words: list[int]) -> None:
    assert joined(whole(words)).tolist() == words


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20))
def test_products_of_whole_words_are_exact_modulo_the_ring(pairs: list[tuple[int, int]]) -> None:
    left, right = (whole(list(side)) for side in zip(*pairs, strict=True))
    found = Trio().words(partial(product, bilinear=torch.mul), left, right)
    assert found.tolist() == [wrapped(a * b) for a, b in pairs]


@settings(deadline=None, max_examples=40)
@given(st.lists(SAFE, min_size=1, max_size=200), st.integers(1, 20))
def test_truncation_is_exact_or_one_unit_larger_for_every_word_that_fits(words: list[int], n_bits: int) -> None:
    """ABY3's truncation would be far off for words as large as these."""
    found = Trio().words(lambda party, share: settled(party, share.own, 20 + n_bits), whole(words))
    assert set((found - torch.tensor([word >> n_bits for word in words])).tolist()) <= {0, 1}


def test_truncation_rounds_up_as_often_as_the_lost_part_says() -> None:
    """A quarter is lost: one in four results is larger, so that errors do not add up over a training."""
    n = 40_000
    found = Trio().words(lambda party, share: settled(party, share.own, 22), whole([4 * 1000 + 1] * n))
    ups = int((found == 1001).sum())
    assert abs(ups - n / 4) < 6 * (n * 3 / 16) ** 0.5


def test_a_matrix_product_costs_what_its_result_has() -> None:
    trio = Trio()
    left, right = encoded(torch.randn(5, 70), 20), encoded(torch.randn(70, 3), 20)
    shares = trio.shares(partial(product, bilinear=torch.matmul), split(left, 20), split(right, 20))
    plain = decoded(left, 20) @ decoded(right, 20)
    assert torch.allclose(decoded(joined(shares), 20), plain, atol=2e-6, rtol=0)
    assert [party.channel.bytes_sent for party in trio.parties] == [16 * 15, 16 * 15, 12 * 15]
    assert max(party.channel.depth for party in trio.parties) == 2


def test_a_whole_public_factor_costs_nothing_and_another_a_truncation() -> None:
    trio = Trio()
    words = encoded(torch.tensor([1.5, -2.25]), 20)
    doubled = trio.words(lambda party, share: scaled(party, share, torch.tensor(-2), torch.mul), split(words, 20))
    assert decoded(doubled, 20).tolist() == [-3.0, 4.5]
    assert not trio.sent
    tenth = trio.words(lambda party, share: scaled(party, share, torch.tensor(0.1), torch.mul), split(words, 20))
    assert torch.allclose(decoded(tenth, 20), torch.tensor([0.15, -0.225], dtype=torch.float64), atol=4e-6)
    assert trio.sent


def test_a_share_that_was_changed_is_noticed_when_the_result_is_joined() -> None:
    first, second, third = whole([1, 2, 3])
    forged = Share(second.own, second.next + 1, 0)
    with pytest.raises(ProtocolError, match="parties 1 and 2"):
        joined([first, forged, third])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.0**22, -(2.0**22)])
def test_numbers_that_do_not_fit_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="too large"):
        encoded(torch.tensor([0.0, value]), 20)
    assert limit(20) == 2.0**22


def view_of(index: int, secret: int) -> tuple[list[int], Party]:
    """All words that one party sees of ten thousand products with a secret, truncated: its shares and its messages."""
    trio = Trio()
    heard: list[torch.Tensor] = []
    channel = trio.parties[index].channel
    receive = channel.receive

    def receiving(sender: int, like: torch.Tensor) -> torch.Tensor:
        words = receive(sender, like)
        heard.append(words)
        return words

    channel.receive = receiving  # type: ignore[method-assign]
    shared = split(torch.full((10_000,), secret << 20), 20)
    shares = trio.shares(partial(product, bilinear=torch.mul), shared, shared)
    seen = [shared[index].own, shared[index].next, shares[index].own, shares[index].next, *heard]
    return [int(word) for words in seen for word in (words.to(torch.int64) & 255)], trio.parties[index]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("secret", [0, 1, -700])
def test_a_partys_whole_view_is_uniform_whatever_the_secret(index: int, secret: int) -> None:
    """Chi-squared over 10,000 sharings, of the last byte of each word that it sees; 256 kinds: 6 sigma is 391."""
    seen, _ = view_of(index, secret)
    for start in range(0, len(seen), 10_000):
        counts = torch.bincount(torch.tensor(seen[start : start + 10_000]), minlength=256).double()
        statistic = float(((counts - 10_000 / 256) ** 2 / (10_000 / 256)).sum())
        assert statistic < 255 + 6 * (2 * 255) ** 0.5
