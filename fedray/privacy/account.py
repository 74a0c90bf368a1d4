"""One run's account on an owner's ledger: charged before the work, settled after.

A round that is done again is a second release and is charged again. A process that was restarted does not know how
far the one before it came, so it settles only what it charged itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedray.errors import ProtocolError
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Unit
from fedray.privacy.ledger import Accounts, Ledger
from fedray.privacy.ledger_entries import Budget, Purpose, Release
from fedray.values import Spent


class Account:
    """What one owner spends in one run.

    Args:
        ledger: the owner's ledger.
        run: identifies the run among all that the owner ever takes part in; no two runs may share it.
        experiment: the experiment's name, for the reader.
        unit: what the run's mechanism protects.
        delta: failure probability at which epsilon is computed.
        budget: largest epsilon of the run by itself; None for no limit but the ledger's own.
        accounts: how epsilon is reported; budgets are kept by the tightest figure all the same.
    """

    def __init__(
        self,
        ledger: Ledger,
        run: str,
        experiment: str,
        unit: Unit,
        delta: float,
        budget: float | None,
        accounts: Accounts = spent,
    ) -> None:
        self._ledger = ledger
        self._run = run
        self._experiment = experiment
        self._unit = unit
        self._delta = delta
        self._accounts = accounts
        self._plan = None if budget is None else Budget(unit, budget, delta)
        self._charged: dict[tuple[int, Purpose], int] = {}

    @property
    def spent(self) -> Spent:
        """What the run has cost so far, by itself."""
        return self._ledger.spent(self._unit, self._delta, self._run, self._accounts)

    def charge(self, round: int, charge: Charge, purpose: Purpose = "train") -> None:
        """Record a round's release before it happens.

        Raises:
            BudgetExhausted: it would go beyond the run's budget or one of the ledger's; nothing is recorded.
        """
        self._charged[round, purpose] = self._ledger.charge(self._release(round, charge, purpose), self._plan)

    def settle(self, round: int, count: int, purpose: Purpose = "train") -> None:
        """Lower the last charge of a round to what really happened; never raises it.

        Raises:
            ProtocolError: this process has not charged the round, or the count is negative.
        """
        seq = self._charged.get((round, purpose))
        if seq is None:
            raise ProtocolError(
                f"round {round} settled, which this process has not charged",
                "a charge of the same process",
                "leave what an earlier process charged as it is: how far it came is not known",
            )
        self._ledger.settle(seq, count)

    def reserve(self, charges: Sequence[Charge]) -> None:
        """Charge what the run costs as a whole, once, however often this is called and by how many processes.

        Raises:
            BudgetExhausted: it would go beyond the run's budget or one of the ledger's; nothing is recorded.
            ProtocolError: the run has reserved something else, or its reservation is settled.
        """
        if charges:
            self._ledger.reserve([self._release(None, charge, "train") for charge in charges], self._plan)

    def settle_reservation(self, count: int) -> None:
        """Lower each charge that the run has reserved to ``count`` at most. The run cannot go on after that.

        Raises:
            ProtocolError: the run has reserved nothing, or the count is negative.
        """
        self._ledger.settle_reservation(self._run, count)

    def participate(self, round: int, separation: int, most: int) -> None:
        """Record that the owner is about to take part in a round, if the rule of its mechanism allows it.

        Args:
            round: the round.
            separation: rounds from one part of the owner to its next, at least.
            most: parts of the owner in the run, at most.

        Raises:
            ProtocolError: it is too soon after the last part, or one too many; nothing is recorded.
        """
        self._ledger.participate(self._run, round, separation, most)

    def _release(self, round: int | None, charge: Charge, purpose: Purpose) -> Release:
        return Release(self._run, self._experiment, round, purpose, self._unit, charge.event, charge.count)
