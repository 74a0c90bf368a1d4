"""What taking part in a run costs an owner, and the rules under which that figure is true.

Three kinds. Noise that is fresh in every round costs by the round that an owner takes part in (``EachPart``). Where
cohorts are drawn secretly, being drawn or not is part of the protection, so every round costs, and costs less
(``EachRound``). Noise that is correlated over rounds costs once, for the run (``WholeRun``), if the owner takes part
seldom enough; the owner itself sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedray.privacy.account import Account
from fedray.privacy.events import Charge, Event


class Cost(Protocol):
    """What an owner is charged, and when."""

    def join(self, account: Account) -> None:
        """Charge what joining costs.

        Raises:
            BudgetExhausted: the owner's budget does not allow it.
        """

    def take_part(self, account: Account, round: int) -> None:
        """Charge what taking part in a round costs.

        Raises:
            BudgetExhausted: the owner's budget does not allow it.
            ProtocolError: it comes too soon after the last one, or too often.
        """

    def after(self, n_rounds: int, n_parts: int) -> Sequence[Charge]:
        """All charges of an owner that took part in ``n_parts`` of the first ``n_rounds`` rounds."""


@dataclass(frozen=True)
class EachPart:
    """Every round that an owner takes part in costs the same.

    Attributes:
        event: one round's release.
    """

    event: Event

    def join(self, account: Account) -> None:
        """Joining is free."""

    def take_part(self, account: Account, round: int) -> None:
        account.charge(round, Charge(self.event))

    def after(self, n_rounds: int, n_parts: int) -> Sequence[Charge]:  # noqa: ARG002  # see the protocol
        return (Charge(self.event, n_parts),)


@dataclass(frozen=True)
class EachRound:
    """Every round costs every owner the same, whoever is drawn; charged ahead for the whole run.

    Attributes:
        event: one round's release over a secret sample.
        n_rounds: rounds of the run.
    """

    event: Event
    n_rounds: int

    def join(self, account: Account) -> None:
        account.reserve([Charge(self.event, self.n_rounds)])

    def take_part(self, account: Account, round: int) -> None:
        account.reserve([Charge(self.event, self.n_rounds)])
        account.participate(round, separation=1, most=self.n_rounds)

    def after(self, n_rounds: int, n_parts: int) -> Sequence[Charge]:  # noqa: ARG002  # see the protocol
        return (Charge(self.event, n_rounds),)


@dataclass(frozen=True)
class WholeRun:
    """One charge for all rounds together, for owners that take part seldom.

    Attributes:
        charges: what the run costs.
        separation: rounds from one part of an owner to its next, at least.
        most: parts of an owner, at most.
    """

    charges: tuple[Charge, ...]
    separation: int
    most: int

    def join(self, account: Account) -> None:
        account.reserve(self.charges)

    def take_part(self, account: Account, round: int) -> None:
        account.reserve(self.charges)
        account.participate(round, self.separation, self.most)

    def after(self, n_rounds: int, n_parts: int) -> Sequence[Charge]:  # noqa: ARG002  # see the protocol
        return self.charges if n_rounds else ()
