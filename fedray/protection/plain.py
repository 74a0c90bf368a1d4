"""Plain protection: the full seam, and no secret in it. Whoever sees a sealed update can read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection.encoding import Encoding
from fedray.protection.subtotals import require_owners
from fedray.protocols import Ask
from fedray.values import Assignment, Payload, Sealed, Subtotal, SumRecord, Total, Update


class PlainSealer:
    """Encodes and hides nothing.

    Args:
        encoding: how updates become integers.
        seed: the experiment's seed, for stochastic rounding.
    """

    def __init__(self, encoding: Encoding, seed: int) -> None:
        self._encoding = encoding
        self._seed = seed

    def answer(self, message: bytes) -> bytes:
        raise ProtocolError(f"a message of {len(message)} bytes", "none: plain protection has no protocol", "ignore it")

    def seal(self, update: Update, assignment: Assignment, terms: bytes) -> tuple[Payload, bytes]:  # noqa: ARG002
        return self._encoding.encode(update, assignment, self._seed), b""


class PlainCombiner:
    """Adds integers: exact, in any order, one vector in memory."""

    def __init__(self, encoding: Encoding, weight_bound: int, owners: Sequence[str]) -> None:
        self.owners = sorted(owners)
        self._may_add = frozenset(owners)
        self.lost: Mapping[str, str] = {}
        self._added: set[str] = set()
        self._encoding = encoding
        self._weight_bound = weight_bound
        self._sum = np.zeros(encoding.length, dtype=encoding.ring)
        self._is_opened = False
        self._reason = ""

    def briefing(self, owner: str) -> bytes:  # noqa: ARG002  # plain sealers need none
        return b""

    def add(self, sealed: Sealed) -> None:
        """Take one update into the sum.

        Raises:
            UpdateRefused: it cannot be a sealer's, or is of an owner that may not add to this sum.
        """
        if sealed.owner not in self._may_add or sealed.owner in self._added:
            raise UpdateRefused(f"an update of {sealed.owner}", "one of each owner that was asked", "check the owner")
        self._require_room(1)
        self._encoding.check_readable(sealed.payload)
        self._sum += sealed.payload
        self._added.add(sealed.owner)

    def add_subtotal(self, subtotal: Subtotal) -> None:
        """Take the sum of several owners' updates into the sum.

        Raises:
            UpdateRefused: it is no vector of this ring, or has an owner that may not add to this sum.
        """
        require_owners(subtotal, self._may_add, self._added)
        self._require_room(len(subtotal.covers))
        self._encoding.check(subtotal.payload)
        self._sum += subtotal.payload
        self._added.update(cover.owner for cover in subtotal.covers)

    def _require_room(self, n_more: int) -> None:
        if self.n_added + n_more > self._encoding.n_owners:
            raise UpdateRefused("more updates than a sum holds", str(self._encoding.n_owners), "check the cohort")

    @property
    def n_added(self) -> int:
        return len(self._added)

    def open(self) -> Total:
        """The sum, which the server could read all along.

        Raises:
            RoundAbandoned: there is no update, or the sum is none that honest owners can have made.
        """
        if not self.n_added:
            raise RoundAbandoned("no update", "one at least", "see why owners sent none")
        try:
            total = self._encoding.decode(self._encoding.signed(self._sum), self._weight_bound)
        except RoundAbandoned as error:
            self._reason = error.found
            raise
        self._is_opened = True
        return total

    def record(self) -> SumRecord:
        """What is kept of this sum: that nothing hid it."""
        return SumRecord(
            protection="plain",
            outcome="opened" if self._is_opened else "abandoned" if self._reason else "empty",
            reason=self._reason,
            stages={"asked": len(self.owners), "updates": self.n_added},
            threshold=0,
            min_owners=1,
            neighbours=0,
            key_bits=0,
            identities="none",
            key_id="",
            bytes_up=0,
            bytes_down=0,
        )


class PlainProtection:
    """The server's half. It can read every update."""

    def __init__(self, encoding: Encoding, weight_bound: int) -> None:
        self._encoding = encoding
        self._weight_bound = weight_bound

    def combiner(self, round: int, owners: Sequence[str], ask: Ask) -> PlainCombiner:  # noqa: ARG002  # see the seam
        return PlainCombiner(self._encoding, self._weight_bound, owners)
