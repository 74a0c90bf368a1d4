"""Toy federations under masked sums: owners in a dict, and a server that is honest or does as a test says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.errors import ProtocolError, RoundAbandoned
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.protection.masked import masks, shamir
from fedray.protection.masked import owner as owner_module
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.masks import Mask
from fedray.protection.masked.messages import (
    Alive,
    AliveSigned,
    Briefing,
    Delivery,
    Invite,
    KeyList,
    Keys,
    Receipt,
    Reveal,
    Revealed,
    Shared,
)
from fedray.protection.masked.owner import MaskedSealer
from fedray.protection.masked.server import MaskedCombiner, MaskedProtection
from fedray.protection.plain import PlainCombiner, PlainSealer
from fedray.protection.wire import Message, canonical, decode, encode
from fedray.values import Absent, Assignment, Payload, RoundPlan, Sealed, Total, Update, Vector, Work

RUN = bytes(range(16))
OTHER_RUN = bytes(range(16, 32))
MAY_LIE = Rules(server="may_lie")
SEED = 7
QUESTIONS = (Invite, KeyList, Delivery, Alive, Reveal)
ANSWERS = (Keys, Shared, Receipt, AliveSigned, Revealed)
STAGES = ("keys", "shares", "receipts", "updates", "signed", "revealed")
"""When an owner may fall silent: it does not give this any more, nor what comes after."""
STAGE_OF: Mapping[type[Message], str] = dict(
    zip(QUESTIONS, ("keys", "shares", "receipts", "signed", "revealed"), strict=True)
)

Tamper = Callable[[str, Message, bytes], bytes]
"""What an owner answers instead, given its name, what it was asked and what it would have said."""


def plan(number: int) -> RoundPlan:
    return RoundPlan(number, Work(1, "epochs"), 0.0, True, "uniform")


VECTOR = np.arange(5, dtype=np.float32)
"""The model that everyone is given."""


def terms(number: int, weight_bound: int = 1) -> bytes:
    """What everyone is asked alike in a round."""
    return assignment("", number, b"", weight_bound).terms(VECTOR)


def assignment(name: str, number: int, briefing: bytes, weight_bound: int = 1) -> Assignment:
    return Assignment(name, plan(number), Work(1, "epochs"), None, weight_bound, briefing)


def sealed(name: str, number: int, payload: Payload, weight_bound: int = 1) -> Sealed:
    return Sealed(name, number, 1, True, 0.0, None, terms(number, weight_bound), payload=payload)


class Toy:
    """A federation in one process, with an honest server.

    Attributes:
        gone: owner's name to the stage from which on it is silent.
        tamper: how answers are changed on their way.
        said: (owner, question, answer), as bytes, in order.
    """

    def __init__(
        self,
        folder: Path,
        n: int = 5,
        rules: Rules | None = None,
        n_values: int = 3,
        enrolled: bool = False,
        clip: float = 1.0,
        precision: float = 2.0**-10,
        weight_bound: int = 1,
    ) -> None:
        self.folder = folder
        self.rules = rules or Rules()
        self.names = [f"o{number:02}" for number in range(n)]
        self.fixed_point = FixedPoint(n_values, n, clip, precision)
        self.weight_bound = weight_bound
        self.identities = {name: Identity() for name in self.names}
        self.enrolled = {name: one.public for name, one in self.identities.items()} if enrolled else {}
        self.sealers = {name: self.sealer(name) for name in self.names}
        self.protection = self.server(RUN)
        draws = np.random.default_rng(n)
        self.updates = {
            name: Update(
                draws.uniform(-clip, clip, n_values).astype(np.float32), int(draws.integers(weight_bound)) + 1, 1, True
            )
            for name in self.names
        }
        self.gone: dict[str, str] = {}
        self.tamper: Tamper = lambda name, asked, answer: answer
        self.said: list[tuple[str, bytes, bytes]] = []

    def sealer(self, name: str) -> MaskedSealer:
        """This owner's half, as it is after a start or a restart."""
        journal = Journal(self.folder / f"{name}.json")
        trust = Trust(self.enrolled)
        return MaskedSealer(name, self.identities[name], trust, self.rules, self.fixed_point, SEED, journal)

    def server(self, run: bytes) -> MaskedProtection:
        """The server's half, as it is after a start."""
        return MaskedProtection(self.rules, self.fixed_point, self.weight_bound, run, self.enrolled)

    def restart(self, run: bytes = OTHER_RUN, owners: Iterable[str] | None = None) -> None:
        """Start the server anew, and these owners' processes; all when left out."""
        self.protection = self.server(run)
        self.sealers |= {name: self.sealer(name) for name in (self.names if owners is None else owners)}

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes | Absent]:
        answers: dict[str, bytes | Absent] = {}
        for name, message in messages.items():
            asked = decode(message, *QUESTIONS)
            if self.is_gone(name, STAGE_OF[type(asked)]):
                answers[name] = Absent(name, 1, "absent", "gone")
                continue
            try:
                answer = self.tamper(name, asked, self.sealers[name].answer(message))
            except ProtocolError as error:
                answers[name] = Absent(name, 1, "refused", error.found)
                continue
            self.said.append((name, message, answer))
            answers[name] = answer
        return answers

    def is_gone(self, name: str, stage: str) -> bool:
        return name in self.gone and STAGES.index(stage) >= STAGES.index(self.gone[name])

    def prepared(self, number: int = 1) -> MaskedCombiner:
        return self.protection.combiner(number, self.names, self.ask)

    def seal(self, combiner: MaskedCombiner, name: str, number: int = 1) -> Payload:
        asked = assignment(name, number, combiner.briefing(name), self.weight_bound)
        return self.sealers[name].seal(self.updates[name], asked, asked.terms(VECTOR))[0]

    def uploaded(self, number: int = 1) -> MaskedCombiner:
        """A round up to the point where it is to be opened."""
        combiner = self.prepared(number)
        for name in list(combiner.owners):
            if not self.is_gone(name, "updates"):
                combiner.add(sealed(name, number, self.seal(combiner, name, number), self.weight_bound))
        return combiner

    def opened(self, number: int = 1) -> tuple[Total, list[str]]:
        """The sum of a round and whose updates are in it."""
        combiner = self.uploaded(number)
        return combiner.open(), list(combiner._alive)

    def plain(self, names: Iterable[str], number: int = 1) -> Total:
        """The sum of the same updates without protection."""
        chosen = sorted(names)
        combiner = PlainCombiner(self.fixed_point, self.weight_bound, chosen)
        for name in chosen:
            sealer = PlainSealer(self.fixed_point, SEED)
            asked = assignment(name, number, b"", self.weight_bound)
            payload, _ = sealer.seal(self.updates[name], asked, asked.terms(VECTOR))
            combiner.add(sealed(name, number, payload, self.weight_bound))
        return combiner.open()

    def require_exact(self, number: int = 1) -> list[str]:
        """Run a round; its sum has the bits of the plain one. Who is in it."""
        total, alive = self.opened(number)
        require_same(total, self.plain(alive, number))
        return alive

    def answers(self, kind: type[Message]) -> Iterator[tuple[str, Any]]:
        """What owners have said of one kind."""
        for name, _, answer in self.said:
            try:
                yield name, decode(answer, kind)
            except ProtocolError:
                continue

    def revealed(self) -> list[tuple[str, Revealed]]:
        return list(self.answers(Revealed))


