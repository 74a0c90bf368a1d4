"""One party at work: it keeps shares by number, runs operators on them in order, and opens results to their readers.

A value may be learned by the readers whom its sharer named; what is computed from several, by those who may learn each.
After a failure a party does nothing more and says what it was.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
import torch

from fedray.errors import FedrayError, ProtocolError, RunError
from fedray.mpc.engine import Ref
from fedray.mpc.keys import Reader, sealed_for
from fedray.mpc.operators import OPERATORS
from fedray.mpc.party import Party
from fedray.mpc.ring import LARGEST_PRECISION
from fedray.mpc.shares import Share

QUESTIONS = frozenset({"keep", "run", "sealed", "forget", "spent"})
"""What a party may be asked from elsewhere: methods of ``Worker``."""

Size = Annotated[int, msgspec.Meta(ge=0)]
Precision = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_PRECISION)]


class Halves(msgspec.Struct, frozen=True):
    """A share on its way: to a party, or from one to a reader."""

    shape: tuple[Size, ...]
    precision: Precision
    own: bytes
    next: bytes


@dataclass(frozen=True)
class Held:
    """A share and who may learn what it is part of."""

    share: Share
    readers: frozenset[bytes]


@dataclass(frozen=True)
class Spent:
    """What one operator has cost one party."""

    calls: int = 0
    bytes_sent: int = 0
    rounds: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Worker:
    """One of three parties.

    Args:
        party: what it computes with.
        key: opens what is shared with it.
    """

    def __init__(self, party: Party, key: Reader) -> None:
        self._party = party
        self._key = key
        self._held: dict[int, Held] = {}
        self._failure: FedrayError | None = None
        self._spent: dict[str, Spent] = defaultdict(Spent)

    def keep(self, number: int, sealed: bytes, readers: Iterable[bytes]) -> None:
        """Take a share, sealed together with its number and readers: whoever carries it can change neither.

        Raises:
            ProtocolError: it is malformed, not for this party, this number or these readers, or the number is taken.
        """
        allowed = frozenset(readers)
        share = unpacked(self._key.open(sealed, *purpose_of_share(number, allowed)))
        self._take(number, Held(share, allowed))

    def run(self, number: int, operator: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Run an operator; its result is kept under a number. What goes wrong is said when something is opened."""
        if self._failure is not None:
            return
        try:
            self._take(number, self._accounted(operator, lambda: self._computed(operator, args, options)))
        except FedrayError as error:
            self._failure = error
        except Exception as error:
            self._failure = _stopped(operator, error)

    def sealed(self, number: int, reader: bytes) -> bytes:
        """This party's share of a value, for a reader.

        Raises:
            ProtocolError: the reader is not one of the value's.
            FedrayError: whatever stopped this party.
        """
        if self._failure is not None:
            raise self._failure
        held = self._found(number)
        if reader not in held.readers:
            raise ProtocolError(
                "a reader who may not learn this value",
                "one that is named as reader by everybody whose values it was computed from",
                "have them share with this reader's public key among readers",
            )
        return sealed_for(reader, packed(held.share), "result", number, self._party.index)

    @property
    def stopped(self) -> str:
        """Why this party does nothing more, in a line; empty while it works."""
        return self._failure.found if self._failure else ""

    def forget(self, numbers: Iterable[int]) -> None:
        """Free shares."""
        for number in numbers:
            self._held.pop(number, None)

    def spent(self) -> dict[str, Spent]:
        """What each operator has cost this party."""
        return dict(self._spent)

    def _take(self, number: int, held: Held) -> None:
        if number in self._held:
            raise ProtocolError("a number under which a party holds a value", "a new one", "share the value again")
        self._held[number] = held

    def _computed(self, operator: str, args: Sequence[Any], options: Mapping[str, Any]) -> Held:
        used: list[Held] = []
        share = OPERATORS[operator](self._party, *(self._resolved(arg, used) for arg in args), **options)
        return Held(share, frozenset.intersection(*(held.readers for held in used)))

    def _resolved(self, arg: Any, used: list[Held]) -> Any:
        if isinstance(arg, Ref):
            used.append(self._found(arg.number))
            return used[-1].share
        if isinstance(arg, list):
            return [self._resolved(each, used) for each in arg]
        return arg

    def _found(self, number: int) -> Held:
        if number not in self._held:
            raise ProtocolError("a value that a party does not hold", "one that was shared and not freed", "share it")
        return self._held[number]

    def _accounted(self, operator: str, compute: Callable[[], Held]) -> Held:
        channel, before = self._party.channel, self._spent[operator]
        bytes_before, channel.depth = channel.bytes_sent, 0
        began, cpu_began = time.perf_counter(), time.thread_time()
        result = compute()
        self._spent[operator] = replace(
            before,
            calls=before.calls + 1,
            bytes_sent=before.bytes_sent + channel.bytes_sent - bytes_before,
            rounds=before.rounds + channel.depth,
            seconds=before.seconds + time.perf_counter() - began,
            cpu_seconds=before.cpu_seconds + time.thread_time() - cpu_began,
        )
        return result


def purpose_of_share(number: int, readers: Iterable[bytes]) -> tuple[object, ...]:
    """What a share is sealed for: one number, and these readers of it."""
    return "share", number, *sorted(readers)


def packed(share: Share) -> bytes:
    """A share as bytes."""
    halves = (half.contiguous().numpy().tobytes() for half in (share.own, share.next))
    return msgspec.msgpack.encode(Halves(tuple(share.shape), share.precision, *halves))


def unpacked(content: bytes) -> Share:
    """The share in bytes.

    Raises:
        ProtocolError: they are malformed.
    """
    try:
        halves = msgspec.msgpack.decode(content, type=Halves)
        own, following = (_words(half).reshape(halves.shape) for half in (halves.own, halves.next))
    except (msgspec.DecodeError, ValueError, RuntimeError):
        raise ProtocolError("a malformed share", "two halves of one shape", "share the value again") from None
    return Share(own, following, halves.precision)


def _words(half: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(half), dtype=torch.int64) if half else torch.empty(0, dtype=torch.int64)


def _stopped(operator: str, error: Exception) -> RunError:
    return RunError(
        f"operator {operator!r} stopped with {type(error).__name__}",
        "operands of fitting shapes",
        "see the shapes; if they fit, this is a defect of fedray",
    )
