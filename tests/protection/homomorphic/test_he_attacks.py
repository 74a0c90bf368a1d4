"""What a server, owners or someone in between may try.

``Cheat`` is a server that has all contributions of a round and every owner's true answers to the true challenge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import tenseal
import tenseal.sealapi as seal
from homomorphic_parties import RUN, SCHEMES, Cheat, Parties, sealed_by, total

from fedray.config.learning import KEY_HOLDER
from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection import wire
from fedray.protection.homomorphic import probe
from fedray.protection.homomorphic.cipher import PublicKey, SecretKey
from fedray.protection.homomorphic.key_holder import KeyHolderRole
from fedray.protection.homomorphic.messages import (
    Answer,
    Answers,
    Challenge,
    Context,
    ContextAsked,
    Contribution,
    Opened,
    Prepare,
    SumSent,
    is_from,
    signed_by,
)
from fedray.protection.homomorphic.parameters import Scheme
from fedray.protection.homomorphic.stream import Stream
from fedray.protection.homomorphic.words import add, subtract
from fedray.protection.identity import Identity, Trust

both = pytest.mark.parametrize("scheme", SCHEMES)
LIE = "not the one its owners sent"


@both
def test_the_honest_sum_is_opened_so_that_refusals_mean_something(scheme: Scheme) -> None:
    cheat = Cheat(Parties(scheme))
    assert np.array_equal(cheat.try_to_open(cheat.sum("a", "b", "c")), cheat.expected("a", "b", "c"))


@both
@pytest.mark.parametrize("names", ["a", "ab", "aabc", "aab", "abcabc", ""])
def test_what_is_no_sum_of_the_manifest_is_refused(scheme: Scheme, names: str) -> None:
    """One contribution alone, one left out, doubled, twice the sum, nothing."""
    cheat = Cheat(Parties(scheme))
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(cheat.sum(*names))


@pytest.mark.parametrize("names", ["a", "ab", "bc"])
def test_a_manifest_of_more_than_answered_is_refused(names: str) -> None:
    """A sum and answers that agree with each other, of fewer owners than the manifest has."""
    cheat = Cheat(Parties("bfv"))
    challenge = cheat.hand_in(cheat.sum(*names))
    with pytest.raises(ProtocolError, match=LIE):
        cheat.open(challenge, cheat.forms(challenge, *names))


def test_what_the_server_adds_itself_it_gets_back() -> None:
    """The limit of the check: adding a known plaintext passes, and tells nothing that was not known."""
    parties = Parties("bfv")
    cheat = Cheat(parties)
    added = np.arange(parties.fixed_point.length) % 1000
    forged = cheat.sum("a", "b", "c")
    add(forged, encrypted(parties, cheat, added), parties.parameters.modulus)
    challenge = cheat.hand_in(forged)
    known = probe.Probe(challenge.seed)
    known.feed(added)
    opened = cheat.open(challenge, cheat.forms(challenge, *parties.names) + known.forms)
    assert np.array_equal(opened, cheat.expected("a", "b", "c") + added)


def test_what_no_owners_can_have_sent_is_refused_even_if_they_say_so() -> None:
    """A value beyond the bound of the sum, with answers that agree."""
    parties = Parties("bfv")
    cheat = Cheat(parties)
    added = np.zeros(parties.fixed_point.length, dtype=np.int64)
    added[7] = parties.fixed_point.sum_bound + 1 - cheat.expected("a", "b", "c")[7]
    forged = cheat.sum("a", "b", "c")
    add(forged, encrypted(parties, cheat, added), parties.parameters.modulus)
    challenge = cheat.hand_in(forged)
    known = probe.Probe(challenge.seed)
    known.feed(added)
    with pytest.raises(ProtocolError, match=LIE):
        cheat.open(challenge, cheat.forms(challenge, *parties.names) + known.forms)


@both
def test_pieces_of_different_subsets_are_refused(scheme: Scheme) -> None:
    parties = Parties(scheme, 4)
    cheat = Cheat(parties)
    mixed = cheat.sum("a", "b", "c", "d")
    piece = parties.packing.words_a_piece
    mixed[:piece] = cheat.sum("a", "b", "c")[:piece]
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(mixed)


def test_pieces_in_another_order_are_refused() -> None:
    parties = Parties("bfv")
    cheat = Cheat(parties)
    swapped = np.roll(cheat.sum("a", "b", "c"), parties.packing.words_a_piece)
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(swapped)


def test_the_secret_key_cannot_be_read_from_chosen_ciphertexts() -> None:
    """Adding q/t to c1 makes a ciphertext open to the sum plus the secret key: the probe alone stands against it."""
    parties = Parties("bfv")
    cheat = Cheat(parties)
    forged = cheat.sum("a", "b", "c")
    add_key_to(forged, parties)
    secret, piece = parties.key_holder._ring._keys[0].secret, parties.packing.words_a_piece
    leaked = secret.open(forged[:piece]) - secret.open(cheat.sum("a", "b", "c")[:piece])
    assert set(coefficients(secret, leaked)) == {-1, 0, 1}, "the attack is real: this is the key, a ternary polynomial"
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(forged)


def test_the_secret_key_cannot_be_read_with_a_lying_owner_either() -> None:
    """The same by way of a contribution that is signed: its owner cannot answer for what it does not know."""
    parties = Parties("bfv")
    cheat = Cheat(parties)
    add_key_to(cheat.words["c"], parties)
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(cheat.sum("a", "b", "c"))


def test_a_lying_owner_cannot_cancel_another() -> None:
    """c sends minus what b sent, with a true signature, so that only a's update is left in the sum."""
    parties = Parties("bfv")
    cheat = Cheat(parties)
    alone = cheat.sum("a", "b")
    subtract(alone, cheat.words["b"], parties.parameters.modulus)
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(alone)


