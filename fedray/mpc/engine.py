"""What SecureTensor asks of whoever computes: three parties that hold shares and work through operators in order.

``local`` has them as threads of one process, ``fedray.actors.parties`` as Ray actors. The names of operators and what
each takes are in ``operators``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Ref:
    """A shared value that the three parties hold under this number."""

    number: int


@dataclass(frozen=True)
class Cost:
    """What one operator has cost since the parties were started.

    Args:
        operator: its name.
        calls: how often it ran.
        bytes_sent: what each of the three parties sent to the others, in bytes.
        rounds: how often the parties waited for each other.
        seconds: wall time of the slowest party.
        cpu_seconds: CPU time of each party's working thread.
    """

    operator: str
    calls: int
    bytes_sent: tuple[int, int, int]
    rounds: int
    seconds: float
    cpu_seconds: tuple[float, float, float]


class Parties(Protocol):
    """Three parties of which at most one is corrupt, and semi-honest."""

    @property
    def precision(self) -> int:
        """Fractional bits of a fixed-point number."""

    def share(self, value: torch.Tensor, readers: Collection[bytes] | None = None) -> Ref:
        """Split a tensor here and send each party its shares.

        Args:
            value: finite numbers of any shape.
            readers: public keys of those who may learn this value, and what is computed from it. The caller alone if
                left out. What is computed from several values may be learned by those who may learn each.

        Raises:
            DataError: a value is not finite, or beyond what fixed point holds.
        """

    def run(self, operator: str, *args: Any, **options: Any) -> Ref:
        """Have the parties compute; returns at once.

        Args:
            operator: a name in ``operators.OPERATORS``.
            args: ``Ref`` for shares, tensors and numbers for what is public, sequences of them.
            options: public.
        """

    def reveal(self, ref: Ref) -> torch.Tensor:
        """What a shared value is, as float64.

        Raises:
            ProtocolError: the caller is not among its readers, or a party said something malformed.
            RunError: a party is gone.
        """

    def sealed(self, ref: Ref, reader: bytes) -> bytes:
        """The same for another reader: nobody but the holder of this public key can open it.

        Raises:
            ProtocolError, RunError: as for ``reveal``.
        """

    def forget(self, refs: Sequence[Ref]) -> None:
        """Free what is not needed any more."""

    def costs(self) -> list[Cost]:
        """What each operator has cost, dearest first."""
