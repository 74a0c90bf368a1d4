"""The server's half: adds ciphertexts, and has the key holder open the sum.

It sees ciphertexts, who contributed, and opened sums. In memory it keeps one sum (16 bytes a value under BFV, 32 under
CKKS); on disk it keeps contributions (8 to 14 and 16 to 28 bytes a value) until the sum is opened, so that those of
owners that are lost before they have answered the probe can be taken out again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection import wire
from fedray.protection.encoding import Signed
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic import probe
from fedray.protection.homomorphic.line import KeyHolderLine
from fedray.protection.homomorphic.manifest import require_for
from fedray.protection.homomorphic.messages import (
    Answer,
    Answers,
    Challenge,
    Context,
    ContextAsked,
    Contribution,
    Opened,
    Place,
    Prepare,
    Ready,
    SumSent,
)
from fedray.protection.homomorphic.parameters import Parameters
from fedray.protection.homomorphic.spool import Spool
from fedray.protection.homomorphic.words import Packing
from fedray.protection.identity import Trust
from fedray.protection.line import Lost
from fedray.protocols import Ask, KeyHolder
from fedray.values import Payload, Sealed, Subtotal, SumOutcome, SumRecord, Total

KEY_BITS = 128
"""Entropy of the weakest secret: lattice parameters have 128 bits of security or more, X25519 and Ed25519 have 128."""


@dataclass(frozen=True)
class _Rules:
    """What all rounds of a federation share."""

    parameters: Parameters
    fixed_point: FixedPoint
    weight_bound: int
    min_owners: int
    trust: Trust


class HomomorphicCombiner:
    """One round's sum. Made by ``HomomorphicProtection``, once owners have answered ``Prepare``."""

    def __init__(self, rules: _Rules, place: Place, line: KeyHolderLine, owners: Sequence[str], lost: Lost) -> None:
        self.owners = sorted(owners)
        self.lost: Mapping[str, str] = lost
        self._rules = rules
        self._place = place
        self._line = line
        self._stages = {"asked": len(owners) + len(lost), "ready": len(owners)}
        self._packing = Packing(rules.parameters, rules.fixed_point.length)
        self._sum = self._packing.zeros()
        self._entries: dict[str, Contribution] = {}
        self._spool = Spool(self._packing.n_bytes)
        self._outcome: SumOutcome = "empty"
        self._reason = ""

    @property
    def n_added(self) -> int:
        return len(self._entries)

    def briefing(self, owner: str) -> bytes:  # noqa: ARG002  # owners were told in ``Prepare``
        return b""

    def add(self, sealed: Sealed) -> None:
        """Take one ciphertext into the sum, and its owner's signed word on it into the manifest.

        Raises:
            UpdateRefused: misshapen, not signed, or of an owner that may not add to this sum.
        """
        try:
            entry = self._entry(sealed)
        except ProtocolError as error:
            raise UpdateRefused(error.found, error.expected, error.remedy) from None
        self._packing.check(sealed.payload)
        self._packing.add(self._sum, sealed.payload)
        self._spool.keep(sealed.owner, sealed.payload)
        self._entries[sealed.owner] = entry
        self._stages["updates"] = len(self._entries)

    def open(self) -> Total:
        """Have the sum checked and opened. Owners that are lost meanwhile are taken out of it.

        Raises:
            RoundAbandoned: too few owners are left, the key holder refuses, or an update was not what it may be.
        """
        try:
            summed = self._opened()
            total = self._rules.fixed_point.decode(summed, self._rules.weight_bound)
        except (ProtocolError, RoundAbandoned) as error:
            self._outcome = "abandoned" if self._entries else "empty"
            self._reason = error.found
            raise RoundAbandoned(error.found, error.expected, error.remedy) from None
        finally:
            self._spool.close()
        self._outcome = "opened"
        return total

    def record(self) -> SumRecord:
        """What is kept of this sum; its threshold is everyone in it, for all must answer the probe."""
        rules = self._rules
        return SumRecord(
            protection=rules.parameters.scheme,
            outcome=self._outcome,
            reason=self._reason,
            stages=dict(self._stages),
            threshold=self.n_added,
            min_owners=rules.min_owners,
            neighbours=0,
            key_bits=KEY_BITS,
            identities="enrolled" if rules.trust.is_enrolled else "first use",
            key_id=self._place.key_id.hex(),
            bytes_up=self._line.bytes_up,
            bytes_down=self._line.bytes_down,
        )

    def add_subtotal(self, subtotal: Subtotal) -> None:
        """Never: the key holder asks for every owner's signed word on its own ciphertext.

        Raises:
            UpdateRefused: always.
        """
        raise UpdateRefused(
            f"a subtotal of {len(subtotal.covers)} owners", "each owner's own update", "see how owners are run"
        )

    def _entry(self, sealed: Sealed) -> Contribution:
        """The owner's signed word on this payload.

        Raises:
            ProtocolError: it is missing, or not on this payload, or the owner may not add to this sum.
        """
        if sealed.owner not in self.owners or sealed.owner in self._entries or self._outcome != "empty":
            raise ProtocolError(f"an update of {sealed.owner}", "one of each owner that prepared", "see why it is late")
        if self.n_added >= self._rules.fixed_point.n_owners:
            raise ProtocolError("one update more than the sum can hold", f"{self.n_added}", "check the cohort")
        entry = wire.decode(sealed.proof, Contribution)
        require_for(self._place, entry, self._rules.trust)
        signed = entry.owner, entry.terms, entry.digest
        if signed != (sealed.owner, sealed.terms, _digest(sealed.payload)):
            raise ProtocolError(f"a signature of {entry.owner} on something else", "on this payload", "suspect a swap")
        return entry

    def _opened(self) -> Signed:
        while True:
            challenge = self._handed_in()
            forms = self._answers(challenge)
            if forms is not None:
                return self._given(Answers(self._place.run, self._place.round, challenge.attempt, forms))

    def _handed_in(self) -> Challenge:
        fewest = self._rules.min_owners
        if self.n_added < fewest:
            raise RoundAbandoned(f"{self.n_added} updates", f"{fewest} at least", "see why owners sent none")
        place, manifest = self._place, list(self._entries.values())
        payload = self._packing.packed(self._sum).tobytes()
        return self._line.call_key_holder(SumSent(place.run, place.round, place.key_id, manifest, payload), Challenge)

    def _answers(self, challenge: Challenge) -> bytes | None:
        """The sum of all owners' answers; None where some are lost, who then are no longer in the sum."""
        place = self._place
        expected = (place.run, place.round, challenge.attempt)
        answers, lost = self._line.call_owners(
            dict.fromkeys(self._entries, challenge),
            Answer,
            lambda _, one: (one.run, one.round, one.attempt) == expected,
        )
        for owner, reason in lost.items():
            self._take_out(owner, reason)
        self._stages["checked"] = len(answers)
        total = np.zeros(probe.N_FORMS, dtype=np.uint64)
        for answer in answers.values():
            total += probe.from_bytes(answer.forms)
        return None if lost else probe.to_bytes(total)

    def _take_out(self, owner: str, reason: str) -> None:
        self._packing.subtract(self._sum, self._spool.read(owner))
        del self._entries[owner]
        self.lost = {**self.lost, owner: f"lost before its update was checked: {reason}"}

    def _given(self, answers: Answers) -> Signed:
        opened = self._line.call_key_holder(answers, Opened)
        length = self._rules.fixed_point.length
        if opened.n_contributions != self.n_added or len(opened.sums) != 4 * length:
            raise ProtocolError("another sum than the one handed in", f"{length} integers", "check the key holder")
        self._stages["opened"] = opened.n_contributions
        return np.frombuffer(opened.sums, dtype="<i4")