def test_multiplying_by_a_mask_with_tenseal_gets_nothing() -> None:
    """Zero all slots but some by a product with a plaintext, on the public key alone."""
    parties = Parties("bfv", n_values=100)
    cheat = Cheat(parties)
    key, stream = public_half(parties)
    mask = [1] * 50 + [0] * (parties.parameters.n_slots - 50)
    vector = key._make(key._context, stream.serialised(cheat.sum("a", "b", "c"))) * mask
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(stream.words(vector.serialize()))
    assert parties.key_holder.n_opened == 0


def test_multiplying_by_a_mask_is_beyond_the_scale_of_ckks() -> None:
    parties = Parties("ckks", n_values=100)
    cheat = Cheat(parties)
    key, stream = public_half(parties)
    vector = key._make(key._context, stream.serialised(cheat.sum("a", "b", "c")))
    with pytest.raises(ValueError, match=r"end of modulus switching chain|scale out of bounds"):
        vector * ([1.0] * 50 + [0.0] * (parties.parameters.n_slots - 50))


def test_a_refused_sum_costs_the_round_and_the_key() -> None:
    parties = Parties("bfv", 4)
    cheat = Cheat(parties)
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(cheat.sum("a"))
    with pytest.raises(ProtocolError, match="again"):
        cheat.try_to_open(cheat.sum(*parties.names))
    assert (parties.key_holder.n_opened, parties.key_holder.n_refused) == (0, 2)
    assert parties.begin(2) != cheat.key_id, "no second guess under the same key"
    assert parties.key_holder.n_keys == 2


def test_a_round_prepared_ahead_is_lost_with_the_key() -> None:
    parties = Parties("bfv")
    cheat = Cheat(parties)
    parties.begin(2)
    with pytest.raises(ProtocolError, match=LIE):
        cheat.try_to_open(cheat.sum("a"))
    sealed = {name: parties.seal(name, 2, update) for name, update in cheat.updates.items()}
    entries = [wire.decode(one.proof, Contribution) for one in sealed.values()]
    later = SumSent(RUN, 2, cheat.key_id, entries, parties.packing.packed(cheat.sum("a", "b", "c")).tobytes())
    with pytest.raises(ProtocolError, match="not its own"):
        parties.key_holder.answer(wire.encode(later))


