"""A server that lies: what it asks for beyond the protocol it does not get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_toys import (
    MAY_LIE,
    OTHER_RUN,
    RUN,
    VECTOR,
    LyingServer,
    Toy,
    assignment,
    changed,
    fresh_public,
    plan,
    refused,
    require_same,
    signed_keys,
    without_self_masks,
)

from fedray.errors import ProtocolError
from fedray.protection.identity import Identity
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.messages import Alive, Briefing, Delivery, Invite, KeyList, Keys, Reveal
from fedray.protection.wire import encode
from fedray.values import Payload, Update, Work

A, B, C, D, E = ALL = [f"o0{number}" for number in range(5)]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def enrolled(tmp_path: Path) -> Toy:
    return Toy(tmp_path, rules=MAY_LIE, enrolled=True)


# One owner's two secrets


def test_no_owner_gives_both_kinds_of_share_for_one_owner(toy: Toy) -> None:
    toy.gone = {B: "updates", D: "updates"}
    assert toy.require_exact() == [A, C, E]
    assert len(toy.revealed()) == 3
    for _, revealed in toy.revealed():
        assert set(revealed.of_self_masks) == {A, C, E}
        assert set(revealed.of_keys) == {B, D}


def test_a_second_list_of_survivors_is_not_signed(toy: Toy) -> None:
    server = LyingServer(toy).at("signed")
    first = server.sign(A)
    for other in ([A, B, C, D], [A, C, D, E], [A, B, C]):
        with refused("second list"):
            server.sign(A, other)
    assert server.sign(A) == first


def test_shares_are_given_once(toy: Toy) -> None:
    server = LyingServer(toy).at("revealed")
    server.reveal(A)
    for again in (Reveal(RUN, 1, server.signatures), Alive(RUN, 1, ALL), Alive(RUN, 1, [A, B, C])):
        with refused("has closed"):
            server.ask(A, again)


@pytest.mark.parametrize("rules", [Rules(), MAY_LIE])
def test_an_owner_cannot_be_alive_to_some_and_dropped_to_others(rules: Rules, tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=6, rules=rules, enrolled=True)
    f = "o05"
    server = LyingServer(toy).at("signed")
    everyone, others = [*ALL, f], [A, B, C, D, E]
    told = {A: others, B: others, C: others, D: everyone, E: everyone, f: everyone}
    signatures = {name: server.sign(name, alive) for name, alive in told.items()}
    for name in told:
        with refused("3 signatures"):
            server.reveal(name, signatures)


def test_a_split_leaves_one_side_below_the_threshold(toy: Toy) -> None:
    server = LyingServer(toy).at("signed")
    without_e = [A, B, C, D]
    told = {A: without_e, B: without_e, C: without_e, D: ALL, E: ALL}
    signatures = {name: server.sign(name, alive) for name, alive in told.items()}
    given = {name: server.reveal(name, signatures) for name in (A, B, C)}
    assert all(E in one.of_keys and E not in one.of_self_masks for one in given.values())
    for name in (D, E):
        with refused("2 signatures"):
            server.reveal(name, signatures)


def test_lists_for_other_pairwise_masks_are_other_lists(toy: Toy) -> None:
    """Who adds pairwise masks with whom is signed too: a mask that one side added alone would open an update."""
    server = LyingServer(toy).at("updates")
    for name in (A, B, C):
        server.seal(name, [A, B, C, D])
    for name in (D, E):
        server.seal(name, ALL)
    signatures = {name: server.sign(name, [A, B, C, D]) for name in (A, B, C, D)}
    server.reveal(A, signatures)
    with refused("1 signatures"):
        server.reveal(D, signatures)


# Signatures


def _forged(server: LyingServer) -> dict[str, Mapping[str, bytes]]:
    good, stranger = server.signatures, Identity()
    fields = (RUN, 1, ALL, ALL)
    return {
        "none": {},
        "too few": {B: good[B]},
        "its own twice": {A: good[A], B: good[B]},
        "zeros": dict.fromkeys(ALL, bytes(64)),
        "ones": dict.fromkeys(ALL, b"\xff" * 64),
        "of a stranger": dict.fromkeys(ALL, stranger.sign("alive", *fields)),
        "one for all": dict.fromkeys(ALL, good[B]),
        "shifted": dict(zip(ALL, [good[name] for name in (B, C, D, E, A)], strict=True)),
        "by strangers' names": {f"x{name}": signature for name, signature in good.items()},
        "for another purpose": {name: toy_sign(server, name, "keys", *fields) for name in ALL},
        "of another run": {name: toy_sign(server, name, "alive", OTHER_RUN, *fields[1:]) for name in ALL},
        "of another round": {name: toy_sign(server, name, "alive", RUN, 2, ALL, ALL) for name in ALL},
        "of other survivors": {name: toy_sign(server, name, "alive", RUN, 1, ALL, ALL[:4]) for name in ALL},
        "of other owners": {name: toy_sign(server, name, "alive", RUN, 1, ALL[:4], ALL) for name in ALL},
        "with a bit flipped": {name: bytes([one[0] ^ 1, *one[1:]]) for name, one in good.items()},
    }


def toy_sign(server: LyingServer, name: str, purpose: str, *fields: object) -> bytes:
    return server.toy.identities[name].sign(purpose, *fields)


@pytest.mark.parametrize("which", range(15))
def test_forged_replayed_or_too_few_signatures_open_nothing(which: int, toy: Toy) -> None:
    server = LyingServer(toy).at("revealed")
    forged = _forged(server)
    assert len(forged) == 15
    with refused("signatures on the list"):
        server.reveal(A, list(forged.values())[which])
    assert server.reveal(A).of_self_masks.keys() == set(ALL)


def test_signatures_of_another_round_of_the_same_owners_open_nothing(toy: Toy) -> None:
    old = LyingServer(toy, 1).at("revealed")
    new = LyingServer(toy, 2).at("revealed")
    with refused("1 signatures"):
        new.reveal(A, old.signatures)


def test_keys_and_signatures_of_the_same_owners_in_another_run_count_for_nothing(enrolled: Toy) -> None:
    """Enrolled identities outlive runs, so that all they sign must say of which run it is."""
    elsewhere = Toy(enrolled.folder / "elsewhere", rules=MAY_LIE, enrolled=True)
    elsewhere.identities, elsewhere.enrolled = enrolled.identities, enrolled.enrolled
    elsewhere.sealers = {name: elsewhere.sealer(name) for name in ALL}
    other = LyingServer(elsewhere, run=OTHER_RUN).at("revealed")
    server = LyingServer(enrolled).at("shares")
    with refused(UNSIGNED):
        server.ask(A, server.key_list(A, {B: changed(other.keys[B], run=RUN)}))
    server.share()
    server.deliver()
    server.seal_all()
    server.sign_all()
    with refused("1 signatures"):
        server.reveal(A, other.signatures)
    assert server.reveal(A).of_self_masks


def test_signatures_of_owners_that_are_not_alive_do_not_count(toy: Toy) -> None:
    """D and E hold shares and have signed, but they are not in the sum: they count for nothing."""
    server = LyingServer(toy).at("signed")
    alive = [A, B, C]
    signatures = {name: server.sign(name, alive) for name in alive}
    signatures |= {name: toy_sign(server, name, "alive", RUN, 1, ALL, alive) for name in (D, E)}
    del signatures[B], signatures[C]
    with refused("1 signatures"):
        server.reveal(A, signatures)


def test_signatures_of_owners_that_hold_no_share_do_not_count(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=60, rules=Rules(corrupt=0.05, dropouts=0.05))
    server = LyingServer(toy).at("revealed")
    name = toy.names[0]
    near = set(server.graph.neighbours(name))
    far = [other for other in toy.names if other not in near and other != name]
    assert len(far) > server.graph.threshold
    with refused("1 signatures"):
        server.reveal(name, {other: server.signatures[other] for other in far})


# Replays


def test_a_round_is_sealed_once(toy: Toy) -> None:
    server = LyingServer(toy).at("signed")
    with refused("round 1 again"):
        server.seal(A)
    with refused("round 1 again"):
        server.ask(A, Invite(RUN, 1))


def test_a_round_is_sealed_once_also_by_an_owner_that_was_restarted(toy: Toy) -> None:
    LyingServer(toy).at("signed")
    toy.sealers[A] = toy.sealer(A)
    server = LyingServer(toy)
    with refused("round 1 again"):
        server.ask(A, Invite(RUN, 1))
    for late in (KeyList(RUN, 1, ALL, []), Delivery(RUN, 1, {}), Alive(RUN, 1, ALL), Reveal(RUN, 1, {})):
        with refused("not joined"):
            server.ask(A, late)
    assert isinstance(server.ask(A, Invite(RUN, 2)), Keys)


def test_no_round_before_the_last_sealed_one_is_begun(toy: Toy) -> None:
    LyingServer(toy, 5).at("signed")
    for number in (1, 4, 5):
        with refused("again"):
            LyingServer(toy, number).invite()
    LyingServer(toy, 6).invite()


def test_an_owner_that_was_restarted_before_it_sealed_begins_anew(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    toy.sealers[A] = toy.sealer(A)
    with refused("not joined"):
        server.seal(A)
    assert toy.require_exact(1) == ALL


def test_what_was_refused_does_not_use_up_the_round(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    with refused("."):
        server.seal(A, [A])
    assert len(server.seal_all()) == 5


def test_keys_of_an_earlier_round_are_refused(toy: Toy) -> None:
    old, new = LyingServer(toy, 1).at("shares"), LyingServer(toy, 2).at("shares")
    with refused("did not sign"):
        new.ask(A, new.key_list(A, {B: old.keys[B]}))
    renumbered = changed(old.keys[C], round=3)
    third = LyingServer(toy, 3).at("shares")
    with refused("did not sign"):
        third.ask(A, third.key_list(A, {C: renumbered}))


def test_sealed_shares_of_another_round_sender_or_receiver_cannot_be_opened(toy: Toy) -> None:
    old, new = LyingServer(toy, 1).at("receipts"), LyingServer(toy, 2).at("receipts")
    assert new.ask(A, Delivery(RUN, 2, {B: old.shared[B].sealed[A]})).unreadable == [B]
    assert new.ask(A, Delivery(RUN, 2, {B: new.shared[B].sealed[C]})).unreadable == [B]
    assert new.ask(A, Delivery(RUN, 2, {C: new.shared[B].sealed[A]})).unreadable == [C]
    assert new.ask(A, Delivery(RUN, 2, {B: new.shared[A].sealed[B]})).unreadable == [B]
    assert new.ask(A, Delivery(RUN, 2, {A: new.shared[A].sealed[B]})).unreadable == [A]
    assert new.ask(A, Delivery(RUN, 2, {"x": new.shared[B].sealed[A]})).unreadable == ["x"]
    assert new.ask(A, Delivery(RUN, 2, {B: new.shared[B].sealed[A]})).unreadable == []


def test_shares_for_another_list_of_owners_cannot_be_opened(toy: Toy) -> None:
    """Holders' places follow from the list: owners that were told different lists cannot mix their shares."""
    server = LyingServer(toy).at("shares")
    few = LyingServer(toy, names=[A, B, C])
    few.keys = server.keys
    shared = few.ask(A, few.key_list(A))
    server.ask(B, server.key_list(B))
    assert server.ask(B, Delivery(RUN, 1, {A: shared.sealed[B]})).unreadable == [A]


