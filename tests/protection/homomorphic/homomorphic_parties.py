"""All parties of a homomorphic federation in one process, and the server's messages one by one for those that cheat."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np

from fedray.config.learning import KEY_HOLDER
from fedray.errors import ProtocolError
from fedray.protection import wire
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic import probe
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
)
from fedray.protection.homomorphic.owner import HomomorphicSealer
from fedray.protection.homomorphic.parameters import Scheme, choose
from fedray.protection.homomorphic.server import HomomorphicProtection
from fedray.protection.homomorphic.words import Packing, add
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.values import Absent, Assignment, RoundPlan, Sealed, Total, Update, Work

RUN = b"a run's 16 bytes"
OTHER_RUN = b"another server's"
TERMS = bytes(range(32))
SEED = 7
WEIGHT_BOUND = 1000
SCHEMES: tuple[Scheme, ...] = ("bfv", "ckks")


class TemporaryJournal(Journal):
    """A journal in a folder that goes when it does."""

    def __init__(self) -> None:
        folder = mkdtemp(prefix="fedray-")
        weakref.finalize(self, rmtree, folder)
        super().__init__(Path(folder) / "journal.json")


class Parties:
    """A key holder and owners ``a``, ``b``, ... with enrolled identities; the server's half is made on demand."""

    def __init__(
        self, scheme: Scheme, n_owners: int = 3, n_values: int = 5000, min_owners: int = 3, key_rounds: int = 100
    ) -> None:
        self.names = [chr(ord("a") + place) for place in range(n_owners)]
        self.identities = {name: Identity() for name in [*self.names, KEY_HOLDER]}
        self.enrolled = {name: identity.public for name, identity in self.identities.items()}
        self.fixed_point = FixedPoint(n_values, n_owners, clip=8.0, precision=1e-5)
        self.parameters = choose(scheme, self.fixed_point)
        self.packing = Packing(self.parameters, self.fixed_point.length)
        self.min_owners = min_owners
        self.key_rounds = key_rounds
        self.key_holder = self.opened_key_holder()
        self.journals = {name: TemporaryJournal() for name in self.names}
        self.sealers = {name: self.sealer(name) for name in self.names}
        self.said: list[bytes] = []

    def trust(self) -> Trust:
        return Trust(self.enrolled)

    def opened_key_holder(self) -> KeyHolderRole:
        """A key holder as it starts."""
        return KeyHolderRole(
            self.identities[KEY_HOLDER],
            self.trust(),
            self.parameters,
            self.fixed_point,
            self.min_owners,
            self.key_rounds,
        )

    def sealer(self, name: str) -> HomomorphicSealer:
        """An owner as it starts; its journal outlives it."""
        return HomomorphicSealer(
            name,
            self.identities[name],
            self.trust(),
            self.parameters,
            self.fixed_point,
            SEED,
            self.min_owners,
            self.journals[name],
        )

    def protection(self, key_holder: Any = None, run: bytes = RUN) -> HomomorphicProtection:
        return HomomorphicProtection(
            self.parameters,
            self.fixed_point,
            WEIGHT_BOUND,
            run,
            self.min_owners,
            key_holder or self.key_holder,
            self.trust(),
        )

    def ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes | Absent]:
        """Carry messages to owners as a cohort does."""
        answers: dict[str, bytes | Absent] = {}
        for name, message in messages.items():
            try:
                answers[name] = self.sealers[name].answer(message)
            except ProtocolError as error:
                answers[name] = Absent(name, 0, "failed", error.found)
            self.said += [message, *([given] if isinstance(given := answers[name], bytes) else [])]
        return answers

    def updates(self, seed: int = 0, names: Iterable[str] | None = None) -> dict[str, Update]:
        """Random updates that reach the clip, with random weights."""
        draw = np.random.default_rng(seed)
        n = self.fixed_point.n_values
        return {
            name: Update(draw.uniform(-8, 8, n).astype(np.float32), int(draw.integers(1, WEIGHT_BOUND + 1)), 1, True)
            for name in names or self.names
        }

    def seal(self, name: str, round: int, update: Update) -> Sealed:
        return sealed_by(self.sealers[name], name, round, update)

    def begin(self, round: int, names: Sequence[str] | None = None, run: bytes = RUN) -> bytes:
        """What a server does before owners train; the key's digest."""
        card = self.key_holder.answer(wire.encode(ContextAsked(run, round)))
        key_id = wire.decode(card, Context).key_id
        for name in names or self.names:
            self.sealers[name].answer(wire.encode(Prepare(run, round, key_id, card)))
        return key_id

    def plain_total(self, round: int, updates: Mapping[str, Update]) -> Total:
        """The same round under plain protection."""
        combiner = PlainProtection(self.fixed_point, WEIGHT_BOUND).combiner(round, list(updates), self.ask)
        for name, update in updates.items():
            combiner.add(sealed_by(PlainSealer(self.fixed_point, SEED), name, round, update))
        return combiner.open()

    def words(self, payload: np.ndarray) -> np.ndarray:
        """The coefficients in a payload."""
        self.packing.check(payload)
        total = self.packing.zeros()
        self.packing.add(total, payload)
        return total

    def integers(self, name: str, round: int, update: Update) -> np.ndarray:
        """What an owner encrypts."""
        encoded = self.fixed_point.encode(update, assignment(name, round), SEED)
        return self.fixed_point.signed(encoded).astype(np.int64)


