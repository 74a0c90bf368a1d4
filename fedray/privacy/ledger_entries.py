"""What stands in a ledger: its entries, one line of JSON each, how lines hang together, and what they add up to.

Every line holds the SHA-256 of the line before it and, last, that of its own bytes without it (S. Haber, W. S.
Stornetta, "How to Time-Stamp a Digital Document", 1991, section 5.1). The chain has no key: it shows damage and edits
to whoever kept a later hash, and does not stop an owner from writing its own ledger anew.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fedray.privacy.events import Charge, Count, Event, Positive, Unit, at_example_level

START = "0" * 64
"""What the first line holds for the hash of the line before it."""

Purpose = Literal["train", "evaluate"]
"""What is released: something of a model update, or of an evaluation."""


class _Entry(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    pass


class Budget(_Entry, frozen=True, tag="budget"):
    """The most that may be spent on a unit; the newest holds."""

    unit: Unit
    epsilon: Positive
    delta: Annotated[float, Meta(gt=0, lt=1)]


class Release(_Entry, frozen=True, tag="charge"):
    """What is about to be released.

    Attributes:
        run: identifies the run among all that the owner ever takes part in.
        experiment: the experiment's name, for the reader.
        round: number of the round, from 1; None for what a run costs as a whole.
        purpose: what is released.
        unit: what the event protects.
        event: the mechanism.
        count: how often it is applied, at most.
    """

    run: str
    experiment: str
    round: Count | None
    purpose: Purpose
    unit: Unit
    event: Event
    count: Annotated[int, Meta(ge=0)]


class Settlement(_Entry, frozen=True, tag="settle"):
    """How often the event of an earlier entry was really applied; less than that entry says."""

    seq: int
    count: Annotated[int, Meta(ge=0)]


class Participation(_Entry, frozen=True, tag="participation"):
    """That the owner is about to take part in a round."""

    run: str
    round: Count


Entry = Budget | Release | Settlement | Participation


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line.

    Attributes:
        seq: its number in the file, from 1.
        previous: hash of the line before it, in hex.
        owner: whose entry it is.
        time: seconds since 1970, UTC, by the clock of whoever wrote it.
        entry: what it says.
        hash: SHA-256, in hex, of the line as it is without this field.
    """

    seq: int
    previous: str
    owner: str
    time: int
    entry: Entry
    hash: str = ""


_BEFORE_HASH = b',"hash":"'
_DECODER = msgspec.json.Decoder(Line)
_NUMBER_AT_THE_END = re.compile(rb"[-+.eE0-9]+$")


def seal(line: Line) -> tuple[bytes, str]:
    """The bytes of a line, with its hash and without a newline, and the hash.

    Raises:
        MsgspecError: an entry that could not be read again.
    """
    raw = _with_hash(msgspec.json.encode(line))
    return raw, _DECODER.decode(raw).hash


def unseal(raw: bytes) -> Line:
    """The line that these bytes are.

    Raises:
        ValueError: they are not what their hash was taken of.
        MsgspecError: they are no line of a ledger.
    """
    content, _, _ = raw.rpartition(_BEFORE_HASH)
    if raw != _with_hash(content + b"}"):
        raise ValueError("its hash is not that of its content")
    return _DECODER.decode(raw)


def is_torn(tail: bytes, seq: int, previous: str) -> bool:
    """Whether these bytes are the beginning of a line, and not all of it, after which a crash may have left zeros.

    A line with a changed byte is not: its hash does not fit, or it ends where no line can be cut.
    """
    start = tail.rstrip(b"\0")
    content, found, _ = start.rpartition(_BEFORE_HASH)
    if found:
        whole = _with_hash(content + b"}")
        return whole != start and whole.startswith(start)
    opening = msgspec.json.encode({"seq": seq, "previous": previous})[:-1] + b',"owner":"'
    return opening.startswith(start[: len(opening)]) and _runs_off(start)


def _with_hash(content: bytes) -> bytes:
    return content[:-1] + _BEFORE_HASH + hashlib.sha256(content).hexdigest().encode() + b'"}'


def _runs_off(start: bytes) -> bool:
    """Whether a reader of these bytes finds nothing wrong but that they end; a number may be cut anywhere."""
    try:
        _DECODER.decode(_NUMBER_AT_THE_END.sub(b"", start))
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    except UnicodeDecodeError:
        return False
    return False


class Book:
    """One owner's entries, added up.

    Attributes:
        budgets: the newest budget of each unit.
        releases: each release as it was charged, by the number of its line.
        counts: how often each was applied, as settled.
        reservations: the numbers of what each run charged as a whole.
        participations: rounds that the owner took part in, by run.
    """

    def __init__(self) -> None:
        self.budgets: dict[Unit, Budget] = {}
        self.releases: dict[int, Release] = {}
        self.counts: dict[int, int] = {}
        self.reservations: dict[str, list[int]] = {}
        self.participations: dict[str, list[int]] = {}
        self._totals: dict[tuple[str, Unit], Counter[Event]] = {}

    def enter(self, seq: int, entry: Entry) -> None:
        """Take in one more entry.

        Raises:
            ValueError: it settles what was not charged, or for more than was.
        """
        match entry:
            case Budget():
                self.budgets[entry.unit] = entry
            case Release():
                self._charge(seq, entry)
            case Participation():
                self.participations.setdefault(entry.run, []).append(entry.round)
            case Settlement():
                self._settle(entry)

    def _charge(self, seq: int, entry: Release) -> None:
        self.releases[seq], self.counts[seq] = entry, entry.count
        self._totals.setdefault((entry.run, entry.unit), Counter())[entry.event] += entry.count
        if entry.round is None:
            self.reservations.setdefault(entry.run, []).append(seq)

    def _settle(self, entry: Settlement) -> None:
        if entry.count >= self.counts.get(entry.seq, 0):
            raise ValueError(f"it settles entry {entry.seq} for {entry.count}, which lowers no charge of this owner")
        release = self.releases[entry.seq]
        self._totals[release.run, release.unit][release.event] -= self.counts[entry.seq] - entry.count
        self.counts[entry.seq] = entry.count

    def is_settled(self, seq: int) -> bool:
        """Whether a charge was lowered since it was made."""
        return self.counts[seq] < self.releases[seq].count

    def totals(self, run: str | None = None) -> Iterator[tuple[Unit, Event, int]]:
        """How often each event was applied, over all runs or in one."""
        for (of_run, unit), events in self._totals.items():
            if run in (None, of_run):
                yield from ((unit, event, count) for event, count in events.items())


def express(unit: Unit, totals: Iterable[tuple[Unit, Event, int]]) -> tuple[Charge, ...] | None:
    """Charges that bound what happens to one unit, each event once; None where nothing does.

    What protects an owner protects its examples, by twice the norm. What protects an example bounds nothing that an
    owner's examples have in common.
    """
    counts: Counter[Event] = Counter()
    for charged, event, count in totals:
        if not count:
            continue
        if charged != unit and unit == "owner":
            return None
        counts[event if charged == unit else at_example_level(event)] += count
    return tuple(Charge(event, count) for event, count in counts.items())