def require_same(found: Total, expected: Total) -> None:
    assert found.weight == expected.weight
    assert found.weighted_sum.tobytes() == expected.weighted_sum.tobytes()


class Fork:
    """A round that is ready to be opened, to be played to its end again and again with other dropouts."""

    def __init__(self, toy: Toy, number: int = 1) -> None:
        self.toy = toy
        self.number = number
        self.combiner = toy.prepared(number)
        self.payloads = {name: toy.seal(self.combiner, name, number) for name in self.combiner.owners}
        self._rounds = snapshot(toy.sealers)

    def played(self, uploads: Iterable[str], gone: Mapping[str, str]) -> MaskedCombiner:
        """The combiner with these uploads, while owners are silent from these stages on; ready to be opened."""
        restore(self.toy.sealers, self._rounds)
        self.toy.gone, self.toy.said = dict(gone), []
        combiner = copy.copy(self.combiner)
        combiner._sum, combiner._alive = np.zeros_like(self.combiner._sum), {}
        combiner._stages, combiner.owners = dict(self.combiner._stages), list(self.combiner.owners)
        for name in uploads:
            combiner.add(sealed(name, self.number, self.payloads[name], self.toy.weight_bound))
        return combiner


def snapshot(sealers: Mapping[str, MaskedSealer]) -> dict[str, dict[int, Any]]:
    """Where owners are in their rounds."""
    return {name: _copied(sealer._rounds) for name, sealer in sealers.items()}


