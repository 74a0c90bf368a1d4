"""What three parties are asked, whoever carries the questions: shares to keep, operators to run, results to open."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any, Self

import msgspec
from torch import Tensor

from fedray.errors import ConfigError, ProtocolError
from fedray.mpc.engine import Cost, Ref
from fedray.mpc.keys import Reader, sealed_for
from fedray.mpc.ring import LARGEST_PRECISION, decoded, encoded
from fedray.mpc.shares import N_PARTIES, joined, split
from fedray.mpc.worker import Spent, packed, purpose_of_share, unpacked

MOST_BEGUN = 256
"""Operators that parties may be behind: each waits in the memory of whoever carries the questions."""


class Conductor(ABC):
    """Drives three parties; ``engine.Parties`` but for how to reach them.

    Args:
        precision: fractional bits of fixed-point numbers, 1 to 26.
        publics: the parties' public keys.

    Attributes:
        reader: the key by which the caller reads results.

    Raises:
        ConfigError: no such precision.
    """

    def __init__(self, precision: int, publics: Sequence[bytes]) -> None:
        self.precision = require_precision(precision)
        self.reader = Reader()
        self._publics = tuple(publics)
        self._in_turn = Lock()
        self._begun: deque[list[Any]] = deque()

    def share(self, value: Tensor, readers: Collection[bytes] | None = None) -> Ref:
        """Split a tensor here and send each party its shares; as ``engine.Parties.share``."""
        ref = Ref(secrets.randbits(63))
        allowed = frozenset(readers if readers is not None else [self.reader.public])
        purpose = purpose_of_share(ref.number, allowed)
        shares = split(encoded(value, self.precision), self.precision)
        sealed = [sealed_for(*each, *purpose) for each in zip(self._publics, map(packed, shares), strict=True)]
        self._answers([self._ask(index, "keep", ref.number, each, allowed) for index, each in enumerate(sealed)])
        return ref

    def run(self, operator: str, *args: Any, **options: Any) -> Ref:
        """Have the parties compute; as ``engine.Parties.run``. Waits if they are far behind."""
        ref = Ref(secrets.randbits(63))
        self._begun.append(self._ask_all("run", ref.number, operator, args, options))
        if len(self._begun) > MOST_BEGUN:
            self._answers(self._begun.popleft())
        return ref

    def sealed(self, ref: Ref, reader: bytes) -> bytes:
        """A result for another reader, who gives it to ``opened``; as ``engine.Parties.sealed``."""
        return pack_result(ref, self._answers(self._ask_all("sealed", ref.number, reader)))

    def reveal(self, ref: Ref) -> Tensor:
        """What a shared value is; as ``engine.Parties.reveal``."""
        return opened(self.sealed(ref, self.reader.public), self.reader)

    def forget(self, refs: Sequence[Ref]) -> None:
        """Free what is not needed any more."""
        self._ask_all("forget", [ref.number for ref in refs])

    def costs(self) -> list[Cost]:
        """What each operator has cost, dearest first."""
        spent: list[dict[str, Spent]] = self._answers(self._ask_all("spent"))
        found = [_cost(operator, [each[operator] for each in spent]) for operator in spent[0]]
        return sorted(found, key=lambda cost: cost.seconds, reverse=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End the parties."""

    @abstractmethod
    def _ask(self, index: int, method: str, *args: Any) -> Any:
        """Send a party a question, which it answers after those before."""

    @abstractmethod
    def _answers(self, asked: Sequence[Any]) -> list[Any]:
        """Wait for answers.

        Raises:
            FedrayError: what a party raised; RunError if it is gone.
        """

    def _ask_all(self, method: str, *args: Any) -> list[Any]:
        """Ask each party the same, in the same order whichever threads ask: they draw randomness in that order."""
        with self._in_turn:
            return [self._ask(index, method, *args) for index in range(N_PARTIES)]


def pack_result(ref: Ref, sealed: Sequence[bytes]) -> bytes:
    """Three parties' sealed shares of a result as one message."""
    return msgspec.msgpack.encode((ref.number, list(sealed)))


def opened(result: bytes, reader: Reader) -> Tensor:
    """What three parties sealed for a reader, as float64.

    Raises:
        ProtocolError: it is not for this reader, malformed, or the parties' shares do not belong together.
    """
    try:
        number, sealed = msgspec.msgpack.decode(result, type=tuple[int, tuple[bytes, bytes, bytes]])
    except msgspec.DecodeError:
        raise ProtocolError("a malformed result", "what sealed() gave", "ask for it again") from None
    shares = [unpacked(reader.open(each, "result", number, index)) for index, each in enumerate(sealed)]
    return decoded(joined(shares), shares[0].precision)


def require_precision(precision: int) -> int:
    """The precision, if numbers can have it.

    Raises:
        ConfigError: they cannot.
    """
    if not 1 <= precision <= LARGEST_PRECISION:
        raise ConfigError(f"precision: {precision}", f"1 to {LARGEST_PRECISION} fractional bits", "20 suits most uses")
    return precision


def _cost(operator: str, spent: Sequence[Spent]) -> Cost:
    first, second, third = spent
    return Cost(
        operator,
        first.calls,
        (first.bytes_sent, second.bytes_sent, third.bytes_sent),
        max(each.rounds for each in spent),
        max(each.seconds for each in spent),
        (first.cpu_seconds, second.cpu_seconds, third.cpu_seconds),
    )