# Swapped keys


UNSIGNED, UNTRUSTED = "did not sign", "another signing key"
SWAPS: Mapping[str, tuple[str, Callable[[LyingServer], Keys]]] = {
    "mask key": (UNSIGNED, lambda server: changed(server.keys[B], mask=fresh_public())),
    "channel key": (UNSIGNED, lambda server: changed(server.keys[B], channel=fresh_public())),
    "keys exchanged": (
        UNSIGNED,
        lambda server: changed(server.keys[B], channel=server.keys[B].mask, mask=server.keys[B].channel),
    ),
    "signed by a stranger": (UNTRUSTED, lambda server: signed_keys(B, Identity(), server.number)),
    "signed by a stranger, passed off": (
        UNSIGNED,
        lambda server: changed(signed_keys(B, Identity(), server.number), identity=server.keys[B].identity),
    ),
    "signed by another owner": (UNTRUSTED, lambda server: signed_keys(B, server.toy.identities[E], server.number)),
    "signed for another name": (
        UNSIGNED,
        lambda server: changed(signed_keys(E, server.toy.identities[B], server.number), owner=B),
    ),
    "signed for another round": (
        UNSIGNED,
        lambda server: changed(signed_keys(B, server.toy.identities[B], 9), round=server.number),
    ),
    "signed for another run": (
        UNSIGNED,
        lambda server: changed(signed_keys(B, server.toy.identities[B], server.number, OTHER_RUN), run=RUN),
    ),
    "of another round": (UNSIGNED, lambda server: signed_keys(B, server.toy.identities[B], 9)),
    "renumbered": (UNSIGNED, lambda server: changed(server.keys[B], round=server.number + 1)),
    "renamed run": (UNSIGNED, lambda server: changed(server.keys[B], run=OTHER_RUN)),
}


