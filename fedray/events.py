"""What happened in a run, as structured log: one JSON object a line in ``events.jsonl``, and on the logger ``fedray``.

The driver writes it from records. It owns the names of events and the form of a line. It holds no rows, no keys and no
texts of exceptions: an owner's reason is the one line of its record. It must not import ray or torch.

The standard library's logging is enough here: a line is a mapping that is known in full where it is written. What a
library such as structlog adds, values bound along the way and chains of processors, would have no use.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args

from fedray.values import AbsentOutcome, OwnerRecord, RoundRecord

EVENTS: Final = "events.jsonl"

Event = Literal[
    "run started",
    "round ended",
    "owner absent",
    "server lost",
    "server restarted",
    "resumed",
    "checkpoint written",
    "run ended",
]

_LEVELS: Final[Mapping[Event, int]] = {"owner absent": logging.WARNING, "server lost": logging.WARNING}
"""Levels on the logger; all others are INFO."""

_logger = logging.getLogger("fedray")
_logger.addHandler(logging.NullHandler())


class EventLog:
    """Appends a run's events to a file, and tells the logger ``fedray``; each is written out before ``write`` returns.

    A run that is resumed goes on in the same file. A line that a killed driver left torn stays, on a line of its own.

    Args:
        path: the file; its directory exists.
        run: which run this is, in every line.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._run = run
        is_torn = _is_torn(path)
        self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)
        if is_torn:
            self._file.write("\n")

    def write(
        self, event: Event, *, round: int | None = None, owner: str | None = None, reason: str = "", **figures: Any
    ) -> None:
        """Write one event.

        Args:
            event: what happened.
            round: number of the round, from 1.
            owner: name of the owner that it is about.
            reason: why, in one line; never holds data.
            figures: numbers, texts and mappings of them; what is not finite becomes null.
        """
        about = {"round": round, "owner": owner, "reason": reason or None, "figures": _finite(figures) or None}
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "run": self._run, "event": event, **_given(about)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        _logger.log(_LEVELS.get(event, logging.INFO), event, extra={"run": self._run, **about})

    def round_ended(self, record: RoundRecord) -> None:
        """Write that a round ended, and which of the owners that were asked gave no update, and why."""
        for owner in _absent(record):
            self.write("owner absent", round=record.round, owner=owner.name, reason=owner.reason, outcome=owner.outcome)
        self.write("round ended", round=record.round, reason=record.sum.reason, **_figures(record))

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()


def _is_torn(path: Path) -> bool:
    """Whether the file's last line has no end."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def _absent(record: RoundRecord) -> list[OwnerRecord]:
    return [owner for owner in record.owners if owner.outcome in get_args(AbsentOutcome)]


def _figures(record: RoundRecord) -> dict[str, Any]:
    return _given(
        {
            "asked": len(record.cohort),
            "updates": record.n_updates,
            "sum": record.sum.outcome,
            "metrics": dict(record.metrics) or None,
            "train_metrics": dict(record.train_metrics) or None,
            "central_metrics": dict(record.central_metrics) or None,
            "epsilon": record.epsilon,
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "seconds": record.seconds.get("total"),
        }
    )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _finite(value: Any) -> Any:
    """The value as JSON can hold it, which has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