def test_what_is_refused_before_decryption_costs_nothing() -> None:
    """Else whoever can reach the key holder could stop every round."""
    cheat = Cheat(Parties("bfv"))
    honest = cheat.sum("a", "b", "c")
    for bad in (b"", b"garbage", wire.encode(Answers(RUN, 1, 1, bytes(16)))):
        with pytest.raises(ProtocolError):
            cheat.parties.key_holder.answer(bad)
    with pytest.raises(ProtocolError, match="2 contributions"):
        cheat.hand_in(honest, list(cheat.entries.values())[:2])
    challenge = cheat.hand_in(honest)
    with pytest.raises(ProtocolError, match="no challenge"):
        cheat.open(replace_attempt(challenge), cheat.forms(challenge, "a"))
    challenge = cheat.hand_in(honest)  # as if an owner had been lost
    assert np.array_equal(cheat.open(challenge, cheat.forms(challenge, "a", "b", "c")), cheat.expected("a", "b", "c"))
    assert (cheat.parties.key_holder.n_opened, cheat.parties.key_holder.n_refused) == (1, 5)


@pytest.mark.parametrize(
    "change", [lambda one: one[:-1], lambda one: b"x" + one[1:], lambda one: one[:8] + b"\xff" * 80]
)
def test_what_is_no_payload_is_refused_when_it_is_handed_in(change: Callable[[bytes], bytes]) -> None:
    cheat = Cheat(Parties("bfv"))
    payload = change(cheat.parties.packing.packed(cheat.sum("a", "b", "c")).tobytes())
    message = wire.encode(SumSent(RUN, 1, cheat.key_id, list(cheat.entries.values()), payload))
    with pytest.raises(ProtocolError):
        cheat.parties.key_holder.answer(message)
    cheat.try_to_open(cheat.sum("a", "b", "c"))


def test_answers_to_one_challenge_do_not_open_another() -> None:
    cheat = Cheat(Parties("bfv"))
    honest = cheat.sum("a", "b", "c")
    first = cheat.hand_in(honest)
    forms = cheat.forms(first, "a", "b", "c")
    with pytest.raises(ProtocolError, match=LIE):
        cheat.open(cheat.hand_in(honest), forms)


def test_a_round_is_opened_once() -> None:
    cheat = Cheat(Parties("bfv"))
    cheat.try_to_open(cheat.sum("a", "b", "c"))
    for again in (lambda: cheat.hand_in(cheat.sum("a", "b", "c")), lambda: cheat.parties.begin(1)):
        with pytest.raises(ProtocolError, match="round 1 again"):
            again()
    challenge = Challenge(RUN, 1, cheat.key_id, 1, bytes(32), ["a", "b", "c"])
    with pytest.raises(ProtocolError, match="no challenge"):
        cheat.open(challenge, np.zeros(2, dtype=np.uint64))
    assert cheat.parties.key_holder.n_opened == 1


