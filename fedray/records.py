"""Records of runs: one Arrow schema with a version, streamed while a run goes on, Parquet once it has ended.

A run directory holds ``rounds.arrows`` (an Arrow IPC stream, flushed to disk every round) until the run ends, and
``rounds.parquet`` after. Either can be read alone: the experiment, the environment and the way the run ended are in
the schema's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fedray.config import Experiment, as_yaml
from fedray.environment import environment
from fedray.errors import RecordsError, RunDirectoryError
from fedray.values import OwnerRecord, RoundRecord, SumRecord

VERSION = "5"
STREAM = "rounds.arrows"
PARQUET = "rounds.parquet"

Status = Literal["running", "complete", "exhausted", "interrupted", "failed"]

_METRICS = pa.map_(pa.string(), pa.float64())
_OWNER = pa.struct(
    [
        ("name", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("n_steps", pa.int64()),
        ("seconds", pa.float64()),
        ("epsilon", pa.float64()),
        ("epsilon_rdp", pa.float64()),
        ("n_holdout", pa.int64()),
        ("metrics", _METRICS),
        ("charges", pa.string()),
        ("staleness", pa.int64()),
    ]
)
_SUM = pa.struct(
    [
        ("protection", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("stages", pa.map_(pa.string(), pa.int64())),
        ("threshold", pa.int64()),
        ("min_owners", pa.int64()),
        ("neighbours", pa.int64()),
        ("key_bits", pa.int64()),
        ("identities", pa.string()),
        ("key_id", pa.string()),
        ("bytes_up", pa.int64()),
        ("bytes_down", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("round", pa.int64()),
        ("n_owners", pa.int64()),
        ("cohort", pa.list_(pa.string())),
        ("n_updates", pa.int64()),
        ("n_rejected", pa.int64()),
        ("metrics", _METRICS),
        ("train_metrics", _METRICS),
        ("central_metrics", _METRICS),
        ("epsilon", pa.float64()),
        ("epsilon_rdp", pa.float64()),
        ("accountant", pa.string()),
        ("sum", _SUM),
        ("bytes_up", pa.int64()),
        ("bytes_down", pa.int64()),
        ("seconds", _METRICS),
        ("at_once", pa.int64()),
        ("work", _METRICS),
        ("owners", pa.list_(_OWNER)),
        ("parameters_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class RunRecords:
    """All that is kept of one run.

    Attributes:
        label: where it was read from.
        experiment: the whole experiment as a mapping, defaults included.
        environment: versions and machine.
        status: how the run ended; ``running`` if it still goes on or was killed.
        rounds: a record a round, in order.
    """

    label: str
    experiment: Mapping[str, Any]
    environment: Mapping[str, str]
    status: Status
    rounds: tuple[RoundRecord, ...]


def header(experiment: Experiment) -> RunRecords:
    """The records of a run of which no round has ended yet."""
    return RunRecords(
        label=experiment.name,
        experiment=yaml.safe_load(as_yaml(experiment)),
        environment=environment(),
        status="running",
        rounds=(),
    )


class RecordWriter:
    """Writes a run's records: each round is on disk before ``write`` returns.

    Args:
        directory: where they are written.
        experiment: what is run.
        before: records of a run that goes on; they take the place of what the directory holds of it.

    Raises:
        RunDirectoryError: the directory holds records already, and the run does not go on.
    """

    def __init__(self, directory: Path, experiment: Experiment, before: Sequence[RoundRecord] | None = None) -> None:
        if before is None and any((directory / name).exists() for name in (STREAM, PARQUET)):
            raise RunDirectoryError(f"{directory} holds records already", "a new directory", "choose another")
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._header = header(experiment)
        partial = (directory / STREAM).with_suffix(".partial")
        self._file = partial.open("wb")
        self._stream = pa.ipc.new_stream(self._file, SCHEMA.with_metadata(_metadata(self._header)))
        self._append(before or [])
        partial.replace(directory / STREAM)
        (directory / PARQUET).unlink(missing_ok=True)

    def write(self, record: RoundRecord) -> None:
        """Append one round."""
        self._append([record])

    def _append(self, records: Sequence[RoundRecord]) -> None:
        batch = pa.RecordBatch.from_pylist([_row(record) for record in records], schema=SCHEMA)
        self._stream.write_batch(batch)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, status: Status) -> None:
        """End the stream and turn it into Parquet. Safe to call twice."""
        if self._file.closed:
            return
        self._stream.close()
        self._file.close()
        stream = self._directory / STREAM
        write_parquet(self._directory / PARQUET, replace(_read_stream(stream), status=status))
        stream.unlink()


def write_parquet(path: Path, run: RunRecords) -> None:
    """Write a run's records in one step: readers see the whole file or none."""
    table = _table(run.rounds).replace_schema_metadata(_metadata(run))
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)


