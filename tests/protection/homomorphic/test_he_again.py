"""A server that was lost in the middle of a round does it again: it gets the same sum, and never another one.

All owners of a sum must answer for it. So their journals hold the line also where the key holder has forgotten all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from homomorphic_parties import OTHER_RUN, RUN, SCHEMES, Cheat, Parties, sealed_by, total

from fedray.errors import ProtocolError, RoundAbandoned
from fedray.protection import wire
from fedray.protection.homomorphic.messages import Challenge
from fedray.protection.homomorphic.server import HomomorphicCombiner
from fedray.protocols import Ask
from fedray.values import Absent

ALL = list("abcd")
STEPS = ("prepared", "sealed", "challenged", "answered", "opened")
OTHER_LIST = "for other owners than before the server was lost"


@pytest.fixture
def parties() -> Parties:
    return Parties("bfv", 4, n_values=40)


def lost(parties: Parties, step: str, names: Sequence[str] = ALL) -> None:
    """A server that is lost after this step."""
    at = STEPS.index(step)
    if at == 0:
        parties.begin(1)
        return
    cheat = Cheat(parties)
    if at == 1:
        return
    challenge = cheat.hand_in(cheat.sum(*names), [cheat.entries[name] for name in names])
    if at == 2:
        return
    forms = cheat.forms(challenge, *names)
    if at == 4:
        cheat.open(challenge, forms)


def restart(parties: Parties, *, with_key_holder: bool = False) -> None:
    """All owners' processes are started anew, and the key holder's, which has forgotten its keys then."""
    parties.sealers = {name: parties.sealer(name) for name in parties.names}
    parties.key_holder = parties.opened_key_holder() if with_key_holder else parties.key_holder


def again(
    parties: Parties, names: Sequence[str] = ALL, run: bytes = OTHER_RUN, ask: Ask | None = None
) -> HomomorphicCombiner:
    """The round by another server, up to where it is to be opened."""
    combiner = parties.protection(run=run).combiner(1, names, ask or parties.ask)
    updates = parties.updates()
    for name in combiner.owners:
        combiner.add(parties.seal(name, 1, updates[name]))
    return combiner


# The same sum


@pytest.mark.parametrize("with_key_holder", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_wherever_the_server_was_lost_the_same_owners_give_the_same_bits(
    step: str, with_key_holder: bool, parties: Parties
) -> None:
    lost(parties, step)
    restart(parties, with_key_holder=with_key_holder)
    opened = again(parties).open()
    assert opened.weighted_sum.tobytes() == parties.plain_total(1, parties.updates()).weighted_sum.tobytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounds_are_done_again_from_an_earlier_one_on(scheme: str) -> None:
    parties = Parties(scheme, 3, n_values=40)  # type: ignore[arg-type]
    runs = [RUN, OTHER_RUN]
    bits = [
        [total(parties, number, parties.updates(number), protection).weighted_sum.tobytes() for number in (1, 2)]
        for protection in (parties.protection(run=run) for run in runs)
    ]
    assert bits[0] == bits[1]


# Another sum


@pytest.mark.parametrize("with_key_holder", [True, False])
@pytest.mark.parametrize("step", ["answered", "opened"])
def test_a_list_with_one_owner_less_is_not_opened(step: str, with_key_holder: bool, parties: Parties) -> None:
    lost(parties, step)
    restart(parties, with_key_holder=with_key_holder)
    combiner, before = again(parties, "abc"), parties.key_holder.n_opened
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert parties.key_holder.n_opened == before
    assert set(combiner.lost) == {"a", "b", "c"}
    assert all(OTHER_LIST in reason for reason in combiner.lost.values())


@pytest.mark.parametrize("with_key_holder", [True, False])
def test_a_list_with_one_owner_more_is_not_opened(with_key_holder: bool, parties: Parties) -> None:
    """Not even without those who refuse: too few are left."""
    lost(parties, "opened", "abc")
    restart(parties, with_key_holder=with_key_holder)
    combiner, before = again(parties), parties.key_holder.n_opened
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert parties.key_holder.n_opened == before


def test_one_honest_owner_that_is_in_two_lists_stops_the_second() -> None:
    """The others have forgotten all: their machines were replaced."""
    parties = Parties("bfv", 5, n_values=40)
    lost(parties, "opened", parties.names)
    kept = parties.journals["c"]
    parties.journals = {**Parties("bfv", 5, n_values=40).journals, "c": kept}
    restart(parties, with_key_holder=True)
    cheat = Cheat(parties, run=OTHER_RUN)
    challenge = cheat.hand_in(cheat.sum(*"abcd"), [cheat.entries[name] for name in "abcd"])
    answers = parties.ask(dict.fromkeys("abcd", wire.encode(challenge)))
    assert [name for name, answer in answers.items() if not isinstance(answer, bytes)] == ["c"]


@pytest.mark.parametrize("step", ["prepared", "sealed", "challenged"])
@pytest.mark.parametrize("with_key_holder", [True, False])
def test_a_sum_that_nobody_has_answered_for_may_be_opened_for_other_owners(
    step: str, with_key_holder: bool, parties: Parties
) -> None:
    lost(parties, step)
    restart(parties, with_key_holder=with_key_holder)
    opened = again(parties, "abc").open()
    left = {name: update for name, update in parties.updates().items() if name in "abc"}
    assert opened.weighted_sum.tobytes() == parties.plain_total(1, left).weighted_sum.tobytes()


def test_a_server_cannot_have_the_same_list_answered_first_and_another_one_opened(parties: Parties) -> None:
    """The key holder opens one sum for each server: the second server's must be the first one's too."""
    lost(parties, "opened")
    cheat = Cheat(parties, run=OTHER_RUN)
    cheat.forms(cheat.hand_in(cheat.sum(*ALL)), *ALL)
    fewer = cheat.hand_in(cheat.sum(*"abc"), [cheat.entries[name] for name in "abc"])
    for name in "abc":
        with pytest.raises(ProtocolError, match=OTHER_LIST):
            parties.sealers[name].answer(wire.encode(fewer))


def test_an_honest_server_that_loses_an_owner_the_second_time_abandons_the_round(parties: Parties) -> None:
    lost(parties, "opened")
    restart(parties)
    n_asked = 0

    def without_d(messages: Mapping[str, bytes]) -> dict[str, bytes | Absent]:
        nonlocal n_asked
        n_asked += b"Challenge" in messages["a"]
        return parties.ask({name: message for name, message in messages.items() if name != "d" or not n_asked})

    combiner = again(parties, ask=without_d)
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert n_asked == 2
    assert parties.key_holder.n_opened == 1


def test_after_an_owner_was_lost_the_second_server_gets_the_list_without_it(parties: Parties) -> None:
    first = parties.protection().combiner(1, ALL, parties.ask)
    updates = parties.updates()
    for name in ALL:
        first.add(parties.seal(name, 1, updates[name]))
    parties.sealers["d"] = parties.sealer("d")  # it crashed and came back
    bits = first.open().weighted_sum.tobytes()
    assert first.n_added == 3
    restart(parties)
    assert again(parties, "abc").open().weighted_sum.tobytes() == bits
    with pytest.raises(RoundAbandoned):
        again(parties, run=b"a third server's").open()


# Another update of the same owner, and two servers at once


@pytest.mark.parametrize("step", ["sealed", "opened"])
def test_a_round_is_not_sealed_again_of_anything_else(step: str, parties: Parties) -> None:
    lost(parties, step)
    restart(parties)
    update = parties.updates()["a"]
    parties.begin(1, run=OTHER_RUN)
    with pytest.raises(ProtocolError, match="another model or plan"):
        sealed_by(parties.sealers["a"], "a", 1, update, bytes(32))
    parties.begin(1, run=OTHER_RUN)
    with pytest.raises(ProtocolError, match="2 steps of training"):
        parties.seal("a", 1, replace(update, n_steps=2))
    parties.begin(1, run=OTHER_RUN)
    parties.seal("a", 1, update)


def test_the_old_server_gets_no_answer_once_owners_have_sealed_for_the_new_one(parties: Parties) -> None:
    old = Cheat(parties)
    before = dict(parties.sealers)
    restart(parties)
    Cheat(parties, run=OTHER_RUN)
    for names in ("abcd", "abc"):
        challenge = old.hand_in(old.sum(*names), [old.entries[name] for name in names])
        for name in names:
            with pytest.raises(ProtocolError, match="not sealed for this server last"):
                before[name].answer(wire.encode(challenge))


@pytest.mark.parametrize("with_key_holder", [True, False])
def test_a_server_that_calls_itself_by_an_older_name_gets_no_round_again(
    with_key_holder: bool, parties: Parties
) -> None:
    lost(parties, "answered")
    Cheat(parties, run=OTHER_RUN)
    restart(parties, with_key_holder=with_key_holder)
    for run in (RUN, OTHER_RUN):
        with pytest.raises(ProtocolError, match="round 1 again"):
            parties.begin(1, "a", run=run)


def test_a_challenge_of_another_server_is_not_answered(parties: Parties) -> None:
    """Both may be in the key holder's hands at once."""
    old, new = Cheat(parties), Cheat(parties, run=OTHER_RUN)
    challenge = old.hand_in(old.sum(*ALL))
    assert isinstance(challenge, Challenge)
    with pytest.raises(ProtocolError, match="a challenge for round 1"):
        parties.sealers["a"].answer(wire.encode(challenge))
    found = new.try_to_open(new.sum(*ALL))
    assert np.array_equal(found, new.expected(*ALL))
