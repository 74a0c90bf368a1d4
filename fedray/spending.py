"""The server's books on what owners have spent: their own word, or the most that it can be where that was lost.

Owners under example-level privacy say with every answer what they have spent. What owner-level privacy costs follows
from the plan, so that nobody needs to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedray.errors import UpdateRefused
from fedray.values import Absent, Cover, Spent

WorstSpent = Callable[[str, int, int], Spent]
"""(owner, rounds so far, rounds that it was asked in): the most that it can have spent."""


@dataclass(frozen=True)
class Spending:
    """What the server knows of owners' spending.

    Attributes:
        spent: what each owner has last said that it spent.
        asked: rounds that each owner was asked to train in.
        lost: owners whose last answer was lost, so that nobody but they knows what they have spent since.
        exhausted: owners whose budget is spent.
    """

    spent: Mapping[str, Spent] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    exhausted: frozenset[str] = frozenset()

    def after(self, reached: Sequence[str], answers: Sequence[Cover | Absent]) -> Spending:
        """The books after a round in which these owners were asked and these answers came."""
        exhausted = {one.owner for one in answers if isinstance(one, Absent) and one.outcome == "exhausted"}
        said = {answer.owner: answer.spent for answer in answers if answer.spent is not None}
        return replace(
            self,
            spent={**self.spent, **{name: _most(spent, self.spent.get(name)) for name, spent in said.items()}},
            asked={**self.asked, **{name: self.asked.get(name, 0) + 1 for name in reached}},
            lost=(self.lost | frozenset(reached)) - frozenset(said),
            exhausted=self.exhausted | exhausted,
        )

    def reported(self, names: Sequence[str], n_rounds: int, worst: WorstSpent | None) -> dict[str, Spent]:
        """What is reported of each owner after so many rounds; nothing without differential privacy."""
        if worst is None:
            return {}
        found = dict(self.spent)
        for name in names:
            if name in self.lost or name not in found:
                found[name] = _most(worst(name, n_rounds, self.asked.get(name, 0)), found.get(name))
        return found


def _most(spent: Spent, before: Spent | None) -> Spent:
    """The larger: an account that forgot does not lower what was spent."""
    return spent if before is None or spent.epsilon >= before.epsilon else before


def require_account(answer: Cover, before: Spent | None) -> None:
    """Refuse an update of an owner whose privacy account has forgotten what it said before.

    Raises:
        UpdateRefused: it has.
    """
    after = answer.spent.epsilon if answer.spent else 0.0
    if before is not None and after < before.epsilon:
        raise UpdateRefused(
            f"an account that fell from epsilon {before.epsilon:.4g} to {after:.4g}",
            "an account that only grows",
            "pin the owner to the node that keeps its account",
        )