def test_an_earlier_round_is_not_opened_after_a_later_one() -> None:
    parties = Parties("bfv")
    first, second = Cheat(parties, 1), Cheat(parties, 2)
    second.try_to_open(second.sum("a", "b", "c"))
    with pytest.raises(ProtocolError, match="round 1 again"):
        first.hand_in(first.sum("a", "b", "c"))


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [entries["a"], entries["b"], entries["b"]],
        lambda entries: [entries["a"], entries["b"]],
        lambda entries: [],
        lambda entries: [*entries.values(), entries["a"]],
        lambda entries: [entries["a"], entries["b"], msgspec.structs.replace(entries["c"], owner="d")],
        lambda entries: [entries["a"], entries["b"], msgspec.structs.replace(entries["c"], signature=bytes(64))],
        lambda entries: [entries["a"], entries["b"], msgspec.structs.replace(entries["c"], channel=bytes(32))],
        lambda entries: [entries["a"], entries["b"], msgspec.structs.replace(entries["c"], round=2)],
    ],
    ids=["twice", "too few", "none", "four of three", "another name", "no signature", "another key", "another round"],
)
def test_a_manifest_that_is_not_signed_by_enough_distinct_owners_is_refused(change: object) -> None:
    cheat = Cheat(Parties("bfv"))
    with pytest.raises(ProtocolError):
        cheat.hand_in(cheat.sum("a", "b", "c"), change(cheat.entries))  # type: ignore[operator]
    assert cheat.parties.key_holder.n_opened == 0


OTHER: dict[str, object] = {
    "run": bytes(16),
    "round": 9,
    "owner": "b",
    "attempt": 9,
    "owners": ["a", "b", "d"],
    **dict.fromkeys(["key_id", "channel", "terms", "digest", "seed"], bytes(32)),
}


def test_signatures_cover_every_field() -> None:
    """Of a context, the key's digest stands for the key; see the test of a true signature on another key."""
    parties = Parties("bfv")
    cheat = Cheat(parties)
    challenge = cheat.hand_in(cheat.sum("a", "b", "c"))
    card = wire.decode(parties.key_holder.answer(wire.encode(ContextAsked(RUN, 1))), Context)
    for message, name in ((cheat.entries["a"], "a"), (challenge, KEY_HOLDER), (card, KEY_HOLDER)):
        assert is_from(message, name, parties.trust())
        for field in set(message.__struct_fields__) - {"identity", "signature", "context"}:
            changed = msgspec.structs.replace(message, **{field: OTHER[field]})
            assert not is_from(changed, name, parties.trust()), f"{type(message).__name__}.{field}"


def forged_entry(cheat: Cheat, name: str, identity: Identity) -> Contribution:
    return signed_by(identity, msgspec.structs.replace(cheat.entries["c"], owner=name))


def test_owners_that_the_server_made_up_are_refused() -> None:
    cheat = Cheat(Parties("bfv"))
    for name in ("c", "someone else"):
        entries = [cheat.entries["a"], cheat.entries["b"], forged_entry(cheat, name, Identity())]
        with pytest.raises(ProtocolError, match=name):
            cheat.hand_in(cheat.sum("a", "b", "c"), entries)


def test_one_party_under_two_names_counts_once_even_where_none_is_enrolled() -> None:
    parties = Parties("bfv", 4)
    parties.key_holder._trust = Trust({})
    cheat = Cheat(parties)
    twin = forged_entry(cheat, "twin", parties.identities["c"])
    with pytest.raises(ProtocolError, match="distinct"):
        cheat.hand_in(cheat.sum("b", "c", "c"), [cheat.entries["b"], cheat.entries["c"], twin])


def test_owners_that_were_given_another_model_are_not_summed() -> None:
    """Model inconsistency (Pasquini et al. 2022): c was given a model on which it has nothing to say."""
    cheat = Cheat(Parties("bfv", 4))
    other = msgspec.structs.replace(cheat.entries["c"], terms=bytes(32))
    signed = {**cheat.entries, "c": signed_by(cheat.parties.identities["c"], other)}
    with pytest.raises(ProtocolError, match="different models"):
        cheat.hand_in(cheat.sum("a", "b", "c", "d"), list(signed.values()))
    with pytest.raises(ProtocolError, match="signature of c"):
        cheat.hand_in(cheat.sum("a", "b", "c", "d"), [cheat.entries["a"], cheat.entries["b"], other])