def restore(sealers: Mapping[str, MaskedSealer], rounds: Mapping[str, Mapping[int, Any]]) -> None:
    for name, sealer in sealers.items():
        sealer._rounds = _copied(rounds[name])


def _copied(rounds: Mapping[int, Any]) -> dict[int, Any]:
    copies = {number: copy.copy(one) for number, one in rounds.items()}
    for one in copies.values():
        one.shares = dict(one.shares)
    return copies


class LyingServer:
    """A server that a test plays by hand: what it says follows the protocol but for what the test makes it say."""

    def __init__(self, toy: Toy, number: int = 1, names: Sequence[str] | None = None, run: bytes = RUN) -> None:
        self.toy = toy
        self.number = number
        self.run = run
        self.names = list(names or toy.names)
        self.graph = toy.rules.graph(run, number, self.names)
        self.keys: dict[str, Keys] = {}
        self.shared: dict[str, Shared] = {}
        self.signatures: dict[str, bytes] = {}

    def at(self, stage: str) -> LyingServer:
        """Follow the protocol up to a stage, which is still to come."""
        steps = {
            "keys": lambda: None,
            "shares": self.invite,
            "receipts": self.share,
            "updates": self.deliver,
            "signed": self.seal_all,
            "revealed": self.sign_all,
        }
        for name in STAGES[: STAGES.index(stage) + 1]:
            steps[name]()
        return self

    def ask(self, name: str, message: Message) -> Any:
        return decode(self.toy.sealers[name].answer(encode(message)), *ANSWERS)

    def invite(self) -> None:
        self.keys = {name: self.ask(name, Invite(self.run, self.number)) for name in self.names}

    def key_list(self, name: str, swapped: Mapping[str, Keys] | None = None) -> KeyList:
        keys = {**self.keys, **(swapped or {})}
        return KeyList(self.run, self.number, self.names, [keys[peer] for peer in self.graph.neighbours(name)])

    def share(self) -> None:
        self.shared = {name: self.ask(name, self.key_list(name)) for name in self.names}

    def delivery(self, name: str) -> Delivery:
        sent = {peer: self.shared[peer].sealed[name] for peer in self.graph.neighbours(name)}
        return Delivery(self.run, self.number, sent)

    def deliver(self) -> dict[str, Receipt]:
        return {name: self.ask(name, self.delivery(name)) for name in self.names}

    def seal(self, name: str, owners: Sequence[str] | None = None, **asked: Any) -> Payload:
        briefing = Briefing(self.run, self.number, list(self.names if owners is None else owners))
        return self.seal_by(name, encode(briefing), **asked)

    def seal_by(
        self,
        name: str,
        briefing: bytes,
        number: int = 0,
        owner: str = "",
        update: Update | None = None,
        vector: Vector = VECTOR,
        **asked: Any,
    ) -> Payload:
        base = assignment(owner or name, number or self.number, briefing, self.toy.weight_bound)
        told = replace(base, **asked)
        return self.toy.sealers[name].seal(update or self.toy.updates[name], told, told.terms(vector))[0]

    def seal_all(self) -> dict[str, Payload]:
        return {name: self.seal(name) for name in self.names}

    def sign(self, name: str, alive: Sequence[str] | None = None) -> bytes:
        answer = self.ask(name, Alive(self.run, self.number, list(self.names if alive is None else alive)))
        assert isinstance(answer, AliveSigned)
        return answer.signature

    def sign_all(self) -> None:
        self.signatures = {name: self.sign(name) for name in self.names}

    def reveal(self, name: str, signatures: Mapping[str, bytes] | None = None) -> Revealed:
        given = self.signatures if signatures is None else signatures
        answer = self.ask(name, Reveal(self.run, self.number, {k: v for k, v in given.items() if k != name}))
        assert isinstance(answer, Revealed)
        return answer