class Cheat:
    """A server that has every contribution of a round, and may hand in what it likes."""

    def __init__(self, parties: Parties, round: int = 1, seed: int = 0, run: bytes = RUN) -> None:
        self.parties = parties
        self.round = round
        self.run = run
        self.key_id = parties.begin(round, run=run)
        self.updates = parties.updates(seed)
        self.sealed = {name: parties.seal(name, round, update) for name, update in self.updates.items()}
        self.words = {name: parties.words(one.payload) for name, one in self.sealed.items()}
        self.entries = {name: wire.decode(one.proof, Contribution) for name, one in self.sealed.items()}

    def sum(self, *names: str) -> np.ndarray:
        """The honest sum of some owners' ciphertexts; a name given twice counts twice."""
        total = self.parties.packing.zeros()
        for name in names:
            add(total, self.words[name], self.parties.parameters.modulus)
        return total

    def hand_in(self, words: np.ndarray, manifest: Sequence[Contribution] | None = None) -> Challenge:
        manifest = list(self.entries.values()) if manifest is None else list(manifest)
        payload = self.parties.packing.packed(words).tobytes()
        message = wire.encode(SumSent(self.run, self.round, self.key_id, manifest, payload))
        return wire.decode(self.parties.key_holder.answer(message), Challenge)

    def forms(self, challenge: Challenge, *names: str) -> np.ndarray:
        """The sum of some owners' answers."""
        total = np.zeros(probe.N_FORMS, dtype=np.uint64)
        for name, answer in self.parties.ask(dict.fromkeys(names, wire.encode(challenge))).items():
            assert isinstance(answer, bytes), f"{name}: {answer}"
            total += probe.from_bytes(wire.decode(answer, Answer).forms)
        return total

    def open(self, challenge: Challenge, forms: np.ndarray) -> np.ndarray:
        """The integers that the key holder gives out, if it does."""
        message = wire.encode(Answers(self.run, self.round, challenge.attempt, probe.to_bytes(forms)))
        opened = wire.decode(self.parties.key_holder.answer(message), Opened)
        return np.frombuffer(opened.sums, dtype="<i4").astype(np.int64)

    def try_to_open(self, words: np.ndarray) -> np.ndarray:
        """Hand in anything under the true manifest, with all owners' true answers."""
        challenge = self.hand_in(words)
        return self.open(challenge, self.forms(challenge, *self.parties.names))

    def expected(self, *names: str) -> np.ndarray:
        """The sum of some owners' integers."""
        return sum(self.parties.integers(name, self.round, self.updates[name]) for name in names)  # type: ignore[return-value]


def assignment(owner: str, round: int) -> Assignment:
    plan = RoundPlan(round, Work(1, "epochs"), 0.0, False, "examples")
    return Assignment(owner, plan, plan.work, None, weight_bound=WEIGHT_BOUND)


def sealed_by(sealer: Any, name: str, round: int, update: Update, terms: bytes = TERMS) -> Sealed:
    payload, proof = sealer.seal(update, assignment(name, round), terms)
    return Sealed(name, round, 1, True, 0.0, None, terms, proof, payload=payload)


def total(parties: Parties, round: int, updates: Mapping[str, Update], protection: Any = None) -> Total:
    """An honest round from end to end."""
    combiner = (protection or parties.protection()).combiner(round, list(updates), parties.ask)
    for name, update in updates.items():
        combiner.add(parties.seal(name, round, update))
    return combiner.open()
