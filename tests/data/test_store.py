"""One file holds all owners of a set that is dealt: the same rows as before it was written, or one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config.data import BreastCancer, Digits, HeartDisease
from fedray.data import arrow, ensure_shards, open_shard, owner_names
from fedray.data.kinds import StoredData
from fedray.data.rows import Rows, divide
from fedray.data.scaling import scale_shard
from fedray.data.shards import ensure_store, shards
from fedray.data.store import open_store, write_store
from fedray.errors import DataError
from fedray.values import Examples, Shard

SETS: list[StoredData] = [
    Digits(),
    Digits.model_validate({"split": "iid", "owners": 3, "central_test": 0.25, "holdout": 0}),
    Digits.model_validate({"split": "shards", "owners": 50, "min_classes": 1, "scaling": "owner"}),
    BreastCancer(),
]


def _bytes(shard: Shard) -> list[bytes]:
    return [array.tobytes() for part in (shard.train, shard.holdout) for array in (part.features, part.targets)]


def _check_against_what_was_dealt(data: StoredData, holdout: float) -> None:
    for name, dealt in zip(owner_names(data), shards(data), strict=True):
        expected = scale_shard(divide(dealt, holdout=holdout, seed=data.seed, owner=name), data.scaling)
        assert _bytes(open_shard(data, name)) == _bytes(expected)


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
def test_opened_shards_are_what_was_dealt_to_the_bit(data: Digits | BreastCancer) -> None:
    _check_against_what_was_dealt(data, data.holdout)


def test_hospitals_keep_their_test_rows_to_the_bit(heart_folder: Path) -> None:
    _check_against_what_was_dealt(HeartDisease(path=heart_folder), 0.0)


def _rows(rng: np.random.Generator, n_rows: int, shape: tuple[int, ...], is_marked: bool) -> Rows:
    features = rng.normal(size=(n_rows, *shape)).astype(np.float32)
    return Rows(Examples(features, rng.integers(0, 9, n_rows)), rng.random(n_rows) < 0.5 if is_marked else None)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    is_marked=st.booleans(),
)
def test_rows_of_any_shape_round_trip(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], shape: tuple[int, ...], is_marked: bool
) -> None:
    rng = np.random.default_rng(0)
    owners = [_rows(rng, count, shape, is_marked) for count in counts]
    path = tmp_path_factory.mktemp("s") / "a.arrow"
    write_store(path, iter(owners))
    for number, given_rows in enumerate(owners):
        found = open_store(path).rows(number)
        assert found.examples.features.dtype == np.float32
        assert np.array_equal(found.examples.features, given_rows.examples.features)
        assert np.array_equal(found.examples.targets, given_rows.examples.targets)
        assert not found.examples.features.flags.writeable
        assert (found.is_holdout is None) == (given_rows.is_holdout is None)
        assert given_rows.is_holdout is None or np.array_equal(found.is_holdout, given_rows.is_holdout)


def test_there_is_one_file_for_all_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path))
    data = Digits.model_validate({"owners": 100, "split": "iid", "min_classes": 1})
    for name in owner_names(data)[::25]:
        open_shard(data, name)
    assert list((tmp_path / "shards").iterdir()) == [ensure_shards(data)]


def test_a_process_that_finds_the_file_needs_no_scikit_learn() -> None:
    ensure_store(Digits())
    code = (
        "import sys; from fedray.config.data import Digits; from fedray.data import open_shard; "
        "open_shard(Digits(), 'owner-00'); print(sorted({'sklearn', 'pandas'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("n_kept", [0, 7, 100, 1000, -50, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_kept: int) -> None:
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path))
    path = ensure_store(Digits())
    path.write_bytes(path.read_bytes()[:n_kept])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read(.|\n)*remove the file") as caught:
        open_shard(Digits(), "owner-00")
    assert caught.value.__suppress_context__
    path.unlink()
    assert len(open_shard(Digits(), "owner-00").train) > 0


def test_a_file_with_damaged_headers_opens_or_is_named(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "whole.arrow"
    write_store(path, [_rows(rng, 4, (3,), is_marked=False) for _ in range(3)])
    whole, n_refused = np.fromfile(path, np.uint8), 0
    for number in range(400):
        damaged, copy = whole.copy(), tmp_path / f"{number}.arrow"
        damaged[rng.integers(0, len(whole), 2)] = rng.integers(0, 256, 2)
        damaged.tofile(copy)
        try:
            store = open_store(copy)
        except DataError:
            n_refused += 1
        else:
            assert sum(len(store.rows(owner).examples) for owner in range(len(store.starts) - 1)) == 12
    assert 50 < n_refused < 350


def _table(**metadata: bytes) -> pa.Table:
    rows = _rows(np.random.default_rng(0), 5, (2,), is_marked=False)
    table = arrow.to_table(rows)
    return table.replace_schema_metadata({**table.schema.metadata, **metadata})


NO_STORES = {
    "no starts": _table(),
    "no metadata": _table().replace_schema_metadata(None),
    "odd starts": _table(**{"fedray.starts": b"123"}),
    "empty starts": _table(**{"fedray.starts": b""}),
    "starts beyond the end": _table(**{"fedray.starts": np.array([0, 3, 6], dtype="<i8").tobytes()}),
    "starts that go back": _table(**{"fedray.starts": np.array([0, 4, 3, 5], dtype="<i8").tobytes()}),
    "other columns": pa.table({"x": [1]}).replace_schema_metadata(
        {"fedray.starts": np.array([0, 1], dtype="<i8").tobytes()}
    ),
}


@pytest.mark.parametrize("name", NO_STORES)
def test_what_is_no_store_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(path, NO_STORES[name].schema) as writer:
        writer.write_table(NO_STORES[name])
    with pytest.raises(DataError, match=r"a\.arrow cannot be read"):
        open_store(path)


def test_a_failure_while_owners_are_made_leaves_nothing(tmp_path: Path) -> None:
    def breaks() -> Iterator[Rows]:
        yield _rows(np.random.default_rng(0), 3, (2,), is_marked=False)
        raise DataError("a", "b", "c")

    with pytest.raises(DataError):
        write_store(tmp_path / "shards" / "a.arrow", breaks())
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_store(tmp_path / "a.arrow", [_rows(np.random.default_rng(0), 3, (2,), is_marked=False)])
    assert list(tmp_path.iterdir()) == []