@contextmanager
def refused(about: str) -> Iterator[None]:
    """What is inside must be refused, and for this reason."""
    with pytest.raises(ProtocolError, match=about):
        yield


def require_abandoned(toy: Toy, combiner: MaskedCombiner) -> None:
    """The sum is not opened, and no secret can be put together from what owners gave."""
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert combiner.record().outcome == "abandoned"
    require_nothing_learned(toy)


def require_nothing_learned(toy: Toy, threshold: int | None = None) -> None:
    """Nobody's secret has been opened: fewer shares than the threshold are out for every single one."""
    counts: dict[tuple[str, str], int] = {}
    for _, revealed in toy.revealed():
        for kind, shares in (("self", revealed.of_self_masks), ("key", revealed.of_keys)):
            for name in shares:
                counts[kind, name] = counts.get((kind, name), 0) + 1
    assert max(counts.values(), default=0) < (len(toy.names) // 2 + 1 if threshold is None else threshold)


def opened_self_seed(server: LyingServer, name: str, revealed: Mapping[str, Revealed]) -> bytes | None:
    """An owner's self seed from what its holders gave; None where they gave too little."""
    points = {by: point for point, by in enumerate(server.graph.holders(name), start=1)}
    shares = {points[by]: one.of_self_masks[name] for by, one in revealed.items() if name in one.of_self_masks}
    if len(shares) < server.graph.threshold:
        return None
    return shamir.combine({point: shares[point] for point in sorted(shares)[: server.graph.threshold]})


def without_self_masks(server: LyingServer, vector: Payload, names: Iterable[str]) -> Payload:
    """What a server can read once it has sent lists of survivors and asked everyone for shares."""
    server.sign_all()
    revealed = {name: server.reveal(name) for name in server.names}
    seeds = {name: opened_self_seed(server, name, revealed) for name in names}
    known = [Mask.own(seed, server.run, server.number, name) for name, seed in seeds.items() if seed is not None]
    found = vector.copy()
    masks.apply_all(found, [mask.inverse for mask in known])
    return found


def changed(keys: Keys, **fields: object) -> Keys:
    return Keys(**{**{name: getattr(keys, name) for name in keys.__struct_fields__}, **fields})


def signed_keys(name: str, identity: Identity, number: int = 1, run: bytes = RUN, **given: bytes) -> Keys:
    """Keys of an attacker's choice, well signed by this identity."""
    channel = given.get("channel") or fresh_public()
    mask = given.get("mask") or fresh_public()
    signature = identity.sign("keys", run, number, name, channel, mask)
    return Keys(run, number, name, identity.public, channel, mask, signature)


def fresh_public() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@contextmanager
def quick_signatures() -> Iterator[None]:
    """Check each signature once only, where many owners would check the same; for tests of thousands of rounds."""
    real, known = owner_module.is_signed, {}

    def is_signed(public: bytes, signature: bytes, purpose: str, *fields: object) -> bool:
        key = (public, signature, purpose, canonical(*fields))
        if key not in known:
            known[key] = real(public, signature, purpose, *fields)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner_module, "is_signed", is_signed)
        yield


def read(data: bytes) -> Message:
    """Any message but a briefing."""
    return decode(data, *QUESTIONS, *ANSWERS)
