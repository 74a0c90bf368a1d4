"""Records: nothing is lost that was flushed, nothing wrong is read, and what cannot be read says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config import Experiment, validated
from fedray.errors import RecordsError, RunDirectoryError
from fedray.records import PARQUET, STREAM, RecordWriter, find_runs, header, read_run, write_parquet
from fedray.values import OwnerRecord, RoundRecord, SumRecord

EXPERIMENT = Experiment(name="kept", strategy={"name": "fedprox", "mu": 0.25}, rounds=3)


SUM = SumRecord(
    protection="masked",
    outcome="opened",
    reason="",
    stages={"asked": 4, "keys": 4, "updates": 3, "revealed": 3},
    threshold=3,
    min_owners=3,
    neighbours=3,
    key_bits=128,
    identities="first use",
    key_id="",
    bytes_up=2**33,
    bytes_down=12_345,
)


CHARGES = '[{"event":{"name":"gaussian","noise_multiplier":2.0},"count":3}]'


def _record(round: int, **values: Any) -> RoundRecord:
    owner = OwnerRecord("a", "update", "", 3, 0.5, 1.25, 1.5, 4, {"loss": 0.7, "accuracy": 1.0}, CHARGES, 3)
    gone = OwnerRecord("b", "absent", "its actor died", 0, 0.0, None, None, 0, {})
    given: dict[str, Any] = {
        "round": round,
        "n_owners": 5,
        "cohort": ("a", "b"),
        "n_updates": 1,
        "n_rejected": 0,
        "metrics": {"loss": 1 / 3, "accuracy": round / 10},
        "train_metrics": {},
        "central_metrics": {"loss": float("inf")},
        "epsilon": None,
        "epsilon_rdp": 2.5,
        "accountant": None,
        "sum": SUM,
        "bytes_up": 2**40,
        "bytes_down": 7,
        "seconds": {"train": 0.1, "total": 0.1},
        "at_once": 16,
        "work": {"train": 0.25, "wait": 0.0},
        "owners": (owner, gone),
        "parameters_sha256": "ab" * 32,
    }
    return RoundRecord(**{**given, **values})


PRIVATE: dict[str, Any] = {"epsilon": 1.5, "accountant": "PLD"}
RECORDS = [_record(1), _record(2, **PRIVATE), _record(3)]


def _stream(folder: Path, records: list[RoundRecord]) -> Path:
    """What a writer that was killed leaves."""
    writer = RecordWriter(folder, EXPERIMENT)
    for record in records:
        writer.write(record)
    left = (folder / STREAM).read_bytes()
    writer.close("failed")
    (folder / PARQUET).unlink()
    (folder / STREAM).write_bytes(left)
    return folder / STREAM


def test_records_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run", EXPERIMENT)
    for n, record in enumerate(RECORDS, 1):
        writer.write(record)
        found = read_run(tmp_path / "run")
        assert found.rounds == tuple(RECORDS[:n])
        assert found.status == "running"
    writer.close("complete")


@pytest.mark.parametrize("status", ["complete", "exhausted", "interrupted", "failed"])
def test_records_survive_the_way_through_stream_and_parquet(tmp_path: Path, status: Any) -> None:
    folder = tmp_path / "run"
    writer = RecordWriter(folder, EXPERIMENT)
    for record in RECORDS:
        writer.write(record)
    writer.close(status)
    writer.close("failed")
    assert sorted(path.name for path in folder.iterdir()) == [PARQUET]
    for path in (folder, folder / PARQUET):
        found = read_run(path)
        assert found.rounds == tuple(RECORDS)
        assert (found.status, found.label) == (status, "run")
        assert validated(found.experiment) == EXPERIMENT
        assert found.environment["numpy"] == np.__version__
        assert found.environment["torch"].startswith("2.")


def test_a_run_without_a_round_has_records_all_the_same(tmp_path: Path) -> None:
    RecordWriter(tmp_path, EXPERIMENT).close("failed")
    found = read_run(tmp_path)
    assert (found.rounds, found.status) == ((), "failed")
    assert validated(found.experiment) == EXPERIMENT


METRICS = st.dictionaries(st.text(min_size=1, max_size=5), st.floats(allow_nan=False), max_size=3)
MAYBE = st.none() | st.floats(0, 1e6)


COUNTS = st.integers(0, 2**62)
SUMS = st.builds(
    SumRecord,
    protection=st.sampled_from(["plain", "masked", "ckks", "bfv"]),
    outcome=st.sampled_from(["opened", "abandoned", "empty"]),
    reason=st.text(max_size=8),
    stages=st.dictionaries(st.text(min_size=1, max_size=5), COUNTS, max_size=4),
    threshold=COUNTS,
    min_owners=COUNTS,
    neighbours=COUNTS,
    key_bits=COUNTS,
    identities=st.sampled_from(["enrolled", "first use", "none"]),
    key_id=st.text(max_size=8),
    bytes_up=COUNTS,
    bytes_down=COUNTS,
)


@settings(deadline=None, max_examples=25)
@given(
    metrics=METRICS,
    epsilon=MAYBE,
    cohort=st.lists(st.text(max_size=4), max_size=3),
    reason=st.text(max_size=8),
    outcome=st.sampled_from(["failed", "unopened", "absent", "exhausted"]),
    accountant=st.sampled_from(["PLD", "RDP", None]),
    summed=SUMS,
)
def test_any_record_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    metrics: Any,
    epsilon: Any,
    cohort: Any,
    reason: str,
    outcome: Any,
    accountant: Any,
    summed: SumRecord,
) -> None:
    owner = OwnerRecord("ä/ö", outcome, reason, 0, 0.0, epsilon, epsilon, 1, metrics)
    private = {"epsilon": epsilon, "accountant": accountant}
    record = _record(1, metrics=metrics, cohort=tuple(cohort), owners=(owner,), sum=summed, **private)
    folder = tmp_path_factory.mktemp("records")
    writer = RecordWriter(folder, EXPERIMENT)
    writer.write(record)
    assert read_run(folder).rounds == (record,)
    writer.close("complete")
    (found,) = read_run(folder).rounds
    assert found == record
    assert list(found.sum.stages) == list(summed.stages), "stages are in the order of the protocol"


def test_a_stream_cut_off_anywhere_in_its_last_batch_gives_all_earlier_rounds(tmp_path: Path) -> None:
    size_of_two = _stream(tmp_path / "two", RECORDS[:2]).stat().st_size
    whole = _stream(tmp_path / "three", RECORDS).read_bytes()
    cut = tmp_path / "cut" / STREAM
    cut.parent.mkdir()
    near_the_ends = {*range(size_of_two, size_of_two + 80), *range(len(whole) - 80, len(whole))}
    for size in sorted(near_the_ends | set(range(size_of_two, len(whole), 11))):
        cut.write_bytes(whole[:size])
        assert read_run(cut).rounds == tuple(RECORDS[:2]), size
    cut.write_bytes(whole)
    assert read_run(cut).rounds == tuple(RECORDS)


def test_a_stream_cut_off_anywhere_gives_right_records_or_says_that_it_cannot_be_read(tmp_path: Path) -> None:
    whole = _stream(tmp_path / "three", RECORDS).read_bytes()
    cut = tmp_path / STREAM
    for size in range(0, len(whole), 61):
        cut.write_bytes(whole[:size])
        try:
            rounds = read_run(cut).rounds
        except RecordsError:
            continue
        assert rounds == tuple(RECORDS[: len(rounds)])


@pytest.mark.parametrize("name", [STREAM, PARQUET])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"nonsense" * 100, b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordsError, match=name):
        read_run(tmp_path)


def test_a_parquet_file_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / PARQUET
    write_parquet(path, replace(header(EXPERIMENT), rounds=tuple(RECORDS)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 997):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordsError, match=PARQUET):
            read_run(path)


@pytest.mark.parametrize("version", ["0", "1", "2", "3", None])
def test_records_of_another_version_are_not_guessed_at(tmp_path: Path, version: str | None) -> None:
    path = tmp_path / PARQUET
    write_parquet(path, replace(header(EXPERIMENT), rounds=tuple(RECORDS)))
    table = pq.read_table(path)
    metadata = {k: v for k, v in table.schema.metadata.items() if k != b"fedray.version"}
    pq.write_table(
        table.replace_schema_metadata({**metadata, **({"fedray.version": version} if version else {})}), path
    )
    with pytest.raises(RecordsError, match=f"record version {version}"):
        read_run(path)


def test_a_table_of_another_shape_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / PARQUET
    write_parquet(path, replace(header(EXPERIMENT), rounds=tuple(RECORDS)))
    metadata = pq.read_table(path).schema.metadata
    whole = pq.read_table(path)
    for table in (pa.table({"round": [1]}), whole.drop_columns(["owners"]), whole.drop_columns(["sum"])):
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(RecordsError, match="cannot be read"):
            read_run(path)


def test_a_directory_that_holds_records_is_refused(tmp_path: Path) -> None:
    first = RecordWriter(tmp_path / "run", EXPERIMENT)
    with pytest.raises(RunDirectoryError, match="holds records already"):
        RecordWriter(tmp_path / "run", EXPERIMENT)
    first.write(RECORDS[0])
    first.close("complete")
    with pytest.raises(RunDirectoryError):
        RecordWriter(tmp_path / "run", EXPERIMENT)
    assert read_run(tmp_path / "run").rounds == (RECORDS[0],)


def test_a_place_without_records_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "x.parquet"):
        with pytest.raises(RecordsError, match="no records"):
            read_run(path)
    with pytest.raises(RecordsError):
        find_runs(tmp_path)


def test_all_runs_below_a_directory_are_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        writer = RecordWriter(tmp_path / "deep" / name, EXPERIMENT)
        writer.write(RECORDS[0])
        writer.close("complete")
    _stream(tmp_path / "three", RECORDS)
    (tmp_path / "trials").mkdir()
    write_parquet(tmp_path / "trials" / "t-01.parquet", header(EXPERIMENT))
    (tmp_path / "deep" / "data.parquet").write_bytes(b"not records")
    assert sorted(run.label for run in find_runs(tmp_path)) == ["one", "t-01", "three", "two"]