class HomomorphicProtection:
    """The server's half of homomorphic protection.

    Args:
        parameters: the same as at all parties.
        fixed_point: how updates become integers.
        weight_bound: largest weight of an update in this federation.
        run: 16 bytes that no other run has.
        min_owners: fewest contributions of a sum that is opened.
        key_holder: who opens sums.
        trust: which owners the server believes.
    """

    def __init__(
        self,
        parameters: Parameters,
        fixed_point: FixedPoint,
        weight_bound: int,
        run: bytes,
        min_owners: int,
        key_holder: KeyHolder,
        trust: Trust,
    ) -> None:
        self._rules = _Rules(parameters, fixed_point, weight_bound, min_owners, trust)
        self._run = run
        self._key_holder = key_holder
        self._key_of: dict[str, bytes] = {}

    def combiner(self, round: int, owners: Sequence[str], ask: Ask) -> HomomorphicCombiner:
        """Ask for the round's key, and have owners prepare. All are lost where the key holder refuses."""
        line = KeyHolderLine(ask, self._key_holder)
        try:
            context = line.call_key_holder(ContextAsked(self._run, round), Context)
        except ProtocolError as error:
            lost = dict.fromkeys(owners, f"the key holder gave no key: {error.found}")
            return HomomorphicCombiner(self._rules, Place(self._run, round, b""), line, [], lost)
        place = Place(self._run, round, context.key_id)
        messages = {owner: self._prepare(owner, place, context) for owner in owners}
        ready, lost = line.call_owners(messages, Ready, lambda _, one: Place(one.run, one.round, one.key_id) == place)
        self._key_of.update(dict.fromkeys(ready, context.key_id))
        for owner in lost:
            self._key_of.pop(owner, None)
        return HomomorphicCombiner(self._rules, place, line, list(ready), lost)

    def _prepare(self, owner: str, place: Place, context: Context) -> Prepare:
        """The key goes along unless the owner has told that it has it. One that forgot is lost for one round."""
        has_it = self._key_of.get(owner) == context.key_id
        return Prepare(place.run, place.round, place.key_id, b"" if has_it else wire.encode(context))


def _digest(payload: Payload) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(payload).data).digest() if isinstance(payload, np.ndarray) else b""
