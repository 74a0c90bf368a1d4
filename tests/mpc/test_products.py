"""Products and truncations of shares, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from three_parties import Party, Trio, require_uniform, seen_by, whole

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
@example([-(2**62), -1, 0, 2**62 - 1], 26)
@given(st.lists(SAFE, min_size=1, max_size=200), st.integers(1, 26))
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


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("secret", [0, 1, -700])
def test_a_partys_whole_view_is_uniform_whatever_the_secret(index: int, secret: int) -> None:
    """Over 10,000 products with a secret, truncated: all bytes of all words in a party's shares and messages."""
    trio = Trio()
    seen = seen_by(trio.parties[index])
    shared = split(torch.full((10_000,), secret << 20), 20)
    result = trio.shares(partial(product, bilinear=torch.mul), shared, shared)[index]
    for words in (shared[index].own, shared[index].next, result.own, result.next, *seen):
        require_uniform(words, 64 if words.dtype is torch.int64 else 21)
        assert words.dtype is torch.int64 or (words.min() >= 0 and words.max() < 2**21), "20 bits are lost, and a carry"


@pytest.mark.parametrize("value", [2.0**42, -(2.0**42), float("inf"), float("nan")])
def test_a_whole_public_number_that_would_wrap_around_is_refused(value: float) -> None:
    """It has no fractional bits until it meets a number that has."""
    shared = split(encoded(torch.ones(1), 20), 20)
    for program in (lambda party, share: share + party.public(torch.tensor(value)), multiplied_by(value)):
        with pytest.raises(DataError, match="too large"):
            Trio().words(program, shared)
    found = Trio().words(lambda party, share: share + party.public(torch.tensor(2**42 - 2)), shared)
    assert decoded(found, 20).tolist() == [2.0**42 - 1]


def multiplied_by(value: float) -> Callable[[Party, Share], Share]:
    return lambda party, share: scaled(party, share, torch.tensor(value), torch.mul)
