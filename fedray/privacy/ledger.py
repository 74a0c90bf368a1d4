"""A data owner's ledger: what it has spent over all runs, and the budgets beyond which it refuses to work.

Every release is on disk before it happens, so that a crash can make the ledger say too much, never too little.

A budget is the stopping rule of a privacy filter (R. Rogers, A. Roth, J. Ullman, S. Vadhan, "Privacy Odometers and
Filters: Pay-as-you-Go Composition", 2016): work that would pass it is refused. For Renyi DP that holds even where
events are chosen by looking at earlier releases (V. Feldman, T. Zrnic, "Individual Privacy Accounting via a Rényi
Filter", 2021). Deviation: the figure by privacy loss distributions, which counts where it is smaller, is proven only
for events that are fixed ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import msgspec
from dp_accounting import rdp

from fedray.errors import BudgetExhausted, ConfigError, ProtocolError
from fedray.privacy.accounting import ORDERS, renyi, spent
from fedray.privacy.events import Charge, Unit
from fedray.privacy.ledger_entries import Book, Budget, Participation, Release, Settlement, express
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.values import Spent


def own_ledger(owner: str) -> Ledger | None:
    """The ledger that an owner has opened on this machine, or None.

    Raises:
        DataError: it is corrupt or cannot be read.
    """
    path = ledger_path(owner)
    return Ledger(LedgerFile(path, "power"), owner) if path.exists() else None


Accounts = Callable[[Iterable[Charge], float], Spent]
"""Epsilon of charges at a delta: ``spent``, or a faster bound."""


class Ledger:
    """One owner's part of a ledger file.

    Args:
        file: the file; may hold other owners' entries too.
        owner: the owner's name.
    """

    def __init__(self, file: LedgerFile, owner: str) -> None:
        self._file = file
        self.owner = owner

    @property
    def head(self) -> str:
        """Hash of the file's last entry, in hex, as far as it was read."""
        return self._file.head

    @property
    def budgets(self) -> Mapping[Unit, Budget]:
        """The budget of each unit that has one."""
        self._file.refresh()
        return dict(self._book.budgets)

    def set_budget(self, unit: Unit, epsilon: float, delta: float) -> None:
        """Set the most that may be spent on a unit, over all runs; takes the place of an earlier one.

        Raises:
            ConfigError: epsilon or delta is out of range.
        """
        if not (0 < epsilon < math.inf and 0 < delta < 1):
            raise ConfigError(
                f"a budget of epsilon {epsilon:g} at delta {delta:g}",
                "an epsilon above 0 and a delta between 0 and 1",
                "give delta well below one over the number of what is protected",
            )
        self._file.append(self.owner, lambda: [Budget(unit, epsilon, delta)])

    def charge(self, release: Release, plan: Budget | None = None) -> int:
        """Record a release before it happens.

        Args:
            release: what is about to be released.
            plan: what its run may spend by itself; None for no limit but the ledger's own.

        Returns:
            The entry's number, to settle it by.

        Raises:
            BudgetExhausted: it would go beyond a budget; nothing is recorded.
        """

        def decide() -> Sequence[Release]:
            self._require_affordable([release], plan)
            return [release]

        (seq,) = self._file.append(self.owner, decide)
        return seq

    def settle(self, seq: int, count: int) -> None:
        """Lower a charge to what really happened; never raises one.

        Raises:
            ProtocolError: there is no such charge, or the count is negative.
        """

        def decide() -> Sequence[Settlement]:
            if seq not in self._book.counts or count < 0:
                raise ProtocolError(
                    f"entry {seq} of {self.owner!r} settled for {count}",
                    "a charge of this owner, and a count from 0",
                    "settle by the number that charge returned",
                )
            return [Settlement(seq, count)] if count < self._book.counts[seq] else []

        self._file.append(self.owner, decide)

    def reserve(self, releases: Sequence[Release], plan: Budget | None = None) -> None:
        """Charge what one run costs as a whole, once: who restarts and asks again is not charged again.

        Args:
            releases: at least one, all of the same run and for no round.
            plan: what the run may spend by itself; None for no limit but the ledger's own.

        Raises:
            BudgetExhausted: it would go beyond a budget; nothing is recorded.
            ProtocolError: the run has reserved something else, or its reservation is settled.
        """

        def decide() -> Sequence[Release]:
            book = self._book
            held = book.reservations.get(releases[0].run, [])
            before = [book.releases[seq] for seq in held]
            if before != list(releases[: len(held)]) or any(book.is_settled(seq) for seq in held):
                raise ProtocolError(
                    f"another reservation of run {releases[0].run!r}",
                    "the one that it began with, until that is settled",
                    "start a new run: what this one may release was fixed when it began",
                )
            rest = releases[len(held) :]
            self._require_affordable(rest, plan)
            return rest

        self._file.append(self.owner, decide)

    def settle_reservation(self, run: str, count: int) -> None:
        """Lower each charge that a run has reserved to ``count`` at most. The run cannot go on after that.

        Raises:
            ProtocolError: the run has reserved nothing, or the count is negative.
        """

        def decide() -> Sequence[Settlement]:
            book = self._book
            if run not in book.reservations or count < 0:
                raise ProtocolError(
                    f"a reservation of run {run!r} settled for {count}",
                    "a reservation of this owner, and a count from 0",
                    "reserve before the run begins",
                )
            return [Settlement(seq, count) for seq in book.reservations[run] if count < book.counts[seq]]

        self._file.append(self.owner, decide)

    def participate(self, run: str, round: int, separation: int, most: int) -> None:
        """Record that the owner is about to take part in a round, if the rule of its mechanism allows it.

        Args:
            run: the run.
            round: the round.
            separation: rounds from one part of an owner to its next, at least.
            most: parts of an owner in a run, at most.

        Raises:
            ProtocolError: it is too soon after the last part, or one too many; nothing is recorded.
        """

        def decide() -> Sequence[Participation]:
            before = self._book.participations.get(run, [])
            if len(before) >= most or any(abs(round - earlier) < separation for earlier in before):
                raise ProtocolError(
                    f"round {round} after rounds {before}",
                    f"at most {most} rounds of a run, at least {separation} apart",
                    "the noise of this run does not cover it: the server may lie, or has repeated a round",
                )
            return [Participation(run, round)]

        self._file.append(self.owner, decide)

    def releases(self, run: str | None = None) -> tuple[Release, ...]:
        """All charges as settled, over all runs or of one, in the order in which they were made."""
        self._file.refresh()
        book = self._book
        return tuple(
            msgspec.structs.replace(release, count=book.counts[seq])
            for seq, release in book.releases.items()
            if run in (None, release.run)
        )

    def charges(self, unit: Unit, run: str | None = None) -> tuple[Charge, ...] | None:
        """All charges in terms of one unit, each event once; None where an event bounds nothing for that unit."""
        self._file.refresh()
        return express(unit, self._book.totals(run))

    def spent(self, unit: Unit, delta: float, run: str | None = None, account: Accounts = spent) -> Spent:
        """What all runs together have cost one unit, or one run by itself; infinite where nothing bounds it."""
        charges = self.charges(unit, run)
        if charges is None:
            return replace(account((), delta), epsilon=math.inf, epsilon_rdp=math.inf)
        return account(charges, delta)

    @property
    def _book(self) -> Book:
        return self._file.book(self.owner)

    def _require_affordable(self, releases: Sequence[Release], plan: Budget | None) -> None:
        for budget in self._book.budgets.values():
            self._require_within(budget, None, releases, "this owner's budget over all runs")
        if plan and releases:
            self._require_within(plan, releases[0].run, releases, "what was planned for this run")

    def _require_within(self, budget: Budget, run: str | None, releases: Sequence[Release], limit: str) -> None:
        new = [(release.unit, release.event, release.count) for release in releases]
        charges = express(budget.unit, chain(self._book.totals(run), new))
        if charges is None:
            raise BudgetExhausted(
                f"a release that protects examples, of {self.owner!r}, which has a budget for all that it holds",
                "privacy at the level of owners",
                "choose such privacy, or set the budget for the unit example",
            )
        if not _is_within(charges, budget):
            raise BudgetExhausted(
                f"{_when(releases)} would take epsilon to {spent(charges, budget.delta).epsilon:.4g}",
                f"at most {budget.epsilon:.4g} at delta {budget.delta:g} for each {budget.unit}, {limit}",
                "this owner sits the rest of the run out; plan fewer rounds, more noise or a larger budget",
            )


def _is_within(charges: Sequence[Charge], budget: Budget) -> bool:
    """Whether a budget allows for charges; the dear figure is taken only where cheaper bounds do not tell.

    Renyi DP costs a hundredth of a privacy loss distribution. The latter is tried first for counts that are rounded
    up: that bounds it from above, and is the same, and so remembered, for many charges in a row.
    """
    by_rdp = rdp.compute_epsilon(ORDERS, renyi(charges), budget.delta)[0] if charges else 0.0
    if by_rdp <= budget.epsilon:
        return True
    rounded = [Charge(charge.event, _rounded_up(charge.count)) for charge in charges]
    return any(spent(bound, budget.delta).epsilon <= budget.epsilon for bound in (rounded, charges))


def _rounded_up(count: int) -> int:
    """To six binary digits."""
    step = 1 << max(0, count.bit_length() - 6)
    return -(-count // step) * step


def _when(releases: Sequence[Release]) -> str:
    return f"round {releases[0].round}" if releases[0].round else f"run {releases[0].run!r}"
