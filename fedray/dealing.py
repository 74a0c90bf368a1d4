"""Which pool a round's owners go to.

Each owner has a home, which is likely to hold its rows in memory still. Work is dealt out largest first (longest
processing time first, Graham 1969), to the owner's home as long as that stays within a fair share, else to whoever has
least to do. Owners whose protection keeps secrets from message to message always stay at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedray.values import Assignment, Population


@dataclass(frozen=True)
class Dealer:
    """Deals owners out.

    Attributes:
        population: all owners.
        n_pools: number of pools.
        batch_size: rows of a step.
        may_move: whether owners may leave home.
    """

    population: Population
    n_pools: int
    batch_size: int
    may_move: bool

    def dealt(self, assignments: Sequence[Assignment]) -> list[list[Assignment]]:
        """Each pool's part, most work first."""
        sized = sorted(((self._steps(one), one) for one in assignments), key=lambda pair: pair[0], reverse=True)
        parts: list[list[Assignment]] = [[] for _ in range(self.n_pools)]
        loads = [0] * self.n_pools
        fair = sum(steps for steps, _ in sized) / self.n_pools
        for steps, assignment in sized:
            place = self.home(assignment.owner)
            if self.may_move and loads[place] + steps > fair:
                place = loads.index(min(loads))
            parts[place].append(assignment)
            loads[place] += steps
        return parts

    def at_home(self, names: Sequence[str]) -> list[list[str]]:
        """Names by home."""
        shares: list[list[str]] = [[] for _ in range(self.n_pools)]
        for name in names:
            shares[self.home(name)].append(name)
        return shares

    def home(self, owner: str) -> int:
        """Number of the owner's own pool."""
        return self.population.place_of(owner) % self.n_pools

    def _steps(self, assignment: Assignment) -> int:
        if assignment.work.unit == "steps":
            return assignment.work.amount
        return assignment.work.amount * -(-self.population.n_train_of(assignment.owner) // self.batch_size)
