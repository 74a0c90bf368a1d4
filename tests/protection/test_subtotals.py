"""Subtotals are sums modulo the ring, held against Python's integers, and hold no owner that may not add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assignment, plan

from fedray.errors import UpdateRefused
from fedray.protection.fixed_point import WEIGHT_BOUND, FixedPoint
from fedray.protection.plain import PlainCombiner, PlainProtection, PlainSealer
from fedray.protection.subtotals import RingAdder, require_owners
from fedray.protocols import Adder
from fedray.values import Cover, Payload, Sealed, Spent, Subtotal, Update

WIDE = FixedPoint(5, n_owners=6, clip=8.0, precision=1e-5)
NARROW = FixedPoint(5, n_owners=6, clip=1.0, precision=2.0**-11)
OWNERS = ("a", "b", "c", "d", "e", "f")
BOUND = 32
ACCOUNT = Spent(1.5, "PLD", 2.0, 1e-5, "[]")


def sealed(owner: str, payload: Payload) -> Sealed:
    """With something on every line of the cover."""
    terms, proof = sha256(b"terms").digest(), f"{owner} signed".encode()
    return Sealed(owner, 3, 7, False, 0.25, ACCOUNT, terms, proof, payload=payload)


def encoded(fixed_point: FixedPoint, owner: str, weight: int = BOUND) -> Sealed:
    """What a sealer of this ring makes of some update."""
    values = np.random.default_rng(ord(owner)).uniform(-1, 1, fixed_point.n_values).astype(np.float32)
    update, asked = Update(values, weight, 7, True), assignment(plan(round=3), owner, weight_bound=BOUND)
    return sealed(owner, PlainSealer(fixed_point, 1).seal(update, asked, b"")[0])


def by_hand(payloads: Sequence[Payload]) -> list[int]:
    """Python's integers, wrapped around at the end only."""
    size = 2 ** (8 * payloads[0].itemsize)
    return [sum(map(int, column)) % size for column in zip(*payloads, strict=True)]


def taken(adder: Adder) -> Subtotal:
    subtotal = adder.take()
    assert subtotal is not None
    return subtotal


@settings(deadline=None, max_examples=60)
@given(data=st.data(), fixed_point=st.sampled_from([WIDE, NARROW]), n_owners=st.integers(1, 6))
def test_a_subtotal_is_the_sum_modulo_the_ring(data: st.DataObject, fixed_point: FixedPoint, n_owners: int) -> None:
    """Of any vectors of the ring: masked ones are spread over all of it."""
    size = 2 ** (8 * np.dtype(fixed_point.ring).itemsize)
    vectors = st.lists(st.integers(0, size - 1), min_size=fixed_point.length, max_size=fixed_point.length)
    drawn = data.draw(st.lists(vectors, min_size=n_owners, max_size=n_owners))
    payloads = [np.array(one, dtype=fixed_point.ring) for one in drawn]
    before = [payload.copy() for payload in payloads]
    adder = RingAdder(fixed_point, readable=False)
    for owner, payload in zip(OWNERS, payloads, strict=False):
        adder.add(sealed(owner, payload))
    found = taken(adder)
    assert found.payload.dtype == fixed_point.ring
    assert found.payload.tolist() == by_hand(before)
    assert all((one == other).all() for one, other in zip(payloads, before, strict=True)), "updates are left alone"


def test_a_subtotal_carries_every_cover_and_no_payload_but_the_sum() -> None:
    adder, given = RingAdder(WIDE, readable=True), [encoded(WIDE, owner) for owner in "ca"]
    for one in given:
        adder.add(one)
    found = taken(adder)
    assert found.covers == tuple(one.cover for one in given)
    assert [type(cover) for cover in found.covers] == [Cover, Cover]
    assert found.covers[0] == Cover("c", 3, 7, False, 0.25, ACCOUNT, given[0].terms, b"c signed")
    assert not any(hasattr(cover, "payload") for cover in found.covers)


def test_each_subtotal_begins_with_nothing() -> None:
    adder = RingAdder(WIDE, readable=True)
    assert adder.take() is None
    first, second = encoded(WIDE, "a"), encoded(WIDE, "b")
    adder.add(first)
    before = taken(adder)
    adder.add(second)
    after = taken(adder)
    assert [cover.owner for cover in before.covers + after.covers] == ["a", "b"]
    assert (before.payload == first.payload).all(), "what was taken is not added to"
    assert (after.payload == second.payload).all()
    assert adder.take() is None


def _misshapen(payload: Payload) -> list[Any]:
    other = np.uint32 if payload.dtype == np.uint16 else np.uint16
    return [payload[:-1], payload[None], payload.astype(other), payload.astype(np.int64), payload.tolist(), None]


