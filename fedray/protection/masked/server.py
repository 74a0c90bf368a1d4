"""The server's half of a masked sum: it carries keys and sealed shares, adds, and takes away what survivors reveal.

It sees masked updates, public keys and sealed shares; after opening, seeds of self masks of owners whose update is in
the sum and mask keys of owners whose update is not. It holds no secret of its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection.encoding import Encoding
from fedray.protection.identity import Trust
from fedray.protection.line import Line, Lost
from fedray.protection.masked import masks, shamir
from fedray.protection.masked.graph import Graph, Rules
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
from fedray.protection.masked.owner import commitment, is_keys_signed
from fedray.protection.subtotals import require_owners
from fedray.protection.wire import Message, encode
from fedray.protocols import Ask
from fedray.values import Sealed, Subtotal, SumRecord, Total

MOST_CHOICES = 1000
"""Sets of shares that are tried for one secret."""

M = TypeVar("M", Keys, Shared, Receipt, AliveSigned, Revealed)


class MaskedProtection:
    """Prepares one masked sum a round.

    Args:
        rules: what owners hold the round to.
        encoding: how updates become integers.
        weight_bound: largest weight of an update.
        run: 16 random bytes that name the run.
        enrolled: owner's name to its public key; empty to take owners' first keys for true.
    """

    def __init__(
        self, rules: Rules, encoding: Encoding, weight_bound: int, run: bytes, enrolled: Mapping[str, bytes]
    ) -> None:
        self._rules = rules
        self._encoding = encoding
        self._weight_bound = weight_bound
        self._run = run
        self._trust = Trust(enrolled)

    def combiner(self, round: int, owners: Sequence[str], ask: Ask) -> MaskedCombiner:
        """Agree on keys and share secrets; three exchanges with every owner."""
        talk = Talk(self._run, round, ask)
        combiner = MaskedCombiner(self._rules, self._encoding, self._weight_bound, self._trust, talk)
        combiner.prepare(sorted(owners))
        return combiner


class Talk(Line):
    """One round's exchanges with its owners."""

    def __init__(self, run: bytes, round: int, ask: Ask) -> None:
        super().__init__(ask)
        self.run = run
        self.round = round

    def exchange(self, messages: Mapping[str, Message], expected: type[M]) -> tuple[dict[str, M], Lost]:
        """Answers of this round from the owners that they are from, and why others have none."""
        return self.call_owners(
            messages, expected, lambda owner, one: (one.run, one.round, one.owner) == (self.run, self.round, owner)
        )


