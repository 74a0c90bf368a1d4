"""Honest rounds: exact sums under both schemes, owners that are lost, keys that rotate, what is recorded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from homomorphic_parties import RUN, SCHEMES, Cheat, Parties, sealed_by, total

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection import wire
from fedray.protection.homomorphic.cipher import PublicKey
from fedray.protection.homomorphic.messages import Challenge, ContextAsked, Prepare
from fedray.protection.homomorphic.parameters import Scheme
from fedray.values import Update

both = pytest.mark.parametrize("scheme", SCHEMES)


@both
@pytest.mark.parametrize(("n_owners", "n_values"), [(3, 1), (3, 4095), (4, 9000), (9, 2040)])
def test_the_total_is_that_of_plain_protection_bit_for_bit(scheme: Scheme, n_owners: int, n_values: int) -> None:
    parties = Parties(scheme, n_owners, n_values)
    for round in (1, 2):
        updates = parties.updates(round)
        opened, plain = total(parties, round, updates), parties.plain_total(round, updates)
        assert opened.weighted_sum.tobytes() == plain.weighted_sum.tobytes()
        assert opened.weight == plain.weight == sum(update.weight for update in updates.values())


@both
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_there_can_be_is_exact(scheme: Scheme, sign: int) -> None:
    """All owners at the clip, at full weight, in every slot: every coefficient and the weight at its bound."""
    parties = Parties(scheme, 5, 3000)
    update = Update(np.full(3000, sign * 8.0, dtype=np.float32), 1000, 1, True)
    opened = total(parties, 1, dict.fromkeys(parties.names, update))
    assert (opened.weighted_sum == sign * 8.0 * 5 * 1000).all()
    assert opened.weight == 5000


@both
def test_any_order_and_any_key_give_the_same_bits(scheme: Scheme) -> None:
    """What is given out does not depend on noise: for CKKS the rule that Li and Micciancio's attack asks for."""
    seen = set()
    for order in itertools.islice(itertools.permutations("abc"), 0, 6, 2):
        parties = Parties(scheme)
        updates = parties.updates()
        seen.add(total(parties, 1, {name: updates[name] for name in order}).weighted_sum.tobytes())
    assert len(seen) == 1


def test_both_schemes_give_the_same_bits() -> None:
    totals = [total(parties, 1, parties.updates()) for parties in map(Parties, SCHEMES)]
    assert totals[0].weighted_sum.tobytes() == totals[1].weighted_sum.tobytes()


@both
def test_nothing_is_printed_by_any_language(scheme: Scheme, capfd: pytest.CaptureFixture[str]) -> None:
    parties = Parties(scheme, n_values=9000)
    total(parties, 1, parties.updates())
    assert capfd.readouterr() == ("", "")


def test_the_record_says_what_happened() -> None:
    parties = Parties("bfv", 4, min_owners=3)
    updates = parties.updates()
    combiner = parties.protection().combiner(1, parties.names, parties.ask)
    for name in "abc":
        combiner.add(parties.seal(name, 1, updates[name]))
    assert combiner.briefing("a") == b""
    assert combiner.record().outcome == "empty"
    combiner.open()
    record = combiner.record()
    assert record.protection == "bfv"
    assert (record.outcome, record.reason) == ("opened", "")
    assert list(record.stages.items()) == [("asked", 4), ("ready", 4), ("updates", 3), ("checked", 3), ("opened", 3)]
    assert (record.min_owners, record.identities, record.key_bits) == (3, "enrolled", 128)
    assert len(bytes.fromhex(record.key_id)) == 32
    assert record.bytes_up > 4 * parties.fixed_point.length
    assert record.bytes_down > parties.packing.n_bytes


@both
def test_an_owner_lost_after_it_sealed_is_taken_out_of_the_sum(scheme: Scheme) -> None:
    parties = Parties(scheme, 5)
    updates = parties.updates()
    combiner = parties.protection().combiner(1, parties.names, parties.ask)
    for name, update in updates.items():
        combiner.add(parties.seal(name, 1, update))
    parties.sealers["b"] = parties.sealer("b")  # it crashed and came back
    opened = combiner.open()
    left = {name: update for name, update in updates.items() if name != "b"}
    assert opened.weighted_sum.tobytes() == parties.plain_total(1, left).weighted_sum.tobytes()
    assert combiner.n_added == 4
    assert "lost before" in combiner.lost["b"]


