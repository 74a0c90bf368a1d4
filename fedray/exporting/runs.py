"""What of a run is told to other tools: its identity, its settings, its figures by round, its files.

A record has no clock: a round's time is reckoned back from when the record file was last written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from fedray.errors import RecordsError
from fedray.records import PARQUET, STREAM, RunRecords, read_run, record_files, record_to_json
from fedray.values import RoundRecord

FILES: Final = ("report.html", "model.safetensors")
"""What may lie beside a run's records and is told with them."""
_RESULTS: Final = ("metrics/", "train_metrics/", "central_metrics/", "privacy/")


@dataclass(frozen=True)
class Exported:
    """One run as other tools get it.

    Attributes:
        records: all that was kept of it; of one round at least.
        identity: 12 hex digits; the same for every copy of the run's records, and while the run goes on.
        files: what lies beside its records.
        ended_s: when its last round ended, in seconds since 1970.
    """

    records: RunRecords
    identity: str
    files: tuple[Path, ...]
    ended_s: float

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return str(self.records.experiment["name"])

    @property
    def settings(self) -> dict[str, str | float | bool]:
        """Dotted keys of the experiment to their values; lists as JSON. What is not set is left out."""
        return dict(_flat(self.records.experiment))

    @property
    def final(self) -> Mapping[str, float]:
        """What the last round that was evaluated came to, and its epsilon."""
        evaluated = [record for record in self.records.rounds if record.evaluation] or self.records.rounds
        return {name: value for name, value in scalars(evaluated[-1]).items() if name.startswith(_RESULTS)}

    def timed(self) -> Iterator[tuple[float, RoundRecord]]:
        """Each round and when it ended, in seconds since 1970."""
        durations = [record.seconds.get("total", 0.0) for record in self.records.rounds]
        ends = list(accumulate(durations))
        for end, record in zip(ends, self.records.rounds, strict=True):
            yield self.ended_s - (ends[-1] - end), record

    @property
    def began_s(self) -> float:
        """When its first round began, in seconds since 1970."""
        return self.ended_s - sum(record.seconds.get("total", 0.0) for record in self.records.rounds)


def find(path: Path) -> list[Exported]:
    """Every run at or below a directory, or in one file, of which a round has ended.

    Raises:
        RecordsError: there is no such run, or its records are corrupt.
    """
    files = record_files(path)
    if not files:
        read_run(path)
    found = [_exported(file, records) for file in files if (records := read_run(file)).rounds]
    if not found:
        raise RecordsError(f"{path} holds runs of no round", "a run of which a round has ended", "export it later")
    return found


def _exported(file: Path, records: RunRecords) -> Exported:
    beside = file.parent if file.name in (PARQUET, STREAM) else None
    files = tuple(beside / name for name in FILES if (beside / name).is_file()) if beside else ()
    return Exported(records, _identity(records), files, file.stat().st_mtime)


def _identity(records: RunRecords) -> str:
    """Digest of the experiment and of the first round, whose times no other run has."""
    text = json.dumps(records.experiment, sort_keys=True) + record_to_json(records.rounds[0])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def scalars(record: RoundRecord) -> dict[str, float]:
    """The figures of one round, by name: ``metrics/accuracy``, ``seconds/train``, ``bytes/up``, ..."""
    parts: Mapping[str, Mapping[str, float | None]] = {
        "metrics": record.metrics,
        "train_metrics": record.train_metrics,
        "central_metrics": record.central_metrics,
        "privacy": {"epsilon": record.epsilon, "epsilon_rdp": record.epsilon_rdp},
        "updates": {"summed": record.n_updates, "rejected": record.n_rejected},
        "bytes": {"up": record.bytes_up, "down": record.bytes_down},
        "seconds": record.seconds,
    }
    return {
        f"{part}/{name}": float(value)
        for part, values in parts.items()
        for name, value in values.items()
        if value is not None
    }


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str | float | bool]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, json.dumps(value)
    elif value is not None:
        yield prefix, value
