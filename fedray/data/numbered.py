"""Names of simulated owners, ``owner-00``, ``owner-01``, ..., put together when asked for.

A million owners are named by two numbers, so that names can be passed around, looked up and sent to workers at no
cost. This file must not know any data set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from typing import overload

_PREFIX = "owner-"


@dataclass(frozen=True, slots=True, eq=False)
class Numbered(Sequence[str]):
    """A sequence of names, ascending; equal to any tuple, list or ``Numbered`` of the same names.

    Its hash is found without putting names together, so it is not the hash of an equal tuple: a dictionary
    takes the two for different keys.

    Attributes:
        numbers: the owners' numbers.
        width: digits of each name; at least as many as the largest number has.
    """

    numbers: range
    width: int

    @classmethod
    def of(cls, n_owners: int) -> Numbered:
        """The names of owners 0, 1, ..., ``n_owners - 1``, with two digits at least."""
        return cls(range(n_owners), max(2, len(str(n_owners - 1))))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Numbered: ...
    def __getitem__(self, place: int | slice) -> str | Numbered:
        if isinstance(place, slice):
            return Numbered(self.numbers[place], self.width)
        return self._name(self.numbers[place])

    def __iter__(self) -> Iterator[str]:
        return map(self._name, self.numbers)

    def __reversed__(self) -> Iterator[str]:
        return map(self._name, reversed(self.numbers))

    def __contains__(self, name: object) -> bool:
        return self._number(name) in self.numbers

    def index(self, name: object, start: int = 0, stop: int = sys.maxsize) -> int:
        """The place of a name.

        Raises:
            ValueError: it is not there.
        """
        number = self._number(name)
        if number not in self.numbers[start:stop]:
            raise ValueError(f"{name!r} is not among these names")
        return self.numbers.index(number)

    def count(self, name: object) -> int:
        """1 where the name is there, else 0."""
        return int(name in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbered):
            return self.numbers == other.numbers and (self.width == other.width or not self.numbers)
        if isinstance(other, tuple | list):
            return len(self) == len(other) and all(map(eq, self, other))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.numbers)

    def _name(self, number: int) -> str:
        return f"{_PREFIX}{number:0{self.width}d}"

    def _number(self, name: object) -> int:
        """The number in a name of this form; -1 for anything else."""
        if not isinstance(name, str) or len(name) != len(_PREFIX) + self.width or not name.startswith(_PREFIX):
            return -1
        digits = name.removeprefix(_PREFIX)
        return int(digits) if digits.isascii() and digits.isdigit() else -1
