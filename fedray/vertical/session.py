"""The parties of one session: who they are, how each is opened where it is, and the caller's hold on them.

The caller hands operations to parties and gets what they return. Label holder and owners talk with each other, not by
way of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Protocol, TypeVar

from fedray.errors import FedrayError
from fedray.vertical.feature_owner import FeatureOwner
from fedray.vertical.label_holder import LabelHolder
from fedray.vertical.messages import Ask
from fedray.vertical.setting import Setting
from fedray.vertical.tables import Source

T = TypeVar("T")


@dataclass(frozen=True)
class OpensOwner:
    """Opens one feature owner, where it is called; holds no other party's table."""

    setting: Setting
    name: str
    source: Source = field(repr=False)

    def __call__(self) -> FeatureOwner:
        with blamed(self.name):
            return FeatureOwner(self.name, self.setting, self.source)


@dataclass(frozen=True)
class OpensHolder:
    """Opens the label holder, where it is called; holds no owner's table."""

    setting: Setting
    source: Source = field(repr=False)
    ask: Ask

    def __call__(self) -> LabelHolder:
        with blamed(self.setting.holder):
            return LabelHolder(self.setting, self.source, self.ask)


class Session(Protocol):
    """Opened parties."""

    def of_owners(self, operations: Mapping[str, Callable[[FeatureOwner], T]]) -> dict[str, T]:
        """What owners return of these operations, carried out at all of them at once.

        Raises:
            FedrayError: what an owner raised, with its name, or that it is gone.
        """

    def of_holder(self, operation: Callable[[LabelHolder], T]) -> T:
        """What the label holder returns.

        Raises:
            FedrayError: what it raised, or that it is gone.
        """

    def close(self) -> None:
        """End the parties, and with them their keys."""


class InProcess:
    """All parties in this process, for a debugger: protects nothing, and gives the same bits as on Ray.

    Args:
        setting: what all parties know.
        owners: feature owner's name to its table.
        labels: the label holder's.

    Raises:
        FedrayError: a party could not be opened.
    """

    def __init__(self, setting: Setting, owners: Mapping[str, Source], labels: Source) -> None:
        self._owners = {name: OpensOwner(setting, name, owners[name])() for name in setting.owners}
        self._holder = OpensHolder(setting, labels, self._ask)()

    def of_owners(self, operations: Mapping[str, Callable[[FeatureOwner], T]]) -> dict[str, T]:
        return {name: self._of_owner(name, operation) for name, operation in operations.items()}

    def of_holder(self, operation: Callable[[LabelHolder], T]) -> T:
        return operation(self._holder)

    def close(self) -> None:
        self._owners.clear()

    def _of_owner(self, name: str, operation: Callable[[FeatureOwner], T]) -> T:
        with blamed(name):
            return operation(self._owners[name])

    def _ask(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        return {name: self._of_owner(name, methodcaller("answer", message)) for name, message in messages.items()}


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """Errors of this library that are raised inside say at which party.

    Raises:
        FedrayError: of the same type.
    """
    try:
        yield
    except FedrayError as error:
        raise at(name, error) from None


def at(name: str, error: FedrayError) -> FedrayError:
    """The same error, saying at which party."""
    found = error.found if repr(name) in error.found else f"at {name!r}: {error.found}"
    return type(error)(found, error.expected, error.remedy)