@pytest.mark.parametrize("which", SWAPS)
def test_swapped_keys_are_refused_with_enrolled_identities(which: str, enrolled: Toy) -> None:
    reason, swap = SWAPS[which]
    server = LyingServer(enrolled).at("shares")
    with refused(reason):
        server.ask(A, server.key_list(A, {B: swap(server)}))
    assert A in server.ask(B, server.key_list(B)).sealed


@pytest.mark.parametrize("which", SWAPS)
def test_swapped_keys_are_refused_in_a_later_round_at_first_use(which: str, toy: Toy) -> None:
    assert toy.require_exact(1) == ALL
    reason, swap = SWAPS[which]
    server = LyingServer(toy, 2).at("shares")
    with refused(reason):
        server.ask(A, server.key_list(A, {B: swap(server)}))


@pytest.mark.parametrize("is_enrolled", [True, False])
@pytest.mark.parametrize("which", SWAPS)
def test_an_honest_server_leaves_out_an_owner_whose_keys_others_would_refuse(
    which: str, is_enrolled: bool, tmp_path: Path
) -> None:
    toy = Toy(tmp_path, enrolled=is_enrolled)
    toy.require_exact(1)
    false = SWAPS[which][1](LyingServer(toy, 2).at("shares"))
    toy.tamper = lambda name, asked, answer: encode(false) if name == B and isinstance(asked, Invite) else answer
    assert toy.require_exact(2) == [A, C, D, E]


