"""Owners that are open in one process.

An owner is opened when it is first asked, and let go when rows take too much memory and it is not needed soon: what
must outlive that is on its disk, as it is for an owner whose process was restarted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock

from fedray.owners import Owner

OpensOwner = Callable[[], Owner]


class Registry(Mapping[str, OpensOwner]):
    """Who may be opened, and how: a mapping without an entry an owner.

    Args:
        names: ascending.
        open_owner: opens the owner of this name.
    """

    def __init__(self, names: Sequence[str], open_owner: Callable[[str], Owner]) -> None:
        self.names = names
        self._open_owner = open_owner

    def __getitem__(self, name: str) -> OpensOwner:
        if name not in self.names:
            raise KeyError(name)
        return lambda: self._open_owner(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def ascending(openers: Mapping[str, OpensOwner]) -> Sequence[str]:
    """Names of all owners, in order; of a registry without a list of them."""
    return openers.names if isinstance(openers, Registry) else tuple(sorted(openers))


class OpenOwners:
    """Owners that are open. Safe to use from several threads.

    Args:
        openers: owner's name to what opens it.
        budget_bytes: rows that are kept in memory, besides those of owners that take part in this round and the next.
    """

    def __init__(self, openers: Mapping[str, OpensOwner], budget_bytes: float = math.inf) -> None:
        self._openers = openers
        self._budget_bytes = budget_bytes
        self._open: OrderedDict[str, Owner] = OrderedDict()
        self._round_of: dict[str, int] = {}
        self._newest = 1
        self._nbytes = 0
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._open)

    def take(self, name: str, round: int = 0) -> Owner:
        """The owner, opened if it is not; ``round`` is the one that it takes part in, 0 for none."""
        with self._lock:
            if name not in self._open:
                self._open[name] = self._openers[name]()
                self._nbytes += self._open[name].nbytes
            self._open.move_to_end(name)
            if round:
                self._round_of[name] = max(round, self._round_of.get(name, 0))
                self._newest = max(round, self._newest)
            self._let_go(besides=name)
            return self._open[name]

    def _let_go(self, besides: str) -> None:
        """Close those used longest ago, as many as it takes; those that are needed soon count as just used."""
        n_left = len(self._open)
        while self._nbytes > self._budget_bytes and n_left:
            n_left -= 1
            name = next(iter(self._open))
            if name == besides or self._round_of.get(name, -1) >= self._newest - 1:
                self._open.move_to_end(name)
            else:
                self._nbytes -= self._open.pop(name).nbytes
                self._round_of.pop(name, None)