def test_a_key_of_small_order_is_refused_before_anything_is_decrypted() -> None:
    cheat = Cheat(Parties("bfv"))
    weak = msgspec.structs.replace(cheat.entries["c"], channel=bytes(32))
    weak = signed_by(cheat.parties.identities["c"], weak)
    with pytest.raises(ProtocolError, match="small order"):
        cheat.hand_in(cheat.sum("a", "b", "c"), [cheat.entries["a"], cheat.entries["b"], weak])
    cheat.try_to_open(cheat.sum("a", "b", "c"))


def test_a_contribution_of_another_run_or_round_is_refused_by_the_server() -> None:
    parties = Parties("bfv")
    before = Cheat(parties, 1)
    combiner = parties.protection().combiner(2, parties.names, parties.ask)
    updates = parties.updates()
    with pytest.raises(UpdateRefused, match="another sum"):
        combiner.add(replace(before.sealed["a"], round=2))
    good = parties.seal("a", 2, updates["a"])
    other = parties.seal("b", 2, updates["b"])
    refused = {
        "no proof": replace(good, proof=b""),
        "another's proof": replace(good, proof=other.proof),
        "another's payload": replace(good, payload=other.payload),
        "another's name": replace(good, owner="b"),
        "other terms": replace(good, terms=bytes(32)),
        "a stranger": replace(good, owner="z"),
        "half": replace(good, payload=good.payload[: len(good.payload) // 2]),
        "words": replace(good, payload=good.payload.astype(np.uint32)),
    }
    for name, bad in refused.items():
        with pytest.raises(UpdateRefused):
            pytest.fail(f"{name} was taken: {combiner.add(bad)}")
    combiner.add(good)
    with pytest.raises(UpdateRefused):
        combiner.add(good)
    assert combiner.n_added == 1
    combiner.add(other)
    combiner.add(parties.seal("c", 2, updates["c"]))
    assert combiner.open().weighted_sum.tobytes() == parties.plain_total(2, updates).weighted_sum.tobytes()


def test_an_owner_seals_a_round_once_even_if_it_restarts() -> None:
    parties = Parties("bfv", 4)
    cheat = Cheat(parties)
    with pytest.raises(ProtocolError, match="not prepared or sealed"):
        parties.seal("a", 1, cheat.updates["a"])
    with pytest.raises(ProtocolError, match="round 1 again"):
        parties.begin(1, "a")
    parties.sealers["a"] = parties.sealer("a")
    with pytest.raises(ProtocolError, match="round 1 again"):
        parties.begin(1, "a")


def test_an_owner_answers_a_challenge_once() -> None:
    """Two answers under one pad would give the server a linear form of the update."""
    cheat = Cheat(Parties("bfv"))
    challenge = cheat.hand_in(cheat.sum("a", "b", "c"))
    owner = cheat.parties.sealers["a"]
    owner.answer(wire.encode(challenge))
    with pytest.raises(ProtocolError, match="before"):
        owner.answer(wire.encode(challenge))
    second = cheat.hand_in(cheat.sum("a", "b", "c"))
    assert second.attempt > challenge.attempt
    owner.answer(wire.encode(second))
    with pytest.raises(ProtocolError, match="before"):
        owner.answer(wire.encode(challenge))


def test_every_attempt_has_a_pad_of_its_own() -> None:
    """Else the difference of two answers would be a linear form of the update, in the clear."""
    cheat = Cheat(Parties("bfv"))
    padded, forms = [], []
    for _ in range(2):
        challenge = cheat.hand_in(cheat.sum("a", "b", "c"))
        padded.append(cheat.forms(challenge, "a"))
        known = probe.Probe(challenge.seed)
        known.feed(cheat.expected("a"))
        forms.append(known.forms)
    assert (padded[0] - padded[1] != forms[0] - forms[1]).all()


def test_a_challenge_of_the_servers_own_is_not_answered() -> None:
    cheat = Cheat(Parties("bfv"))
    challenge = cheat.hand_in(cheat.sum("a", "b", "c"))
    owner = cheat.parties.sealers["a"]
    changed = {
        "another seed": msgspec.structs.replace(challenge, seed=bytes(32)),
        "another attempt": replace_attempt(challenge),
        "another identity": signed_by(Identity(), challenge),
        "no identity": msgspec.structs.replace(challenge, signature=bytes(64)),
        "another round": signed_by(cheat.parties.identities[KEY_HOLDER], msgspec.structs.replace(challenge, round=2)),
    }
    for name, bad in changed.items():
        with pytest.raises(ProtocolError):
            pytest.fail(f"{name} was answered: {owner.answer(wire.encode(bad))!r}")


@pytest.mark.parametrize("owners", [["a", "b"], ["a", "a", "b"], ["b", "c", "d"]])
def test_an_owner_holds_the_key_holder_to_its_own_rules(owners: list[str]) -> None:
    parties = Parties("bfv", 4)
    cheat = Cheat(parties)
    challenge = Challenge(RUN, 1, cheat.key_id, 9, bytes(32), owners)
    with pytest.raises(ProtocolError, match="at least, this one among them"):
        parties.sealers["a"].answer(wire.encode(signed_by(parties.identities[KEY_HOLDER], challenge)))


def test_answers_hide_the_update_from_the_server() -> None:
    """The same update, seed and attempt: answers differ wholly, since keys are fresh."""
    forms = []
    for _ in range(2):
        parties = Parties("bfv")
        cheat = Cheat(parties)
        challenge = Challenge(RUN, 1, cheat.key_id, 1, bytes(32), parties.names)
        signed = signed_by(parties.identities[KEY_HOLDER], challenge)
        answer = wire.decode(parties.sealers["a"].answer(wire.encode(signed)), Answer)
        assert len(set(answer.forms)) > 8
        forms.append(answer.forms)
    assert forms[0] != forms[1]


def test_a_key_of_someone_in_between_is_refused() -> None:
    parties = Parties("bfv")
    middle = KeyHolderRole(Identity(), parties.trust(), parties.parameters, parties.fixed_point, 3, 100)
    card = middle.answer(wire.encode(ContextAsked(RUN, 1)))
    with pytest.raises(ProtocolError, match=KEY_HOLDER):
        parties.sealers["a"].answer(wire.encode(Prepare(RUN, 1, wire.decode(card, Context).key_id, card)))
    combiner = parties.protection(middle).combiner(1, parties.names, parties.ask)
    assert combiner.owners == []
    with pytest.raises(RoundAbandoned):
        combiner.open()


def test_a_true_signature_on_another_key_is_refused() -> None:
    parties = Parties("bfv")
    card = wire.decode(parties.key_holder.answer(wire.encode(ContextAsked(RUN, 1))), Context)
    other = SecretKey(parties.parameters)
    changed = [
        msgspec.structs.replace(card, context=other.public),
        msgspec.structs.replace(card, context=other.public, key_id=other.id),
        msgspec.structs.replace(card, channel=bytes(32)),
    ]
    for bad in changed:
        with pytest.raises(ProtocolError):
            parties.sealers["a"].answer(wire.encode(Prepare(RUN, 1, bad.key_id, wire.encode(bad))))
    with pytest.raises(ProtocolError, match="under another's name"):
        parties.sealers["a"].answer(wire.encode(Prepare(RUN, 1, bytes(32), wire.encode(card))))


@both
def test_a_context_that_holds_a_secret_key_is_refused(scheme: Scheme) -> None:
    parties = Parties(scheme)
    secret = SecretKey(parties.parameters)
    with_secret = secret._vectors._context.serialize(True, True, False, False)
    with pytest.raises(ProtocolError, match="comes with its secret key"):
        PublicKey(parties.parameters, with_secret)


@both
def test_a_context_of_other_parameters_is_refused(scheme: Scheme) -> None:
    parties = Parties(scheme)
    other = "bfv" if scheme == "ckks" else "ckks"
    others = [
        Parties(other).parameters,
        Parties(scheme, 200).parameters,
        replace(parties.parameters, coefficient_bits=(parties.parameters.coefficient_bits[0], 20)),
    ]
    for wrong in others:
        with pytest.raises(ProtocolError, match=r"other parameters|malformed"):
            PublicKey(parties.parameters, SecretKey(wrong).public)
    symmetric = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        4096,
        coeff_mod_bit_sizes=list(parties.parameters.coefficient_bits),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    for bad in (symmetric.serialize(save_secret_key=False), b"", b"\0" * 100):
        with pytest.raises(ProtocolError):
            PublicKey(parties.parameters, bad)


@pytest.mark.parametrize(
    "change",
    [
        lambda opened: msgspec.structs.replace(opened, sums=opened.sums[:-4]),
        lambda opened: msgspec.structs.replace(opened, n_contributions=2),
    ],
    ids=["too short", "fewer owners"],
)
def test_a_key_holder_that_opens_something_else_is_noticed(change: Callable[[Opened], Opened]) -> None:
    parties = Parties("bfv")

    class Changed:
        identity = parties.key_holder.identity

        def answer(self, message: bytes) -> bytes:
            answer = parties.key_holder.answer(message)
            return wire.encode(change(wire.decode(answer, Opened))) if b"Opened" in answer[:40] else answer

    with pytest.raises(RoundAbandoned, match="another sum"):
        total(parties, 1, parties.updates(), parties.protection(Changed()))


def test_more_updates_than_a_sum_holds_are_refused() -> None:
    """Its integers and its noise are bounded for so many."""
    parties = Parties("bfv", 4)
    combiner = parties.protection().combiner(1, parties.names, parties.ask)
    combiner._rules = replace(combiner._rules, fixed_point=replace(parties.fixed_point, n_owners=3))
    *some, last = [parties.seal(name, 1, update) for name, update in parties.updates().items()]
    for one in some:
        combiner.add(one)
    with pytest.raises(UpdateRefused, match="more than the sum can hold"):
        combiner.add(last)


def test_a_sealer_of_a_run_that_was_not_prepared_gives_nothing() -> None:
    parties = Parties("bfv")
    with pytest.raises(ProtocolError, match="not prepared"):
        sealed_by(parties.sealers["a"], "a", 1, parties.updates()["a"])


def encrypted(parties: Parties, cheat: Cheat, integers: np.ndarray) -> np.ndarray:
    """A payload of anything, under the round's public key."""
    key = PublicKey(parties.parameters, parties.key_holder._ring._keys[0].secret.public)
    slots = parties.parameters.n_slots
    return np.concatenate([key.seal(key.zero(), integers[at : at + slots]) for at in range(0, len(integers), slots)])


def public_half(parties: Parties) -> tuple[object, Stream]:
    """TenSEAL's vectors on the public key, as the server has it."""
    key = PublicKey(parties.parameters, parties.key_holder._ring._keys[0].secret.public)
    return key._vectors, key._stream


def coefficients(secret: SecretKey, slots: np.ndarray) -> list[int]:
    """The polynomial that has these values in its slots, with coefficients nearest zero."""
    context = secret._vectors._context.seal_context()
    plain = seal.Plaintext()
    seal.BatchEncoder(context).encode([int(one) for one in slots], plain)
    modulus = context.first_context_data().parms().plain_modulus().value()
    found = [plain[place] for place in range(plain.coeff_count())]
    return [one - modulus if one > modulus // 2 else one for one in found]


def add_key_to(words: np.ndarray, parties: Parties) -> None:
    """Make the first piece open to what it is plus the secret key, by adding q/t to the constant of c1."""
    modulus, start = parties.parameters.modulus, parties.parameters.poly_degree
    words[start] = (int(words[start]) + round(modulus / parties.parameters.encoding)) % modulus


def replace_attempt(challenge: Challenge) -> Challenge:
    return msgspec.structs.replace(challenge, attempt=challenge.attempt + 1)