def test_too_few_updates_are_never_handed_in() -> None:
    parties = Parties("bfv", 4)
    updates = parties.updates()
    combiner = parties.protection().combiner(1, parties.names, parties.ask)
    for name in "ab":
        combiner.add(parties.seal(name, 1, updates[name]))
    with pytest.raises(RoundAbandoned, match="2 updates"):
        combiner.open()
    assert combiner.record().outcome == "abandoned"
    assert (parties.key_holder.n_opened, parties.key_holder.n_refused) == (0, 0)


def test_a_round_without_updates_is_empty() -> None:
    parties = Parties("bfv")
    combiner = parties.protection().combiner(1, parties.names, parties.ask)
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert combiner.record().outcome == "empty"


def test_owners_that_do_not_prepare_are_lost_with_a_reason() -> None:
    parties = Parties("bfv", 5)
    parties.sealers["a"] = parties.sealer("b")  # sends another's signature, later
    protection = parties.protection()

    def ask(messages: dict[str, bytes]) -> dict[str, object]:
        answers = parties.ask(messages)
        return {**answers, "c": b"garbage", "d": answers["e"][:-1]}  # type: ignore[index]

    combiner = protection.combiner(1, parties.names, ask)  # type: ignore[arg-type]
    assert combiner.owners == ["a", "b", "e"]
    assert set(combiner.lost) == {"c", "d"}
    assert all(combiner.lost.values())
    with pytest.raises(UpdateRefused):
        combiner.add(sealed_by(parties.sealers["c"], "c", 1, parties.updates()["c"]))
    with pytest.raises(UpdateRefused, match="b"):
        combiner.add(parties.seal("a", 1, parties.updates()["a"]))


def test_a_key_holder_that_refuses_loses_all_owners() -> None:
    parties = Parties("bfv")
    protection = parties.protection()
    total(parties, 2, parties.updates(), protection)
    combiner = protection.combiner(2, parties.names, parties.ask)
    assert combiner.owners == []
    assert set(combiner.lost) == set(parties.names)
    with pytest.raises(RoundAbandoned):
        combiner.open()


@both
def test_an_update_that_is_refused_costs_the_owner_nothing(scheme: Scheme) -> None:
    parties = Parties(scheme)
    parties.begin(1)
    bad = Update(np.full(parties.fixed_point.n_values, np.nan, dtype=np.float32), 1, 1, True)
    with pytest.raises(UpdateRefused):
        parties.seal("a", 1, bad)
    parties.seal("a", 1, parties.updates()["a"])


def test_encryptions_of_zero_are_made_ahead_used_once_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    used: list[object] = []
    zero, seal = PublicKey.zero, PublicKey.seal
    monkeypatch.setattr(PublicKey, "zero", lambda self: made.append(one := zero(self)) or one)
    monkeypatch.setattr(PublicKey, "seal", lambda self, one, values: used.append(one) or seal(self, one, values))
    parties = Parties("bfv", n_values=9000)
    parties.begin(1, "a")
    assert len(made) == parties.packing.n_pieces == 3
    prepared = parties.sealers["a"]._prepared[1]
    parties.seal("a", 1, parties.updates()["a"])
    assert [id(one) for one in used] == [id(one) for one in made]
    prepared.zeros.fill()  # as a thread that was making them goes on when it is sealed
    assert len(prepared.zeros) == 0
    parties.begin(2, "a")
    parties.sealers["a"]._prepared[2].zeros.take()  # one too few: it encrypts on the spot
    parties.seal("a", 2, parties.updates()["a"])
    assert len(used) == len({id(one) for one in used}) == 6