@pytest.mark.parametrize("fixed_point", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("readable", [True, False])
def test_what_is_no_vector_of_the_ring_leaves_the_subtotal_as_it_was(fixed_point: FixedPoint, readable: bool) -> None:
    adder, good = RingAdder(fixed_point, readable=readable), encoded(fixed_point, "a")
    for bad in _misshapen(encoded(fixed_point, "b").payload):
        with pytest.raises(UpdateRefused):
            adder.add(sealed("b", bad))
        assert adder.take() is None
        adder.add(good)
        with pytest.raises(UpdateRefused):
            adder.add(sealed("b", bad))
        found = taken(adder)
        assert (found.payload == good.payload).all()
        assert [cover.owner for cover in found.covers] == ["a"]


def _beyond(fixed_point: FixedPoint) -> list[Payload]:
    """A value of one unit more than an update can have, up and down, and weights of none and of too much."""
    found = [encoded(fixed_point, "b").payload for _ in range(4)]
    found[0][0] = fixed_point.value_bound + 1
    found[1][0] = 2 ** (8 * found[1].itemsize) - fixed_point.value_bound - 1
    found[2][fixed_point.n_values :] = 0
    found[3][fixed_point.n_values :] = [
        WEIGHT_BOUND * 2 >> fixed_point.limb_bits * place & (1 << fixed_point.limb_bits) - 1
        for place in range(fixed_point.n_limbs)
    ]
    return found


@pytest.mark.parametrize("which", range(4), ids=["high", "low", "no weight", "too heavy"])
def test_what_can_be_read_is_held_against_its_bounds_before_it_is_added(which: int) -> None:
    """In a subtotal nobody could any more. Masked updates are spread over the ring, and are none of the adder's."""
    bad, good = _beyond(WIDE)[which], encoded(WIDE, "a")
    adder = RingAdder(WIDE, readable=True)
    adder.add(good)
    with pytest.raises(UpdateRefused):
        adder.add(sealed("b", bad))
    found = taken(adder)
    assert (found.payload == good.payload).all()
    assert found.covers == (good.cover,)
    unread = RingAdder(WIDE, readable=False)
    unread.add(sealed("b", bad))
    assert taken(unread).covers[0].owner == "b"


# Who may add ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "added", "is_taken"),
    [
        ("a", "", True),
        ("abc", "", True),
        ("cb", "a", True),
        ("aa", "", False),
        ("aba", "", False),
        ("ax", "", False),
        ("x", "", False),
        ("ab", "b", False),
        ("b", "b", False),
    ],
)
def test_an_owner_is_in_a_sum_once_if_it_may(names: str, added: str, is_taken: bool) -> None:
    subtotal = Subtotal(encoded(WIDE, "a").payload, tuple(encoded(WIDE, name).cover for name in names))
    refusal = _refusal(lambda: require_owners(subtotal, "abc", added))
    assert (refusal is None) == is_taken


def _refusal(what: Callable[[], object]) -> UpdateRefused | None:
    try:
        what()
    except UpdateRefused as error:
        return error
    return None


def _plain(n_owners: int = 6) -> PlainCombiner:
    fixed_point = replace(WIDE, n_owners=n_owners)
    return PlainProtection(fixed_point, BOUND).combiner(3, OWNERS, lambda messages: {})


def test_a_sum_takes_no_more_updates_in_subtotals_than_it_has_room_for() -> None:
    """Else the ring could wrap around."""
    combiner, adder = _plain(n_owners=3), RingAdder(WIDE, readable=True)
    combiner.add(encoded(WIDE, "a"))
    for owner in "bcd":
        adder.add(encoded(WIDE, owner))
    with pytest.raises(UpdateRefused, match="more updates than a sum holds"):
        combiner.add_subtotal(taken(adder))
    assert combiner.n_added == 1
    adder.add(encoded(WIDE, "b"))
    adder.add(encoded(WIDE, "c"))
    combiner.add_subtotal(taken(adder))
    assert combiner.n_added == 3


@settings(deadline=None, max_examples=60)
@given(places=st.lists(st.integers(0, 3), min_size=6, max_size=6), order=st.permutations(range(1, 4)))
def test_any_division_into_adders_gives_the_bits_of_single_updates(places: list[int], order: Sequence[int]) -> None:
    """Those in place 0 travel by themselves."""
    single = _plain()
    for owner in OWNERS:
        single.add(encoded(WIDE, owner, weight=ord(owner) % 9 + 1))
    adders = [RingAdder(WIDE, readable=True) for _ in range(4)]
    divided = _plain()
    for owner, place in zip(OWNERS, places, strict=True):
        one = encoded(WIDE, owner, weight=ord(owner) % 9 + 1)
        (adders[place] if place else divided).add(one)
    for subtotal in [adders[place].take() for place in order]:
        if subtotal:
            divided.add_subtotal(subtotal)
    assert divided.n_added == 6
    found, expected = divided.open(), single.open()
    assert found.weighted_sum.tobytes() == expected.weighted_sum.tobytes()
    assert found.weight == expected.weight