def test_keys_do_not_pass_under_another_name_even_of_the_same_identity(enrolled: Toy) -> None:
    enrolled.identities[B] = enrolled.identities[E]
    enrolled.enrolled[B] = enrolled.enrolled[E]
    enrolled.sealers = {name: enrolled.sealer(name) for name in ALL}
    server = LyingServer(enrolled).at("shares")
    with refused(UNSIGNED):
        server.ask(A, server.key_list(A, {B: changed(server.keys[E], owner=B)}))
    assert server.ask(A, server.key_list(A)).sealed


def test_no_key_comes_twice(toy: Toy) -> None:
    server = LyingServer(toy).at("shares")
    copied = signed_keys(B, toy.identities[B], mask=server.keys[C].mask, channel=server.keys[C].channel)
    own = signed_keys(B, toy.identities[B], mask=server.keys[A].mask)
    crossed = signed_keys(B, toy.identities[B], mask=server.keys[C].channel)
    for swap in (copied, own, crossed):
        with refused("same key twice"):
            server.ask(A, server.key_list(A, {B: swap}))


# Cohorts that are too small, and lists that are no lists


@pytest.mark.parametrize("rules", [Rules(), MAY_LIE, Rules(min_owners=4)])
@pytest.mark.parametrize("size", [1, 2])
def test_a_cohort_of_one_or_two_is_refused(rules: Rules, size: int, tmp_path: Path) -> None:
    toy = Toy(tmp_path, rules=rules)
    few = ALL[:size]
    server = LyingServer(toy, names=few).at("shares")
    with refused(f"cohort of {size}"):
        server.ask(A, server.key_list(A))
    full = LyingServer(toy, 2).at("updates")
    with refused(f"list of {size} owners"):
        full.seal(A, few)
    for name in ALL:
        full.seal(name)
    with refused(f"list of {size} owners"):
        full.sign(A, few)


