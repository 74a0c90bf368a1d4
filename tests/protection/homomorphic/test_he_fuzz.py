"""Whatever bytes a peer sends, the answer is a refusal: never another exception, never a crash."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from homomorphic_parties import RUN, SCHEMES, Cheat, Parties
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ProtocolError, UpdateRefused
from fedray.protection import wire
from fedray.protection.homomorphic.cipher import PublicKey, SecretKey
from fedray.protection.homomorphic.messages import Answers, ContextAsked, Contribution, SumSent
from fedray.protection.homomorphic.parameters import Scheme

both = pytest.mark.parametrize("scheme", SCHEMES)
quick = settings(deadline=None, max_examples=60, derandomize=True)
wild = st.binary(max_size=200)


@st.composite
def mangled(draw: st.DrawFn, size: int = 10**6) -> Any:
    """A way to truncate, lengthen or flip bytes; most flips are near the start, where the structure is."""
    cut = draw(st.none() | st.integers(0, size))
    more = draw(st.binary(max_size=20))
    places = st.integers(0, 300) | st.integers(0, size)
    flips = draw(st.lists(st.tuples(places, st.integers(1, 255)), max_size=6))

    def change(data: bytes) -> bytes:
        changed = bytearray(data[: cut if cut is None else cut % (len(data) + 1)])
        for place, by in flips:
            if changed:
                changed[place % len(changed)] ^= by
        return bytes(changed) + more

    return change


@cache
def parties_of(scheme: Scheme) -> Parties:
    return Parties(scheme, n_values=100)


@cache
def public_of(scheme: Scheme) -> bytes:
    return SecretKey(parties_of(scheme).parameters).public


@both
@quick
@given(change=mangled())
def test_public_keys(scheme: Scheme, change: Any) -> None:
    """They are signed, so that nobody can send one that is not the key holder's; SEAL refuses others all the same."""
    with contextlib.suppress(ProtocolError):
        PublicKey(parties_of(scheme).parameters, change(public_of(scheme)))


@both
@quick
@given(change=mangled())
def test_payloads_and_their_proofs(scheme: Scheme, change: Any) -> None:
    parties, sealed = parties_of(scheme), sealed_once(scheme)
    combiner = parties.protection().combiner(2, [], parties.ask)
    with contextlib.suppress(UpdateRefused):
        parties.packing.check(np.frombuffer(change(sealed.payload.tobytes()), dtype=np.uint8))
    with contextlib.suppress(ProtocolError):
        wire.decode(change(sealed.proof), Contribution)
    with pytest.raises(UpdateRefused):
        combiner.add(sealed)


@cache
def sealed_once(scheme: Scheme) -> Any:
    parties = parties_of(scheme)
    parties.begin(1, "a")
    return parties.seal("a", 1, parties.updates()["a"])


@both
@quick
@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), repeat=st.booleans())
def test_any_coefficients_below_the_modulus_decrypt_to_something(
    scheme: Scheme, words: list[int], repeat: bool
) -> None:
    """All that a peer decides about a ciphertext is its coefficients: there is nothing in them to crash on."""
    parties = parties_of(scheme)
    filled = np.zeros(parties.packing.words_a_piece, dtype=np.uint64)
    chosen = np.array(words, dtype=np.uint64) % np.uint64(parties.parameters.modulus)
    filled[:] = np.resize(chosen, filled.shape) if repeat else 0
    filled[: len(chosen)] = chosen
    assert len(secret_of(scheme).open(filled)) == parties.parameters.n_slots


@both
def test_coefficients_beyond_the_modulus_are_refused(scheme: Scheme) -> None:
    parties = parties_of(scheme)
    words = np.full(parties.packing.words_a_piece, parties.parameters.modulus, dtype=np.uint64)
    with pytest.raises(ProtocolError, match="no ciphertext"):
        secret_of(scheme).open(words)
    with pytest.raises(UpdateRefused, match="beyond the modulus"):
        parties.packing.check(parties.packing.packed(words))


@both
def test_a_payload_of_another_version_or_width_is_refused(scheme: Scheme) -> None:
    parties = parties_of(scheme)
    payload = parties.packing.packed(parties.packing.zeros())
    parties.packing.check(payload)
    for place in range(8):
        changed = payload.copy()
        changed[place] ^= 1
        with pytest.raises(UpdateRefused, match="another version or other parameters"):
            parties.packing.check(changed)


@cache
def secret_of(scheme: Scheme) -> SecretKey:
    return SecretKey(parties_of(scheme).parameters)


@quick
@given(change=mangled(), data=wild)
def test_messages_to_an_owner(change: Any, data: bytes) -> None:
    parties = Parties("bfv", n_values=10)
    said: list[bytes] = []
    parties.protection().combiner(1, "a", lambda messages: said.extend(messages.values()) or {})  # type: ignore[func-returns-value,arg-type]
    for message in (change(said[0]), data, wire.encode(ContextAsked(RUN, 1))[:8] + data):
        with contextlib.suppress(ProtocolError):
            parties.sealers["a"].answer(message)


@quick
@given(change=mangled(), data=wild)
def test_messages_to_the_key_holder(change: Any, data: bytes) -> None:
    cheat = cheat_once()
    parties = cheat.parties
    payload = parties.packing.packed(cheat.sum("a", "b", "c")).tobytes()
    entries = list(cheat.entries.values())
    whole = wire.encode(SumSent(RUN, 1, cheat.key_id, entries, payload))
    asked = wire.encode(ContextAsked(RUN, 1))
    inside = wire.encode(SumSent(RUN, 1, cheat.key_id, entries, change(payload)))
    for message in (change(whole), change(asked), inside, data, wire.encode(Answers(RUN, 1, 1, bytes(16)))[:-1] + data):
        with contextlib.suppress(ProtocolError):
            parties.key_holder.answer(message)
    assert parties.key_holder.n_opened == 0


@cache
def cheat_once() -> Cheat:
    return Cheat(Parties("bfv", n_values=100))


def test_a_message_longer_than_any_sum_is_not_even_decoded() -> None:
    parties = parties_of("bfv")
    with pytest.raises(ProtocolError, match="one sum at most"):
        parties.key_holder.answer(bytes(parties.packing.n_bytes + 10**7 + 10**6))


@quick
@given(data=wild)
def test_answers_to_the_server(data: bytes) -> None:
    """Owners and key holder that answer anything: owners are lost or the round is abandoned, and nothing else."""
    parties = Parties("bfv", n_values=10)
    combiner = parties.protection().combiner(1, parties.names, lambda messages: dict.fromkeys(messages, data))
    assert set(combiner.lost) == set(parties.names)
    assert combiner.owners == []
