"""Where the time of a run went: in which phase of a round at the server, and in what kind of work at owners.

Phases are medians, since they are measured round by round. Work is a mean: where one round is evaluated while the next
one trains, a record may hold work of both. The first round is apart, since processes warm up in it. Reads records and
what ``fedray.Run`` measured. Must not import torch or ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from fedray.values import RoundRecord

RECORDS = "records"
REST = "rest"
_NAMES = {
    "open": "open",
    "train": "train",
    "seal": "seal",
    "add": "combine",
    "carry": "serialise",
    "evaluate": "evaluate",
    "wait": "wait",
}
"""Kinds of work as records and as readers call them, in the order of a round."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some rounds of a run, and where the time of one of them went.

    Attributes:
        title: which rounds these are.
        n_rounds: how many.
        seconds: seconds a round by what they were spent on.
    """

    title: str
    n_rounds: int
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Each part's share in the total; they sum to one."""
        return {name: spent / self.total for name, spent in self.seconds.items()} if self.total else {}


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one run went.

    Attributes:
        server: wall time of phases at the server.
        owners: time of all processes of owners together, by kind of work; ``rest`` is what was not told apart.
        processes: processes of owners, on average over rounds.
        is_derived: whether work was not on record, so that only training is told from the rest.
        at_once: owners that a process trained as one batched computation.
        round_s: wall time of a round after the first, its record written; None where there is no such round.
        bytes_up: bytes that the server received in a round.
        bytes_down: bytes that it sent.
    """

    server: tuple[Stretch, ...]
    owners: tuple[Stretch, ...]
    processes: float
    is_derived: bool
    at_once: int
    round_s: float | None
    bytes_up: float
    bytes_down: float


@dataclass(frozen=True, slots=True)
class _Round:
    """One round: its record, and what was measured beside it."""

    record: RoundRecord
    round_s: float
    record_s: float
    work: Mapping[str, float]
    processes: int

    @property
    def is_evaluated(self) -> bool:
        return bool(self.record.evaluation or self.record.train_metrics)

    @property
    def phases(self) -> dict[str, float]:
        phases = {phase: spent for phase, spent in self.record.seconds.items() if phase != "total"}
        return {**phases, RECORDS: self.record_s}


def profile(
    rounds: Sequence[RoundRecord], rounds_s: Sequence[float], records_s: Sequence[float], processes: int | None
) -> Profile:
    """Where the time of a run went.

    Args:
        rounds: the run's records, one at least.
        rounds_s: for each, the time from the one before until it was written.
        records_s: of that, the time that it took to be written.
        processes: processes that owners share; None where each has its own, whose work is not on record.
    """
    measured = zip(rounds, rounds_s, records_s, strict=True)
    found = [_Round(*one, *_work(one[0], processes)) for one in measured]
    first, later = found[:1], found[1:]
    parts = [("first round", first), *_later(later)]
    return Profile(
        server=tuple(_phases(title, some) for title, some in parts),
        owners=tuple(_kinds(title, some) for title, some in (("first round", first), ("later rounds", later)) if some),
        processes=fmean(one.processes for one in found),
        is_derived=processes is None,
        at_once=rounds[-1].at_once,
        round_s=fmean(one.round_s for one in later) if later else None,
        bytes_up=median(one.record.bytes_up for one in later or first),
        bytes_down=median(one.record.bytes_down for one in later or first),
    )


def named(work: Mapping[str, float]) -> dict[str, float]:
    """Work by the names that readers know, in the order of a round."""
    return {_NAMES.get(kind, kind): work[kind] for kind in dict.fromkeys([*_NAMES, *work]) if kind in work}


def as_json(found: Profile) -> dict[str, Any]:
    """The figures of a profile under the names of its attributes; seconds a round, and shares of one."""
    return {
        "rounds_per_s": 1 / found.round_s if found.round_s else None,
        "round_s": found.round_s,
        "processes": found.processes,
        "at_once": found.at_once,
        "bytes_up": found.bytes_up,
        "bytes_down": found.bytes_down,
        "is_derived": found.is_derived,
        "server": [_stretch(one) for one in found.server],
        "owners": [_stretch(one) for one in found.owners],
    }


def _stretch(one: Stretch) -> dict[str, Any]:
    return {"rounds": one.title, "n_rounds": one.n_rounds, "seconds": dict(one.seconds), "shares": one.shares}


def _work(record: RoundRecord, processes: int | None) -> tuple[Mapping[str, float], int]:
    """What owners' processes did in a round, and how many they were."""
    if processes is not None:
        return record.work, processes
    trained = [owner.seconds for owner in record.owners if owner.seconds > 0]
    return {"train": sum(trained)}, len(trained)


def _later(later: Sequence[_Round]) -> list[tuple[str, Sequence[_Round]]]:
    """Rounds with and without evaluation apart, where there are both."""
    evaluated = [one for one in later if one.is_evaluated]
    others = [one for one in later if not one.is_evaluated]
    if evaluated and others:
        return [("evaluated", evaluated), ("not evaluated", others)]
    return [("later rounds", later)] if later else []


def _phases(title: str, rounds: Sequence[_Round]) -> Stretch:
    names = dict.fromkeys(phase for one in rounds for phase in one.phases)
    spent = {name: median(one.phases.get(name, 0.0) for one in rounds) for name in names}
    return Stretch(title, len(rounds), spent)


def _kinds(title: str, rounds: Sequence[_Round]) -> Stretch:
    """Work, and what is left of the time that so many processes had."""
    kinds = dict.fromkeys(kind for one in rounds for kind in one.work)
    spent = {kind: fmean(one.work.get(kind, 0.0) for one in rounds) for kind in kinds}
    had = fmean(one.processes * one.round_s for one in rounds)
    return Stretch(title, len(rounds), {**named(spent), REST: max(0.0, had - sum(spent.values()))})