def test_min_owners_holds_beyond_the_threshold(tmp_path: Path) -> None:
    """Five owners have a threshold of three; a federation that asks for four gets no sum of three."""
    toy = Toy(tmp_path, rules=Rules(min_owners=4))
    short = LyingServer(toy, names=ALL[:3]).at("shares")
    with refused("cohort of 3"):
        short.ask(A, short.key_list(A))
    server = LyingServer(toy, 2).at("updates")
    with refused("list of 3 owners"):
        server.seal(A, ALL[:3])
    server.seal_all()
    with refused("list of 3 owners"):
        server.sign(A, ALL[:3])


def test_the_threshold_holds_beyond_min_owners(tmp_path: Path) -> None:
    """Seven owners have a threshold of four; three would be enough for min_owners."""
    toy = Toy(tmp_path, n=7)
    server = LyingServer(toy).at("updates")
    with refused("list of 3 owners"):
        server.seal(A, ALL[:3])
    server.seal_all()
    with refused("list of 3 owners"):
        server.sign(A, ALL[:3])
    assert server.sign(A, ALL[:4])


def test_the_threshold_counts_holders_not_strangers(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=60, rules=Rules(corrupt=0.05, dropouts=0.05))
    server = LyingServer(toy).at("updates")
    name = toy.names[0]
    near = server.graph.neighbours(name)
    far = [other for other in toy.names if other not in near and other != name]
    too_few = sorted([name, *near[: server.graph.threshold - 2], *far])
    assert len(too_few) > 2 * server.graph.threshold
    with refused("list of"):
        server.seal(name, too_few)
    server.seal(name, sorted([*too_few, near[server.graph.threshold - 2]]))


def _no_lists(names: list[str]) -> list[list[str]]:
    return [
        [],
        [names[0]] * 5,
        [names[0], names[1], names[1], names[2], names[3]],
        names[::-1],
        names[1:],
        [*names, "zz"],
        [*names[:4], "o04 "],
    ]


@pytest.mark.parametrize("which", range(7))
def test_lists_with_repeats_strangers_or_without_the_owner_are_refused(which: int, enrolled: Toy) -> None:
    server = LyingServer(enrolled).at("shares")
    wrong = _no_lists(ALL)[which]
    keys = [server.keys[peer] for peer in sorted(set(wrong) & set(ALL)) if peer != A]
    with refused("."):
        server.ask(A, KeyList(RUN, 1, wrong, keys))
    server.share()
    server.deliver()
    with refused("list of"):
        server.seal(A, wrong)
    server.seal_all()
    with refused("list of"):
        server.sign(A, wrong)


def test_an_unknown_owner_is_not_added_late(enrolled: Toy) -> None:
    """Neither to the keys, where identities are enrolled, nor later on, wherever they were learned."""
    assert enrolled.require_exact(1) == ALL
    for names, why in (([*ALL, "x"], "cohort of 6"), ([*ALL[:4], "x"], "not enrolled")):
        server = LyingServer(enrolled, 2, names=names)
        for name in set(names) & set(ALL):
            server.keys[name] = server.ask(name, Invite(RUN, 2))
        server.keys["x"] = signed_keys("x", Identity(), 2)
        with refused(why):
            server.ask(A, server.key_list(A))


def test_an_owner_that_shared_no_keys_is_not_briefed_or_alive(toy: Toy) -> None:
    toy.gone = {E: "keys"}
    server = LyingServer(toy, names=[A, B, C, D]).at("updates")
    with refused("list of 5"):
        server.seal(A, ALL)
    for name in (A, B, C, D):
        server.seal(name, [A, B, C]) if name != D else None
    with refused("list of 4"):
        server.sign(A, [A, B, C, D])
    assert server.sign(A, [A, B, C])


