"""Owners of one table have the same rows whether they are picked out of the file or cut from the sorted table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config.data import Tables
from fedray.data import arrow, open_shard, owner_names
from fedray.data.one_table import rows_of_owner
from fedray.errors import DataError

LONG_AGO_S = 10**9

Reads = list[tuple[str, str] | None]


def _aged(path: Path, changed_s: int = LONG_AGO_S) -> Path:
    """As old as a file that a simulation starts from."""
    os.utime(path, (changed_s, changed_s))
    return path


def _table(n_rows: int, n_owners: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    sites = [None if number == n_owners else f"site {number}" for number in rng.integers(0, n_owners + 1, n_rows)]
    lists = rng.normal(size=(n_rows, 2, 3)).astype(np.float32)
    columns = {
        "lists": pa.array(lists.tolist(), pa.list_(pa.list_(pa.float32()))),
        "tokens": pa.array(rng.integers(0, 9, (n_rows, 2)).tolist(), pa.list_(pa.int64())),
        "fixed": arrow.feature_column(lists.reshape(n_rows, -1)),
        "number": pa.array(np.where(rng.random(n_rows) < 0.1, np.nan, rng.normal(size=n_rows)), from_pandas=True),
        "text": pa.array(rng.choice(["sick", "well"], n_rows).tolist()),
        "category": pa.array(rng.choice(["sick", "well"], n_rows).tolist()).dictionary_encode(),
        "flag": pa.array(rng.random(n_rows) < 0.5),
        "site": pa.array(sites, pa.string()),
    }
    return pa.table(columns)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """What rows were asked for whenever a file was read."""
    seen: Reads = []
    read: Callable[..., pa.Table] = arrow.read_columns

    def counted(path: Path, columns: Any, where: tuple[str, str] | None = None) -> pa.Table:
        seen.append(where)
        return read(path, columns, where)

    monkeypatch.setattr(arrow, "read_columns", counted)
    return seen


@settings(max_examples=25, deadline=None)
@given(
    n_rows=st.integers(1, 80),
    n_owners=st.integers(1, 7),
    row_group=st.integers(1, 80),
    seed=st.integers(0, 2**20),
)
def test_cut_rows_equal_picked_rows(
    tmp_path_factory: pytest.TempPathFactory, n_rows: int, n_owners: int, row_group: int, seed: int
) -> None:
    table = _table(n_rows, n_owners, seed)
    path = tmp_path_factory.mktemp("t") / "all.parquet"
    pq.write_table(table, path, row_group_size=row_group)
    _aged(path)
    columns = tuple(table.column_names[:-1])
    for owner in [f"site {number}" for number in range(n_owners)] * 2:
        found = rows_of_owner(path, columns, "site", owner)
        mask = np.array([site == owner for site in table["site"].to_pylist()])
        expected = table.filter(pa.array(mask)).select(list(columns))
        assert found.to_pydict() == expected.to_pydict()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("kind", ["text", "number"])
def test_shards_do_not_depend_on_who_was_opened_before(tmp_path: Path, suffix: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    sites = rng.permutation(np.repeat(np.arange(12), 15))
    frame = pd.DataFrame(rng.normal(size=(180, 4)), columns=list("abcd")).assign(target=np.arange(180) % 2)
    frame["site"] = sites if kind == "number" else [f"s{site}" for site in sites]
    shards = []
    for path in (tmp_path / f"new{suffix}", tmp_path / f"old{suffix}"):
        frame.to_parquet(path, index=False) if suffix == ".parquet" else frame.to_csv(path, index=False)
        if path.stem == "old":  # the other one is too new to be remembered
            _aged(path)
        data = Tables(path=path, owner_column="site", classes=(0, 1), min_classes=1)
        assert len(owner_names(data)) == 12
        shards.append([open_shard(data, owner) for owner in owner_names(data)])
    for one, other in zip(*shards, strict=True):
        for a, b in ((one.train, other.train), (one.holdout, other.holdout)):
            assert np.array_equal(a.features, b.features)
            assert np.array_equal(a.targets, b.targets)
            assert b.features.flags.writeable
            assert b.features.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_opening_all_owners_reads_the_table_twice_however_many_there_are(
    tmp_path: Path, suffix: str, reads: Reads
) -> None:
    table = _table(400, 50, 1).select(["number", "flag", "site"])
    path = tmp_path / f"all{suffix}"
    pq.write_table(table, path) if suffix == ".parquet" else pacsv.write_csv(table, path)
    _aged(path)
    for number in [*range(50), *range(50)]:
        rows_of_owner(path, ("number", "flag"), "site", f"site {number}")
    assert reads == [("site", "site 0"), None]


def test_a_process_with_one_owner_never_reads_the_others_rows(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "all.parquet"
    pq.write_table(_table(100, 5, 2), path)
    _aged(path)
    for _ in range(3):
        rows_of_owner(path, ("number",), "site", "site 3")
    assert reads == [("site", "site 3")] * 3


def test_names_of_owners_are_read_once(tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / "all.parquet"
    pq.write_table(_table(100, 5, 2), path)
    data = Tables(path=_aged(path), owner_column="site", target="text", classes=("sick", "well"), features=("number",))
    assert {owner_names(data) for _ in range(5)} == {tuple(f"site {number}" for number in range(5))}
    assert len(reads) == 1


def test_a_table_written_again_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    for day in range(3):
        table = pa.table({"x": [1.0 * day, 2.0 * day, 3.0 * day], "site": ["a", "b", "a"]})
        pq.write_table(table, path)
        _aged(path, LONG_AGO_S + day)
        assert rows_of_owner(path, ("x",), "site", "b")["x"].to_pylist() == [2.0 * day]
        assert rows_of_owner(path, ("x",), "site", "a")["x"].to_pylist() == [1.0 * day, 3.0 * day]


def test_owners_without_rows_are_still_refused_once_the_table_is_sorted(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    pd.DataFrame({"x": np.arange(8.0), "target": [0, 1] * 4, "site": list("aabbccdd")}).to_parquet(path, index=False)
    data = Tables(path=_aged(path), owner_column="site", classes=(0, 1), owners=("a", "b", "z"), holdout=0.0)
    assert [len(open_shard(data, owner).train) for owner in "ab"] == [2, 2]
    with pytest.raises(DataError, match="z has no rows"):
        open_shard(data, "z")
