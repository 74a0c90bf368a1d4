"""The secret key is with the key holder and nowhere else; what it gives out carries no noise."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from homomorphic_parties import RUN, SCHEMES, Cheat, Parties
from tenseal import _ts_cpp

from fedray.protection import wire
from fedray.protection.homomorphic.cipher import SecretKey
from fedray.protection.homomorphic.messages import Answers, Challenge, Opened, SumSent
from fedray.protection.homomorphic.parameters import Scheme

both = pytest.mark.parametrize("scheme", SCHEMES)
ROLES: dict[int, Any] = {}
"""Key holders out of reach of whoever walks objects."""


class Distant:
    """What a server has of a key holder: a way to send it messages."""

    __slots__ = ("number", "received", "sent")

    def __init__(self, role: Any) -> None:
        self.number = len(ROLES)
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        ROLES[self.number] = role

    @property
    def identity(self) -> bytes:
        return bytes(ROLES[self.number].identity)

    def answer(self, message: bytes) -> bytes:
        answer = bytes(ROLES[self.number].answer(message))
        self.sent.append(message)
        self.received.append(answer)
        return answer


def reachable(*roots: object) -> Iterator[object]:
    """All objects that can be reached, but not by way of modules, types or functions."""
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, types.ModuleType | type | types.FunctionType | types.BuiltinFunctionType):
            continue
        seen.add(id(one))
        yield one
        todo += gc.get_referents(one)


@both
def test_the_secret_key_is_nowhere_but_at_the_key_holder(scheme: Scheme) -> None:
    parties = Parties(scheme)
    distant = Distant(parties.key_holder)
    protection = parties.protection(distant)
    combiner = protection.combiner(1, parties.names, lambda messages: parties.ask(dict(messages)))
    sealed = {name: parties.seal(name, 1, update) for name, update in parties.updates().items()}
    for one in sealed.values():
        combiner.add(one)
    combiner.open()

    (key,) = parties.key_holder._ring._keys
    held = list(reachable(protection, combiner, parties.sealers, sealed))
    assert not [one for one in held if isinstance(one, SecretKey) or one is key]
    contexts = [one for one in held if isinstance(one, _ts_cpp.TenSEALContext)]
    assert len(contexts) >= 3
    assert not any(context.has_secret_key() for context in contexts)
    assert any(isinstance(one, SecretKey) for one in reachable(parties.key_holder)), "the walk would find it"

    secret = serialised_secret(key.secret)
    assert secret in key.secret._vectors._context.serialize(True, True, False, False)
    channel = key.channel.private_bytes_raw()
    for said in [*distant.received, *parties.said, *(one.proof for one in sealed.values())]:
        assert secret not in said
        assert channel not in said


def serialised_secret(key: SecretKey) -> bytes:
    """A piece of the secret key that its serialised form has and the public one has not."""
    whole, public = key._vectors._context.serialize(True, True, False, False), key.public
    piece = whole[-400:-300]
    assert piece not in public
    return piece


def test_a_secret_key_cannot_be_pickled_or_shown() -> None:
    import pickle

    parties = Parties("bfv")
    parties.begin(1)
    (key,) = parties.key_holder._ring._keys
    with pytest.raises(TypeError):
        pickle.dumps(parties.key_holder)
    assert "secret" not in repr(key)
    assert "channel=<" not in repr(key)


@both
def test_what_is_given_out_is_integers_without_a_trace_of_noise(scheme: Scheme) -> None:
    """CKKS decrypts to the sum plus noise that is made of the key (Li and Micciancio 2021). None of it leaves."""
    parties = Parties(scheme)
    distant = Distant(parties.key_holder)
    cheat = Cheat(parties)
    challenge = cheat.hand_in(cheat.sum("a", "b", "c"))
    forms = cheat.forms(challenge, "a", "b", "c")
    key = parties.key_holder._ring._keys[0].secret
    noisy = key._vectors._make(
        key._vectors._context, key._stream.serialised(cheat.sum("a", "b", "c")[: parties.packing.words_a_piece])
    ).decrypt()
    assert (scheme == "ckks") == any(value != round(value) for value in noisy), "there is noise to be hidden"
    message = wire.encode(Answers(RUN, 1, challenge.attempt, forms.tobytes()))
    opened = wire.decode(distant.answer(message), Opened)
    assert len(opened.sums) == 4 * parties.fixed_point.length, "32 bits a value: integers"
    assert np.array_equal(np.frombuffer(opened.sums, dtype="<i4"), cheat.expected("a", "b", "c"))


def test_the_key_holder_never_receives_a_single_contribution() -> None:
    parties = Parties("bfv")
    distant = Distant(parties.key_holder)
    protection = parties.protection(distant)
    combiner = protection.combiner(1, parties.names, parties.ask)
    sealed = {name: parties.seal(name, 1, update) for name, update in parties.updates().items()}
    for one in sealed.values():
        combiner.add(one)
    combiner.open()
    for one in sealed.values():
        assert not any(one.payload[1000:1200].tobytes() in message for message in distant.sent)
    sums = [message for message in distant.sent if b"SumSent" in message[:40]]
    assert len(sums) == 1
    assert isinstance(wire.decode(sums[0], SumSent), SumSent)


def test_the_key_holder_receives_answers_summed_only() -> None:
    """One answer alone, with its pad taken off, is a linear form of one update."""
    parties = Parties("bfv")
    distant = Distant(parties.key_holder)
    combiner = parties.protection(distant).combiner(1, parties.names, parties.ask)
    for name, update in parties.updates().items():
        combiner.add(parties.seal(name, 1, update))
    parties.said.clear()
    combiner.open()
    answers = [said[-16:] for said in parties.said if b"Answer" in said[:40]]
    assert len(answers) == 3
    assert not any(answer in message for answer in answers for message in distant.sent)
    assert [b"Challenge" in said[:40] for said in parties.said].count(True) == 3
    assert wire.decode(parties.said[0], Challenge).owners == parties.names