@pytest.mark.parametrize(
    "change",
    [
        lambda keys: keys[:-1],
        lambda keys: [*keys, keys[0]],
        lambda keys: [keys[0], *keys[:-1]],
        lambda keys: [],
        lambda keys: [*keys, signed_keys("x", Identity())],
    ],
)
def test_the_keys_must_be_those_of_the_neighbours(change: Callable[[list[Keys]], list[Keys]], toy: Toy) -> None:
    server = LyingServer(toy).at("shares")
    with refused("others than the neighbours"):
        server.ask(A, KeyList(RUN, 1, ALL, change(server.key_list(A).keys)))


# Another order, another round, another owner


def test_a_second_list_of_keys_is_refused(toy: Toy) -> None:
    server = LyingServer(toy).at("receipts")
    for names in (ALL, [A, B, C]):
        again = LyingServer(toy, names=names)
        again.keys = server.keys
        with refused("second list of keys"):
            server.ask(A, again.key_list(A))


def test_messages_out_of_their_order_are_refused(toy: Toy) -> None:
    server = LyingServer(toy)
    late = [Alive(RUN, 1, ALL), Reveal(RUN, 1, {})]
    for message in [KeyList(RUN, 1, ALL, []), Delivery(RUN, 1, {}), *late]:
        with refused("not joined"):
            server.ask(A, message)
    with refused("not joined"):
        server.seal(A)
    server.invite()
    for message in [Delivery(RUN, 1, {}), *late]:
        with refused("before"):
            server.ask(A, message)
    with refused("."):
        server.seal(A)
    server.share()
    for message in late:
        with refused("before the"):
            server.ask(A, message)
    server.deliver()
    for message in late:
        with refused("before the"):
            server.ask(A, message)
    server.seal_all()
    with refused("before the survivors"):
        server.ask(A, Reveal(RUN, 1, {}))
    with pytest.raises(ProtocolError):
        toy.sealers[A].answer(encode(server.keys[A]))


def test_no_update_is_sealed_without_its_pairwise_masks(enrolled: Toy) -> None:
    """Shares that come before the list of keys must not leave an owner with its self mask alone, which is opened."""
    server = LyingServer(enrolled).at("shares")
    with suppress(ProtocolError):
        server.ask(A, Delivery(RUN, 1, {}))
    server.share()
    for name in ALL[1:]:
        server.ask(name, server.delivery(name))
    for name in ALL[1:]:
        server.seal(name)
    with suppress(ProtocolError):
        payload = server.seal(A)
        assert _distance(enrolled, without_self_masks(server, payload, [A])) > 2