class MaskedCombiner:
    """One round's masked sum.

    Attributes:
        owners: who may add an update.
        lost: who was asked and may not, with the reason.
        n_added: updates in the sum.
    """

    def __init__(self, rules: Rules, encoding: Encoding, weight_bound: int, trust: Trust, talk: Talk) -> None:
        self.owners: list[str] = []
        self.lost: dict[str, str] = {}
        self._rules = rules
        self._encoding = encoding
        self._weight_bound = weight_bound
        self._trust = trust
        self._talk = talk
        self._stages: dict[str, int] = {}
        self._graph = Graph((), 0, 0)
        self._keys: Mapping[str, Keys] = {}
        self._commitments: Mapping[str, bytes] = {}
        self._sum = np.zeros(encoding.length, dtype=encoding.ring)
        self._alive: dict[str, bytes] = {}
        self._is_opened = False
        self._abandoned: RoundAbandoned | None = None

    def prepare(self, asked: Sequence[str]) -> None:
        """Stages 0 and 1 of the paper: advertise keys, share keys; leaves no owners where too few get through."""
        self._stages["asked"] = len(asked)
        try:
            self._keys = self._advertise(asked)
            shared = self._share()
            self.owners = self._deliver(shared)
        except RoundAbandoned as error:
            self._abandon(error)

    def _advertise(self, asked: Sequence[str]) -> dict[str, Keys]:
        invite = Invite(self._talk.run, self._talk.round)
        answers = self._answers(dict.fromkeys(asked, invite), Keys)
        true = {name: keys for name, keys in answers.items() if self._is_true(keys)}
        uses = Counter(key for keys in true.values() for key in (keys.channel, keys.mask))
        return self._passed("keys", {name: keys for name, keys in true.items() if self._is_fit(keys, uses)})

    def _answers(self, messages: Mapping[str, Message], expected: type[M]) -> dict[str, M]:
        """Answers of a stage of preparation; whoever gives none may not add an update."""
        answers, lost = self._talk.exchange(messages, expected)
        self.lost |= lost
        return answers

    def _is_true(self, keys: Keys) -> bool:
        """Whether keys are those of the owner that they say."""
        if not is_keys_signed(keys, self._talk.run, self._talk.round):
            self.lost[keys.owner] = "keys that their owner did not sign"
            return False
        try:
            self._trust.require(keys.owner, keys.identity)
        except ProtocolError as error:
            self.lost[keys.owner] = error.found
            return False
        return True

    def _is_fit(self, keys: Keys, uses: Mapping[bytes, int]) -> bool:
        """Whether an owner's neighbours can use its keys; they would all refuse the round otherwise."""
        if uses[keys.channel] > 1 or uses[keys.mask] > 1:
            self.lost[keys.owner] = "the same key twice"
            return False
        try:
            masks.require_agreeable(keys.channel, keys.mask)
        except ProtocolError as error:
            self.lost[keys.owner] = error.found
            return False
        return True

    def _share(self) -> dict[str, Shared]:
        names = sorted(self._keys)
        self._graph = self._rules.graph(self._talk.run, self._talk.round, names)
        lists = {
            name: KeyList(
                self._talk.run, self._talk.round, names, [self._keys[peer] for peer in self._graph.neighbours(name)]
            )
            for name in names
        }
        answers = self._answers(lists, Shared)
        whole = {name: shared for name, shared in answers.items() if self._is_whole(shared)}
        self._commitments = {name: shared.commitment for name, shared in whole.items()}
        return self._passed("shares", whole)

    def _is_whole(self, shared: Shared) -> bool:
        if tuple(sorted(shared.sealed)) == self._graph.neighbours(shared.owner):
            return True
        self.lost[shared.owner] = "shares for others than its neighbours"
        return False

    def _deliver(self, shared: Mapping[str, Shared]) -> list[str]:
        """Who is left after every owner has opened its shares: without those that too many complain of."""
        deliveries = {
            name: Delivery(
                self._talk.run,
                self._talk.round,
                {peer: shared[peer].sealed[name] for peer in self._graph.neighbours(name) if peer in shared},
            )
            for name in shared
        }
        receipts = self._answers(deliveries, Receipt)
        complaints = Counter(name for receipt in receipts.values() for name in set(receipt.unreadable))
        for name in [name for name in receipts if self._is_suspect(name, complaints[name])]:
            self.lost[name] = f"{complaints[name]} owners could not open its shares"
            del receipts[name]
        return sorted(self._passed("receipts", receipts))

    def _is_suspect(self, name: str, n_complaints: int) -> bool:
        return len(self._graph.holders(name)) - n_complaints < self._graph.threshold

    def briefing(self, owner: str) -> bytes:  # noqa: ARG002  # every owner is told the same
        return encode(Briefing(self._talk.run, self._talk.round, self.owners))

    def add(self, sealed: Sealed) -> None:
        """Take one masked update into the sum.

        Raises:
            UpdateRefused: of another ring or length, or of an owner that may not add to this sum.
        """
        if sealed.owner not in self.owners or sealed.owner in self._alive:
            raise UpdateRefused(f"an update of {sealed.owner}", "one of each owner that shared keys", "check the owner")
        self._encoding.check(sealed.payload)
        self._sum += sealed.payload
        self._alive[sealed.owner] = sealed.terms

    def add_subtotal(self, subtotal: Subtotal) -> None:
        """Take the sum of several owners' masked updates into the sum.

        Raises:
            UpdateRefused: of another ring or length, or with an owner that may not add to this sum.
        """
        require_owners(subtotal, self.owners, self._alive)
        self._encoding.check(subtotal.payload)
        self._sum += subtotal.payload
        self._alive |= {cover.owner: cover.terms for cover in subtotal.covers}

    @property
    def n_added(self) -> int:
        return len(self._alive)

    def open(self) -> Total:
        """Stages 3 and 4 of the paper: consistency check and unmasking.

        Raises:
            RoundAbandoned: too few survivors, or too few true shares.
        """
        if self._abandoned:
            raise self._abandoned
        self._stages["updates"] = self.n_added
        try:
            revealed = self._unmask(sorted(self._alive))
            masks.apply_all(self._sum, [mask.inverse for mask in self._remaining_masks(revealed)])
            found = self._encoding.decode(self._encoding.signed(self._sum), self._weight_bound)
        except RoundAbandoned as error:
            self._abandon(error)
            raise
        self._is_opened = True
        return found

    def _unmask(self, alive: list[str]) -> dict[str, Revealed]:
        """Have the survivors agree on who is alive, and reveal one share for each."""
        self._require_enough(alive)
        asked = Alive(self._talk.run, self._talk.round, alive)
        signed, _ = self._talk.exchange(dict.fromkeys(alive, asked), AliveSigned)
        self._stages["signed"] = len(signed)
        self._require_holders(signed, self.owners)
        reveals = {
            name: Reveal(
                self._talk.run,
                self._talk.round,
                {peer: signed[peer].signature for peer in self._graph.neighbours(name) if peer in signed},
            )
            for name in signed
        }
        revealed, _ = self._talk.exchange(reveals, Revealed)
        self._stages["revealed"] = len(revealed)
        return revealed

    def _remaining_masks(self, revealed: Mapping[str, Revealed]) -> Iterator[Mask]:
        """The masks that the sum still holds: every self mask, and those that were agreed with a lost owner."""
        run, round = self._talk.run, self._talk.round
        for name in self._alive:
            seed = self._recovered(name, {by: one.of_self_masks for by, one in revealed.items()})
            yield Mask.own(seed, run, round, name)
        for name in sorted(set(self.owners) - set(self._alive)):
            secret = self._recovered(name, {by: one.of_keys for by, one in revealed.items()})
            key = X25519PrivateKey.from_private_bytes(secret)
            for peer in self._graph.neighbours(name):
                if peer in self._alive:
                    secret = masks.agreed(key, self._keys[peer].mask)
                    yield Mask.pair(secret, run, round, self._alive[peer], peer, name)

    def _recovered(self, name: str, revealed: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """One owner's secret from what its holders revealed; a few false shares do no harm where more are there."""
        holders = self._graph.holders(name)
        shares = {
            point: revealed[holder][name]
            for point, holder in enumerate(holders, start=1)
            if name in revealed.get(holder, {})
        }
        for chosen in _choices(sorted(shares), self._graph.threshold):
            secret = shamir.combine({point: shares[point] for point in chosen})
            if secret is not None and self._is_secret_of(name, secret):
                return secret
        raise RoundAbandoned(
            f"{len(shares)} shares of {name!r}, which do not give its secret",
            f"{self._graph.threshold} true shares",
            "find the owner that lies, or take more owners",
        )

    def _is_secret_of(self, name: str, secret: bytes) -> bool:
        if name in self._alive:
            return commitment(secret, self._talk.run, self._talk.round, name) == self._commitments[name]
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        return public == self._keys[name].mask

    def _passed(self, stage: str, found: dict[str, M]) -> dict[str, M]:
        """Those who passed a stage of preparation, if they are enough.

        Raises:
            RoundAbandoned: they are too few.
        """
        self._stages[stage] = len(found)
        self._require_enough(found)
        return found

    def _require_enough(self, left: Collection[str]) -> None:
        """Go on only where enough owners are left, among them enough holders of each one's shares.

        Raises:
            RoundAbandoned: too few are.
        """
        if len(left) < self._rules.min_owners:
            raise RoundAbandoned(
                f"{len(left)} owners left of {self._stages['asked']}",
                f"{self._rules.min_owners} at least",
                "take more owners a round, or see why they drop out",
            )
        self._require_holders(left, left)

    def _require_holders(self, present: Collection[str], names: Iterable[str]) -> None:
        holders = frozenset(present)
        if short := [name for name in names if self._graph.names and not self._graph.is_enough(holders, name)]:
            raise RoundAbandoned(
                f"too few holders left of shares of {', '.join(short[:3])}",
                f"{self._graph.threshold} of {len(self._graph.holders(short[0]))}",
                "expect more dropouts, protection.dropouts, or take more owners a round",
            )

    def _abandon(self, error: RoundAbandoned) -> None:
        self._abandoned, self.owners = error, []

    def record(self) -> SumRecord:
        """What is kept of this sum: who passed which stage, and what it took to open it."""
        return SumRecord(
            protection="masked",
            outcome="opened" if self._is_opened else "abandoned" if self._abandoned else "empty",
            reason=self._abandoned.found if self._abandoned else "",
            stages=dict(self._stages),
            threshold=self._graph.threshold,
            min_owners=self._rules.min_owners,
            neighbours=self._graph.degree,
            key_bits=masks.KEY_BITS,
            identities="enrolled" if self._trust.is_enrolled else "first use",
            key_id="",
            bytes_up=self._talk.bytes_up,
            bytes_down=self._talk.bytes_down,
        )


def _choices(points: Sequence[int], threshold: int) -> Iterator[Sequence[int]]:
    """Sets of ``threshold`` points: all where they are few; else some that leave out each point, then random ones."""
    if comb(len(points), threshold) <= MOST_CHOICES:
        yield from combinations(points, threshold)
        return
    around = [*points, *points]
    for shift in range(len(points)):
        yield sorted(around[shift : shift + threshold])
    draw = random.Random(0)
    for _ in range(MOST_CHOICES):
        yield sorted(draw.sample(points, threshold))
