"""Owners that lie or fail: they cost their own update, at worst the round, and never the server or another's secret."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_toys import (
    RUN,
    LyingServer,
    Toy,
    changed,
    fresh_public,
    refused,
    require_abandoned,
    require_nothing_learned,
    require_same,
    sealed,
    signed_keys,
)

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection.masked import shamir
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.messages import (
    SEALED_BYTES,
    Alive,
    AliveSigned,
    Delivery,
    Invite,
    KeyList,
    Keys,
    Receipt,
    Reveal,
    Revealed,
    Shared,
)
from fedray.protection.wire import Message, decode, encode
from fedray.values import Update

A, B, C, D, E = ALL = [f"o0{number}" for number in range(5)]
LIAR = B
HONEST = [A, C, D, E]
P = 2**255 - 19
SMALL_ORDER = [
    point.to_bytes(32, "little")
    for point in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        P - 1,
        P,
        P + 1,
    )
]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def lie(toy: Toy, question: type[Message], change: Callable[[Any], Message | bytes], *liars: str) -> None:
    """Let liars change what they answer to one kind of question."""
    answers = {Invite: Keys, KeyList: Shared, Delivery: Receipt, Alive: AliveSigned, Reveal: Revealed}

    def tamper(name: str, asked: Message, answer: bytes) -> bytes:
        if name not in (liars or (LIAR,)) or not isinstance(asked, question):
            return answer
        told = change(decode(answer, answers[question]))
        return told if isinstance(told, bytes) else encode(told)

    toy.tamper = tamper


def different(message: Any, **fields: object) -> Any:
    return type(message)(**{**{name: getattr(message, name) for name in message.__struct_fields__}, **fields})


class FalseSharer:
    """An owner that seals false shares properly: from the rest on its own, it does as it should."""

    def __init__(self, toy: Toy, change: Callable[[int, list[bytes]], list[bytes]]) -> None:
        self._inner = toy.sealers[LIAR]
        self._change = change

    def answer(self, message: bytes) -> bytes:
        true, calls = shamir.split, itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shamir, "split", lambda *given: self._change(next(calls), true(*given)))
            return self._inner.answer(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def false_share() -> bytes:
    return b"\0" + os.urandom(32)


# Shares


def garbled(n: int) -> Callable[[Shared], Shared]:
    def change(told: Shared) -> Shared:
        garbage = {name: os.urandom(SEALED_BYTES) for name in sorted(told.sealed)[:n]}
        return different(told, sealed={**told.sealed, **garbage})

    return change


@pytest.mark.parametrize("n_garbled", [3, 4])
def test_an_owner_whose_shares_too_few_can_open_does_not_take_part(n_garbled: int, toy: Toy) -> None:
    lie(toy, KeyList, garbled(n_garbled))
    combiner = toy.uploaded()
    assert list(combiner.owners) == HONEST
    assert combiner.lost[LIAR] == f"{n_garbled} owners could not open its shares"
    require_same(combiner.open(), toy.plain(HONEST))


@pytest.mark.parametrize("n_garbled", [1, 2])
def test_an_owner_whose_shares_enough_can_open_takes_part(n_garbled: int, toy: Toy) -> None:
    lie(toy, KeyList, garbled(n_garbled))
    assert toy.require_exact() == ALL


def test_complaints_of_too_few_exclude_nobody(toy: Toy) -> None:
    lie(toy, Delivery, lambda told: different(told, unreadable=sorted(set(ALL) - {told.owner})), B, C)
    assert toy.require_exact() == ALL


def test_complaints_about_strangers_and_repeated_ones_count_for_nothing(toy: Toy) -> None:
    lie(toy, Delivery, lambda told: different(told, unreadable=[A] * 50 + ["zz"]))
    assert toy.require_exact() == ALL


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("place", range(5))
def test_one_false_share_does_no_harm(kind: int, place: int, toy: Toy) -> None:
    def change(call: int, shares: list[bytes]) -> list[bytes]:
        return shares if call != kind else [*shares[:place], false_share(), *shares[place + 1 :]]

    toy.sealers[LIAR] = FalseSharer(toy, change)
    toy.gone = {LIAR: "updates"} if kind == 0 else {}
    assert toy.require_exact() == (HONEST if kind == 0 else ALL)


@pytest.mark.parametrize("kind", [0, 1])
def test_false_shares_to_all_cost_the_round_and_no_more(kind: int, toy: Toy) -> None:
    """Of the key where it drops out, of the self mask where it stays."""
    toy.sealers[LIAR] = FalseSharer(
        toy, lambda call, shares: shares if call != kind else [false_share() for _ in shares]
    )
    toy.gone = {LIAR: "updates"} if kind == 0 else {}
    combiner = toy.uploaded()
    with pytest.raises(RoundAbandoned, match=f"shares of '{LIAR}', which do not give its secret"):
        combiner.open()
    assert combiner.record().outcome == "abandoned"
    toy.sealers[LIAR], toy.gone = toy.sealer(LIAR), {}
    assert toy.require_exact(2) == ALL


def test_shares_for_others_than_the_neighbours_are_refused(toy: Toy) -> None:
    for number, change in enumerate(
        (
            lambda told: different(told, sealed={}),
            lambda told: different(told, sealed={**told.sealed, "zz": bytes(SEALED_BYTES)}),
            lambda told: different(told, sealed={**told.sealed, LIAR: bytes(SEALED_BYTES)}),
            lambda told: different(told, sealed={name: told.sealed[name] for name in sorted(told.sealed)[1:]}),
        ),
        start=1,
    ):
        lie(toy, KeyList, change)
        assert toy.require_exact(number) == HONEST


# What is revealed


def false_shares(told: Revealed) -> Revealed:
    return different(
        told,
        of_self_masks={name: false_share() for name in told.of_self_masks},
        of_keys={name: false_share() for name in told.of_keys},
    )


REVEALS: Mapping[str, Callable[[Revealed], Revealed]] = {
    "false": false_shares,
    "too large": lambda told: different(told, of_self_masks=dict.fromkeys(told.of_self_masks, b"\xff" * 33)),
    "zero": lambda told: different(told, of_self_masks=dict.fromkeys(told.of_self_masks, bytes(33))),
    "none": lambda told: different(told, of_self_masks={}, of_keys={}),
    "exchanged": lambda told: different(told, of_self_masks=told.of_keys, of_keys=told.of_self_masks),
    "of strangers": lambda told: different(told, of_self_masks={**told.of_self_masks, "zz": bytes(33)}),
    "only its own": lambda told: different(told, of_self_masks={LIAR: told.of_self_masks[LIAR]}),
}


@pytest.mark.parametrize("which", REVEALS)
@pytest.mark.parametrize("dropped", [(), (E,)])
def test_one_owner_that_reveals_falsely_does_no_harm_where_there_is_one_to_spare(
    which: str, dropped: tuple[str, ...], toy: Toy
) -> None:
    toy.gone = dict.fromkeys(dropped, "updates")
    lie(toy, Reveal, REVEALS[which])
    assert toy.require_exact() == [name for name in ALL if name not in dropped]


@pytest.mark.parametrize("liar", ALL)
def test_whichever_owner_reveals_falsely(liar: str, toy: Toy) -> None:
    lie(toy, Reveal, false_shares, liar)
    assert toy.require_exact() == ALL


def test_an_owner_that_reveals_falsely_costs_the_round_where_there_is_none_to_spare(toy: Toy) -> None:
    toy.gone = {D: "updates", E: "updates"}
    lie(toy, Reveal, false_shares)
    with pytest.raises(RoundAbandoned, match="do not give its secret"):
        toy.opened()
    toy.gone = {}
    assert toy.require_exact(2) == ALL


@pytest.mark.parametrize("liars", list(itertools.combinations(range(5), 2)))
def test_two_owners_that_reveal_falsely_do_no_harm_where_there_are_two_to_spare(
    liars: tuple[int, int], toy: Toy
) -> None:
    lie(toy, Reveal, false_shares, *(ALL[at] for at in liars))
    assert toy.require_exact() == ALL


def test_two_owners_of_twenty_that_reveal_falsely_do_no_harm(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=20)
    lie(toy, Reveal, false_shares, "o00", "o10")
    try:
        assert toy.require_exact() == toy.names
    except RoundAbandoned as error:
        raise AssertionError from error


def test_a_false_commitment_costs_the_round_and_no_more(toy: Toy) -> None:
    lie(toy, KeyList, lambda told: different(told, commitment=os.urandom(32)))
    with pytest.raises(RoundAbandoned, match=f"shares of '{LIAR}', which do not give its secret"):
        toy.opened(1)
    toy.gone = {LIAR: "updates"}
    assert toy.require_exact(2) == HONEST


def test_a_false_signature_on_the_survivors_counts_as_none(toy: Toy) -> None:
    lie(toy, Alive, lambda told: different(told, signature=os.urandom(64)))
    assert toy.require_exact(1) == ALL
    toy.gone, toy.said = {D: "updates", E: "updates"}, []
    require_abandoned(toy, toy.uploaded(2))


# Keys


@pytest.mark.parametrize("point", SMALL_ORDER)
@pytest.mark.parametrize("which", ["channel", "mask"])
def test_no_owner_agrees_with_a_key_of_small_order(point: bytes, which: str, toy: Toy) -> None:
    server = LyingServer(toy).at("shares")
    swapped = {B: signed_keys(B, toy.identities[B], **{which: point})}
    with refused("small order"):
        for name in (A, C):
            server.ask(name, server.key_list(name, swapped))
            server.ask(name, Delivery(RUN, 1, {}))
    with pytest.raises(ProtocolError):
        server.seal(A)


def _only_its_keys_are_false(toy: Toy, made: Callable[[Keys], Keys], *liars: str) -> None:
    lie(toy, Invite, made, *(liars or (LIAR,)))
    assert toy.require_exact() == [name for name in ALL if name not in (liars or (LIAR,))]


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_an_owner_with_a_key_of_small_order_costs_its_own_update_only(which: str, toy: Toy) -> None:
    _only_its_keys_are_false(toy, lambda told: signed_keys(LIAR, toy.identities[LIAR], **{which: SMALL_ORDER[2]}))


def test_an_owner_that_sends_one_key_twice_costs_its_own_update_only(toy: Toy) -> None:
    key = fresh_public()
    _only_its_keys_are_false(toy, lambda told: signed_keys(LIAR, toy.identities[LIAR], channel=key, mask=key))


def test_two_owners_that_share_a_key_cost_their_own_updates_only(toy: Toy) -> None:
    key = fresh_public()
    _only_its_keys_are_false(toy, lambda told: signed_keys(told.owner, toy.identities[told.owner], mask=key), B, E)


# Answers that are none


@pytest.mark.parametrize("question", [Invite, KeyList, Delivery])
@pytest.mark.parametrize("what", ["nothing", "garbage", "another", "another round", "another run", "another owner"])
def test_an_owner_that_answers_anything_else_is_lost(question: type[Message], what: str, toy: Toy) -> None:
    lie(toy, question, lambda told: _anything(told, what))
    combiner = toy.uploaded()
    assert list(combiner.owners) == HONEST
    assert LIAR in combiner.lost
    require_same(combiner.open(), toy.plain(HONEST))


@pytest.mark.parametrize("question", [Alive, Reveal])
@pytest.mark.parametrize("what", ["nothing", "garbage", "another", "another round", "another run", "another owner"])
def test_an_owner_that_fails_to_help_is_not_needed(question: type[Message], what: str, toy: Toy) -> None:
    lie(toy, question, lambda told: _anything(told, what))
    assert toy.require_exact() == ALL
    toy.gone, toy.said = {D: "updates", E: "updates"}, []
    if question is Alive:
        require_abandoned(toy, toy.uploaded(2))
        assert not toy.revealed()
    else:
        with pytest.raises(RoundAbandoned):
            toy.opened(2)


def _anything(told: Any, what: str) -> Message | bytes:
    return {
        "nothing": b"",
        "garbage": os.urandom(100),
        "another": Invite(RUN, 1),
        "another round": different(told, round=told.round + 7),
        "another run": different(told, run=bytes(16)),
        "another owner": different(told, owner=C),
    }[what]


# Updates


def test_a_payload_that_does_not_belong_leaves_the_sum_as_it_was(toy: Toy) -> None:
    toy.gone = {E: "shares"}
    combiner = toy.prepared()
    good = {name: toy.seal(combiner, name) for name in combiner.owners}
    assert toy.fixed_point.ring is np.uint16
    combiner.add(sealed(A, 1, good[A]))
    wrong: list[Any] = [
        good[B][:-1],
        np.append(good[B], good[B][:1]),
        good[B].reshape(1, -1),
        good[B][:0],
        good[B].astype(np.uint32),
        good[B].astype(np.float32),
        good[B].astype(np.float64),
        good[B].astype(np.int64),
        good[B].view(np.int16),
        good[B].astype(">u2"),
        good[B].tobytes(),
        good[B].tolist(),
        None,
    ]
    for payload in wrong:
        with pytest.raises(UpdateRefused):
            combiner.add(sealed(B, 1, payload))
    for name in (A, E, "zz", ""):
        with pytest.raises(UpdateRefused, match="one of each owner that shared keys"):
            combiner.add(sealed(name, 1, good[B]))
    assert combiner.n_added == 1
    for name in (B, C, D):
        combiner.add(sealed(name, 1, good[name]))
    require_same(combiner.open(), toy.plain([A, B, C, D]))


def test_a_payload_of_the_other_ring_is_refused(tmp_path: Path) -> None:
    toy = Toy(tmp_path, precision=2.0**-17)
    combiner = toy.prepared()
    good = toy.seal(combiner, A)
    assert good.dtype == np.uint32
    for payload in (
        good.astype(np.uint16),
        good.view(np.uint16),
        good.view(np.uint16)[: len(good)],
        good.view(np.int32),
    ):
        with pytest.raises(UpdateRefused):
            combiner.add(sealed(A, 1, payload))
    assert combiner.n_added == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1.001, -1.001])
def test_what_is_not_finite_or_beyond_the_clip_is_never_sealed(value: float, toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    bad = Update(np.array([0.0, value, 0.0], dtype=np.float32), 1, 1, True)
    with pytest.raises(UpdateRefused):
        server.seal(A, update=bad)
    with refused("before the"):
        server.sign(A)
    assert not (toy.folder / f"{A}.json").exists()
    assert server.seal(A).shape == (toy.fixed_point.length,)


@pytest.mark.parametrize(("delta", "weight"), [([0.0, 0.0], 1), ([0.0] * 4, 1), ([0.0] * 3, 0), ([0.0] * 3, 2)])
def test_what_is_misshapen_or_weighs_too_much_is_never_sealed(delta: list[float], weight: int, toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    with pytest.raises(UpdateRefused):
        server.seal(A, update=Update(np.array(delta, dtype=np.float32), weight, 1, True))
    assert not (toy.folder / f"{A}.json").exists()


def test_a_poisoned_update_of_any_ring_element_is_no_crash(toy: Toy) -> None:
    combiner = toy.prepared()
    for name in HONEST:
        combiner.add(sealed(name, 1, toy.seal(combiner, name)))
    toy.seal(combiner, LIAR)
    combiner.add(sealed(LIAR, 1, np.full(toy.fixed_point.length, 2**15, dtype=np.uint16)))
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert toy.require_exact(2) == ALL


def test_an_owner_far_away_on_the_graph_can_lie_too(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=60, rules=Rules(corrupt=0.05, dropouts=0.05))
    lie(toy, Reveal, false_shares, "o07")
    toy.gone = {"o30": "updates"}
    assert "o30" not in toy.require_exact()
    lie(toy, KeyList, garbled(28), "o07")
    assert "o07" not in toy.require_exact(2)


def test_nothing_is_learned_of_a_round_that_owners_end_before_the_update(toy: Toy) -> None:
    lie(toy, KeyList, lambda told: b"", A, B, C)
    require_abandoned(toy, toy.uploaded())
    require_nothing_learned(toy, 1)


def test_keys_of_a_liar_for_another_owner_are_not_passed_on(toy: Toy) -> None:
    lie(toy, Invite, lambda told: changed(told, owner=A))
    assert toy.require_exact() == HONEST