def test_a_delivery_that_comes_again_or_empty_changes_nothing(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    for name in ALL:
        server.ask(name, server.delivery(name))
        server.ask(name, Delivery(RUN, 1, {}))
    payloads = server.seal_all()
    total = np.sum(list(payloads.values()), axis=0, dtype=toy.fixed_point.ring)
    read = toy.fixed_point.signed(without_self_masks(server, total, ALL))
    require_same(toy.fixed_point.decode(read, 1), toy.plain(ALL))


@pytest.mark.parametrize("gone", ["run", "round"])
def test_a_briefing_of_another_round_or_run_is_refused(gone: str, toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    other = LyingServer(toy, *((2,) if gone == "round" else (1,)), run=OTHER_RUN if gone == "run" else RUN)
    with refused("not joined"):
        other.seal(A)
    assert len(server.seal_all()) == 5


def test_an_assignment_of_another_round_or_owner_is_refused(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    with refused("another round or owner"):
        server.seal_by(A, _briefing(server), number=2)
    with refused("another round or owner"):
        server.seal_by(A, _briefing(server), owner=B)
    LyingServer(toy, 2).at("updates")
    with refused("another round or owner"):
        server.seal_by(A, _briefing(server), number=2)


def _briefing(server: LyingServer) -> bytes:
    return encode(Briefing(RUN, server.number, ALL))


def test_a_list_of_survivors_of_another_round_is_refused(toy: Toy) -> None:
    server = LyingServer(toy).at("signed")
    with refused("not joined"):
        server.ask(A, Alive(RUN, 2, ALL))
    with refused("not joined"):
        server.ask(A, Alive(OTHER_RUN, 1, ALL))


def test_survivors_must_have_been_briefed(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    for name in ALL[:4]:
        server.seal(name, ALL[:4])
    with refused("list of 5"):
        server.sign(A, ALL)


def test_shares_of_owners_outside_the_briefing_are_never_given(toy: Toy) -> None:
    """E shared its secrets and is in no list since: nobody may know of its key, let alone of both."""
    server = LyingServer(toy).at("updates")
    names = ALL[:4]
    for name in names:
        server.seal(name, names)
    signatures = {name: server.sign(name, names[:3]) for name in names[:3]}
    given = server.reveal(A, signatures)
    assert set(given.of_self_masks) == set(names[:3])
    assert set(given.of_keys) == {D}


# What owners were asked


def _distance(toy: Toy, read: Payload) -> float:
    """How far what a server reads is from A's update, in units; what is masked is far from it."""
    values = toy.fixed_point.signed(read)[: toy.fixed_point.n_values].astype(float)
    return float(np.abs(values - toy.updates[A].delta / toy.fixed_point.step).max())


def _require_nothing_of_the_other(toy: Toy, **asked: Any) -> None:
    """All but A are asked so that their updates are zero: if their masks cancelled, the sum would be A's update."""
    server = LyingServer(toy).at("updates")
    zero = Update(np.zeros(toy.fixed_point.n_values, dtype=np.float32), 1, 1, True)
    payloads = [server.seal(A), *(server.seal(name, update=zero, **asked) for name in ALL[1:])]
    total = np.sum(payloads, axis=0, dtype=toy.fixed_point.ring)
    assert _distance(toy, without_self_masks(server, total, ALL)) > 2


def test_a_server_cannot_scale_all_other_updates_away(enrolled: Toy) -> None:
    _require_nothing_of_the_other(enrolled, weight_bound=2**40)


def test_a_server_cannot_hold_all_other_updates_still(enrolled: Toy) -> None:
    _require_nothing_of_the_other(enrolled, plan=replace(plan(1), proximal_mu=1e30))


def test_a_server_cannot_give_all_others_another_model(enrolled: Toy) -> None:
    _require_nothing_of_the_other(enrolled, vector=VECTOR - 100)


def test_terms_are_all_that_must_be_alike_and_no_more() -> None:
    base = assignment(A, 1, b"")
    other = assignment(A, 1, b"", 2)
    terms = {
        base.terms(VECTOR),
        other.terms(VECTOR),
        *(base.terms(vector) for vector in (VECTOR[:-1], VECTOR[::-1], np.append(VECTOR, VECTOR[:1]), -VECTOR)),
        base.terms(VECTOR.reshape(1, -1)),
        base.terms(np.nextafter(VECTOR, np.float32(9))),
        *(
            replace(base, plan=replace(base.plan, **changed)).terms(VECTOR)
            for changed in (
                {"round": 2},
                {"work": Work(2, "epochs")},
                {"work": Work(1, "steps")},
                {"proximal_mu": 1e-9},
                {"accepts_partial_work": False},
                {"weighting": "examples"},
            )
        ),
    }
    assert len(terms) == 14
    own = replace(base, owner=B, work=Work(1, "steps"), deadline_s=1.0, briefing=b"x")
    assert own.terms(VECTOR) == own.terms(VECTOR.copy()) == own.terms(np.repeat(VECTOR, 2)[::2]) == base.terms(VECTOR)


def test_a_peers_key_is_not_kept_before_its_signature_is_checked(toy: Toy) -> None:
    server = LyingServer(toy).at("shares")
    false = changed(server.keys[B], identity=Identity().public)
    with refused(UNSIGNED):
        server.ask(A, server.key_list(A, {B: false}))
    assert toy.require_exact(2) == ALL


@pytest.mark.parametrize("corrupt", [0.2, 0.35, 0.4, 0.49])
def test_corrupt_owners_cannot_sign_two_lists_with_enough_honest_ones(corrupt: float) -> None:
    """2 t - n owners have signed both of two lists that were signed by t each; one of them must be honest."""
    for n in range(3, 60):
        graph = Rules(server="may_lie", corrupt=corrupt).graph(RUN, 1, [f"o{number:02}" for number in range(n)])
        assert 2 * graph.threshold - n > int(corrupt * n)
        assert graph.threshold <= n