def test_the_next_round_is_prepared_while_one_runs() -> None:
    """As ``fedray.ahead`` does: keys and zeros of round n + 1 come before round n is sealed, across a new key too."""
    parties = Parties("bfv", key_rounds=1)
    protection = parties.protection()
    combiner = protection.combiner(1, parties.names, parties.ask)
    for round in range(1, 5):
        following = protection.combiner(round + 1, parties.names, parties.ask)
        updates = parties.updates(round)
        for name, update in updates.items():
            combiner.add(parties.seal(name, round, update))
        assert combiner.open().weighted_sum.tobytes() == parties.plain_total(round, updates).weighted_sum.tobytes()
        combiner = following
    assert len(parties.key_holder._ring._keys) == 1, "keys of rounds that are over are gone"


def test_a_round_prepared_twice_can_be_sealed_once_and_keeps_its_zeros() -> None:
    parties = Parties("bfv")
    protection = parties.protection()
    protection.combiner(1, parties.names, parties.ask)
    zeros = parties.sealers["a"]._prepared[1].zeros
    protection.combiner(1, parties.names, parties.ask)
    assert parties.sealers["a"]._prepared[1].zeros is zeros
    updates = parties.updates()
    assert total(parties, 1, updates, protection).weight == sum(update.weight for update in updates.values())


def test_two_payloads_of_one_update_have_nothing_in_common() -> None:
    parties = Parties("bfv")
    words = []
    for round in (1, 2):
        parties.begin(round)
        zeros = Update(np.zeros(parties.fixed_point.n_values, dtype=np.float32), 1, 1, True)
        words.append(parties.words(parties.seal("a", round, zeros).payload))
    assert (words[0] != words[1]).mean() > 0.999


def test_keys_rotate_and_are_sent_once() -> None:
    parties = Parties("bfv", key_rounds=2)
    protection = parties.protection()
    key_ids, sizes = [], []
    for round in range(1, 6):
        updates = parties.updates(round)
        parties.said.clear()
        combiner = protection.combiner(round, parties.names, parties.ask)
        sizes.append(max(map(len, parties.said)))
        for name, update in updates.items():
            combiner.add(parties.seal(name, round, update))
        assert combiner.open().weighted_sum.tobytes() == parties.plain_total(round, updates).weighted_sum.tobytes()
        key_ids.append(combiner.record().key_id)
    assert [key_ids.count(key_id) for key_id in dict.fromkeys(key_ids)] == [2, 2, 1]
    assert parties.key_holder.n_keys == 3
    assert [size > 50_000 for size in sizes] == [True, False, True, False, True]
    assert parties.key_holder.n_opened == 5


def test_an_owner_that_forgot_the_key_is_lost_for_one_round() -> None:
    parties = Parties("bfv", 4)
    protection = parties.protection()
    total(parties, 1, parties.updates(), protection)
    parties.sealers["d"] = parties.sealer("d")
    assert "key" in protection.combiner(2, parties.names, parties.ask).lost["d"]
    assert not protection.combiner(3, parties.names, parties.ask).lost


def test_an_old_key_opens_nothing() -> None:
    parties = Parties("bfv", key_rounds=1)
    cheat = Cheat(parties)
    for round in (2, 3):
        parties.key_holder.answer(wire.encode(ContextAsked(RUN, round)))
    with pytest.raises(ProtocolError, match="not its own"):
        cheat.try_to_open(cheat.sum("a", "b", "c"))


def test_a_round_that_was_not_asked_a_key_for_is_not_opened() -> None:
    """Else ``key_rounds`` could be passed by never asking."""
    parties = Parties("bfv")
    parties.begin(1)
    cheat = Cheat(parties, 2)
    parties.key_holder._ring._keys[0].rounds.remove((RUN, 2))
    with pytest.raises(ProtocolError, match="not its own"):
        cheat.hand_in(cheat.sum("a", "b", "c"))


def test_messages_that_are_for_others_are_refused() -> None:
    parties = Parties("bfv")
    with pytest.raises(ProtocolError, match="ContextAsked"):
        parties.key_holder.answer(wire.encode(Prepare(RUN, 1, bytes(32), b"")))
    with pytest.raises(ProtocolError, match="Prepare"):
        parties.sealers["a"].answer(wire.encode(ContextAsked(RUN, 1)))
    with pytest.raises(ProtocolError):
        parties.sealers["a"].answer(wire.encode(Challenge(RUN, 1, bytes(32), 1, bytes(32), parties.names)))
    assert parties.key_holder.n_refused == 1
