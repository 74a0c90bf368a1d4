"""The one tree of errors that fedray raises.

    FedrayError
    ├── ConfigError          an experiment that breaks a rule, found before anything starts
    ├── DataError            a shard, a table or a data set that cannot be learned from
    ├── ModelError           a model that cannot be trained on this data or under this privacy
    ├── ResourcesError       the cluster lacks what the experiment asks for
    ├── RunDirectoryError    a run directory that exists, is missing or holds another run
    ├── RecordsError         a record file that cannot be read
    ├── RunError             a run that cannot go on (no update in a round)
    │   └── ServerLost       the server's process or node is gone; a run starts it again from its last checkpoint
    ├── ProtocolError        a peer's message that is malformed, or that asks for what must not be given
    ├── RoundAbandoned       a sum that is not given out, since too few owners are left; the run goes on
    └── OwnerError           what one data owner answers instead of an update; the round goes on
        ├── TooSlow          the work was not done in time, and the strategy takes no partial work
        ├── UpdateRefused    the update is non-finite, misshapen or beyond its bound
        └── BudgetExhausted  the work would spend more than the planned privacy budget

Every error says what was found, what was expected and what to do. Raw arguments go to ``super().__init__`` and the
message is formatted in ``__str__``, so that each survives ``pickle`` and with it the way through Ray.
"""

from __future__ import annotations

from typing import ClassVar


class FedrayError(Exception):
    """Base of all errors of this library.

    Args:
        found: what was found, with the value.
        expected: what would have been right.
        remedy: what the reader can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(found, expected, remedy)
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.found}\n  expected: {self.expected}\n  to do:    {self.remedy}"


class ConfigError(FedrayError):
    """An experiment that breaks a rule of its schema or a rule that spans its sections."""

    exit_code = 2


class DataError(FedrayError):
    """A shard, a table or a data set that cannot be learned from."""

    exit_code = 3


class ModelError(FedrayError):
    """A model that cannot be trained on this data, or not under the privacy that was asked for."""

    exit_code = 4


class ResourcesError(FedrayError):
    """The cluster lacks processors, GPUs, labels or custom resources that the experiment asks for."""

    exit_code = 5


class RunDirectoryError(FedrayError):
    """A run directory that exists already, is missing, or holds something else."""

    exit_code = 6


class RecordsError(FedrayError):
    """A record file that is corrupt, incomplete or of another version."""

    exit_code = 7


class RunError(FedrayError):
    """A run that cannot go on: no owner answered a round, or the server is lost for good."""

    exit_code = 8


class ServerLost(RunError):
    """The server's process or node is gone."""


class ProtocolError(FedrayError):
    """A peer's message that is malformed, or that asks for what must not be given. Whoever raises it gave nothing."""


class RoundAbandoned(FedrayError):
    """A sum that is not given out, since too few owners are left or one of them lied."""


class OwnerError(FedrayError):
    """What one data owner answers instead of an update. The server counts it; the round goes on."""


class TooSlow(OwnerError):
    """Work that was not done in time, for a strategy that takes no partial work."""


class UpdateRefused(OwnerError):
    """An update that is non-finite, misshapen or beyond the bound of the sum."""


class BudgetExhausted(OwnerError):
    """Work that would spend more than the privacy budget that was planned for this owner."""