def read_run(path: Path) -> RunRecords:
    """Records of one run, from its directory or from a record file.

    Raises:
        RecordsError: nothing is there, or it is corrupt or of another version.
    """
    candidates = [path / PARQUET, path / STREAM] if path.is_dir() else [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise RecordsError(
            f"no records in {path}",
            f"{PARQUET} or {STREAM}",
            "name a directory that fedray run or compare wrote; of a vertical run read history.jsonl",
        )
    return _read_stream(found) if found.suffix == ".arrows" else _read_parquet(found)


def find_runs(path: Path) -> list[RunRecords]:
    """Records of every run at or below a directory, or in one file.

    Raises:
        RecordsError: none is there, or one is corrupt.
    """
    return [read_run(file) for file in record_files(path)] or [read_run(path)]


def record_files(path: Path) -> list[Path]:
    """The file of every run's records at or below a directory, or the one that is named."""
    if path.is_file():
        return [path]
    return [file for file in sorted({*path.rglob("*.parquet"), *path.rglob(STREAM)}) if _is_record_file(file)]


def _is_record_file(file: Path) -> bool:
    """Of a run or a collected trial; Tune's own checkpoints hold copies."""
    if file.parent.name.startswith("checkpoint_"):
        return False
    return file.name in (STREAM, PARQUET) or file.parent.name == "trials"


def _table(records: Sequence[RoundRecord]) -> pa.Table:
    return pa.Table.from_pylist([_row(record) for record in records], schema=SCHEMA)


def _row(record: RoundRecord) -> dict[str, Any]:
    row = _fields(record)
    for key in ("metrics", "train_metrics", "central_metrics", "seconds", "work"):
        row[key] = list(row[key].items())
    row["sum"] = {**_fields(record.sum), "stages": list(record.sum.stages.items())}
    row["owners"] = [{**_fields(owner), "metrics": list(owner.metrics.items())} for owner in record.owners]
    return row


def _fields(record: RoundRecord | OwnerRecord | SumRecord) -> dict[str, Any]:
    """Its fields, without a copy of what is in them."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _record(row: dict[str, Any]) -> RoundRecord:
    for key in ("metrics", "train_metrics", "central_metrics", "seconds", "work"):
        row[key] = dict(row[key])
    owners = tuple(OwnerRecord(**{**owner, "metrics": dict(owner["metrics"])}) for owner in row["owners"])
    summed = SumRecord(**{**row["sum"], "stages": dict(row["sum"]["stages"])})
    return RoundRecord(**{**row, "owners": owners, "sum": summed, "cohort": tuple(row["cohort"])})


def record_to_json(record: RoundRecord) -> str:
    """One record as text."""
    return json.dumps(_row(record))


def record_from_json(text: str) -> RoundRecord:
    """The record in a text of ``record_to_json``.

    Raises:
        RecordsError: it is none of this version.
    """
    try:
        return _record(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordsError(
            f"a record that cannot be read: {type(error).__name__}", f"one of version {VERSION}", "run again"
        ) from error


def _metadata(run: RunRecords) -> dict[str, str]:
    return {
        "fedray.version": VERSION,
        "fedray.experiment": json.dumps(run.experiment),
        "fedray.environment": json.dumps(run.environment),
        "fedray.status": run.status,
    }


def _read_parquet(path: Path) -> RunRecords:
    try:
        return _parse(pq.read_table(path), path)
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path, str(error).splitlines()[0]) from error


def _read_stream(path: Path) -> RunRecords:
    """Read whole batches up to where the stream ends; a writer that was killed leaves no end marker."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            schema = reader.schema
            while (batch := _next_batch(reader)) is not None:
                batches.append(batch)
            return _parse(pa.Table.from_batches(batches, schema=schema), path)
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path, str(error).splitlines()[0]) from error


def _next_batch(reader: Any) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except (StopIteration, OSError, pa.ArrowInvalid):
        return None


def _parse(table: pa.Table, path: Path) -> RunRecords:
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    version = metadata.get("fedray.version")
    if version != VERSION:
        raise RecordsError(
            f"{path} has record version {version}",
            f"version {VERSION}",
            "read it with the fedray version that wrote it, or name a record file of fedray",
        )
    try:
        rounds = tuple(_record(row) for row in table.to_pylist())
        return RunRecords(
            label=path.stem if path.parent.name == "trials" else path.parent.name,
            experiment=json.loads(metadata["fedray.experiment"]),
            environment=json.loads(metadata["fedray.environment"]),
            status=metadata["fedray.status"],
            rounds=rounds,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, f"{type(error).__name__}: {error}") from error


def _corrupt(path: Path, detail: str) -> RecordsError:
    return RecordsError(
        f"{path} cannot be read: {detail}", "a whole record file", "restore it from a copy, or run again"
    )
