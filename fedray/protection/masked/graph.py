"""Who shares keys with whom, and how many of them it takes to open a sum.

Up to 50 owners everyone shares with everyone, as in Bonawitz et al. 2017. Above, each owner has k neighbours on the
circulant graph over a random order (Bell et al. 2020, Section 3.3): the smallest k for which, but with probability
2**-40, no honest owner has a threshold of corrupt neighbours and honest owners stay connected and, but with
probability 2**-30, every owner keeps a threshold of neighbours that have not dropped out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, comb
from typing import Literal

from fedray import seeds

FULL_UP_TO = 50
SECURITY_BITS = 40
CORRECTNESS_BITS = 30


@dataclass(frozen=True, slots=True)
class Rules:
    """What every party of a federation holds a round to.

    Attributes:
        min_owners: fewest updates of which a sum is opened.
        server: ``honest`` but curious, or one that ``may_lie``.
        corrupt: share of owners that may join with the server.
        dropouts: share of owners that may drop out.
    """

    min_owners: int = 3
    server: Literal["honest", "may_lie"] = "honest"
    corrupt: float = 0.2
    dropouts: float = 0.1

    def graph(self, run: bytes, round: int, names: Sequence[str]) -> Graph:
        """The graph of one round over these owners."""
        if len(names) <= FULL_UP_TO or self.server == "may_lie":
            degree, threshold = len(names) - 1, self._full_threshold(len(names))
        else:
            degree, threshold = sparse(len(names), self.corrupt, self.dropouts)
        ordered = sorted(names)
        order = seeds.generator(0, "graph", run.hex(), round).permutation(len(ordered))
        return Graph([ordered[position] for position in order], degree, threshold)

    def _full_threshold(self, n: int) -> int:
        """More than half; against a server that lies, so many that two lists cannot both be signed by enough."""
        if self.server == "honest":
            return n // 2 + 1
        return min(n, max(2 * n // 3, (n + ceil(self.corrupt * n)) // 2) + 1)


class Graph:
    """Owners on a ring, each joined to the ``degree`` nearest.

    Args:
        order: names around the ring.
        degree: neighbours of each; even, or one less than all.
        threshold: holders of an owner's shares, itself among them, that it takes to open them.
    """

    def __init__(self, order: Sequence[str], degree: int, threshold: int) -> None:
        self.names = tuple(sorted(order))
        self.degree = degree
        self.threshold = threshold
        self._order = tuple(order)
        self._position = {name: position for position, name in enumerate(order)}

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Sorted names of the owners that share keys with this one."""
        n = len(self._order)
        if self.degree >= n - 1:
            return tuple(other for other in self.names if other != name)
        at, reach = self._position[name], self.degree // 2
        return tuple(sorted(self._order[(at + hop) % n] for hop in range(-reach, reach + 1) if hop))

    def holders(self, name: str) -> tuple[str, ...]:
        """Sorted names of the owners that hold shares of this one's secrets: its neighbours and itself."""
        return tuple(sorted((*self.neighbours(name), name)))

    def is_enough(self, present: set[str] | frozenset[str], name: str) -> bool:
        """Whether those present hold enough shares of this owner's secrets."""
        return sum(holder in present for holder in self.holders(name)) >= self.threshold


@lru_cache
def sparse(n: int, corrupt: float, dropouts: float) -> tuple[int, int]:
    """(degree, threshold) for ``n`` owners; the full graph with a majority where no smaller one is safe."""
    n_corrupt, n_dropped = ceil(corrupt * n), ceil(dropouts * n)
    for degree in range(2, n - 1, 2):
        if n * (corrupt + dropouts) ** (degree // 2) > 2.0**-SECURITY_BITS:
            continue
        for threshold in range((degree + 1) // 2 + 1, degree + 1):
            if n * at_least(threshold, n - 1, n_corrupt, degree) > 2.0**-SECURITY_BITS:
                continue
            if n * (1 - at_least(threshold, n - 1, n - 1 - n_dropped, degree)) <= 2.0**-CORRECTNESS_BITS:
                return degree, threshold
            break
    return n - 1, n // 2 + 1


def at_least(hits: int, population: int, marked: int, draws: int) -> float:
    """Probability of at least so many marked among the drawn, without replacement (hypergeometric tail)."""
    ways = sum(comb(marked, hit) * comb(population - marked, draws - hit) for hit in range(hits, draws + 1))
    return ways / comb(population, draws)
