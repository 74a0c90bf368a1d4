"""User tables: what round-trips, and one clear error without a row's value for everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedray.config.data import Tables
from fedray.data import ensure_shards, open_shard, owner_names, schema_of
from fedray.errors import ConfigError, DataError, FedrayError
from fedray.values import Shard

SECRET = 987654.125
"""A value that no message may hold."""


def _frame(n_rows: int = 20, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(20, 80, n_rows),
            "smoker": rng.random(n_rows) < 0.5,
            "dose": rng.normal(size=n_rows),
            "target": np.arange(n_rows) % 2,
        }
    )


def _section(path: Path, **changes: Any) -> Tables:
    return Tables.model_validate({"path": path, "classes": [0, 1], **changes})


def _both(shard: Shard) -> np.ndarray:
    parts = (shard.train, shard.holdout)
    rows = np.concatenate([np.column_stack([p.features.reshape(len(p), -1), p.targets]) for p in parts])
    return rows[np.lexsort(rows.T)]


def _sorted(frame: pd.DataFrame) -> np.ndarray:
    rows = frame.astype(np.float32).to_numpy()
    return rows[np.lexsort(rows.T)]


def _write_folder(folder: Path, suffix: str, frames: dict[str, pd.DataFrame]) -> Path:
    folder.mkdir()
    for owner, frame in frames.items():
        path = folder / f"{owner}{suffix}"
        frame.to_parquet(path, index=False) if suffix == ".parquet" else frame.to_csv(path, index=False)
    return folder


# --- what works --------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_folder_of_files_round_trips(tmp_path: Path, suffix: str) -> None:
    frames = {"north": _frame(20, 1), "south": _frame(31, 2)}
    data = _section(_write_folder(tmp_path / "d", suffix, frames))
    (tmp_path / "d" / "_SUCCESS.csv").write_text("")
    (tmp_path / "d" / "README.txt").write_text("not a table")
    assert owner_names(data) == ("north", "south")
    assert schema_of(data).feature_shape == (3,)
    assert ensure_shards(data) == tmp_path / "d"
    for owner, frame in frames.items():
        shard = open_shard(data, owner)
        assert len(shard.holdout) == int(np.ceil(0.2 * len(frame)))
        np.testing.assert_allclose(_both(shard), _sorted(frame), rtol=1e-6)
        assert shard.train.features.flags.writeable
        assert shard.train.features.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("kind", [str, int, "category"])
def test_one_table_with_an_owner_column_round_trips(tmp_path: Path, suffix: str, kind: Any) -> None:
    frame = _frame(60).assign(site=pd.Series([row % 3 for row in range(60)]).astype(str).astype(kind))
    path = tmp_path / f"all{suffix}"
    frame.to_parquet(path, index=False) if suffix == ".parquet" else frame.to_csv(path, index=False)
    data = _section(path, owner_column="site")
    assert owner_names(data) == ("0", "1", "2")
    assert schema_of(data).feature_shape == (3,)
    for number, owner in enumerate(owner_names(data)):
        expected = frame[frame["site"].astype(str) == str(number)].drop(columns="site")
        np.testing.assert_allclose(_both(open_shard(data, owner)), _sorted(expected), rtol=1e-6)


def test_named_features_fix_the_order_whatever_the_files_order(tmp_path: Path) -> None:
    one, other = _frame(20), _frame(20)[["target", "dose", "smoker", "age"]]
    data = _section(_write_folder(tmp_path / "d", ".csv", {"a": one, "b": other}), features=["dose", "age"])
    assert schema_of(data).feature_shape == (2,)
    assert np.array_equal(_both(open_shard(data, "a")), _both(open_shard(data, "b")))


def test_labels_of_any_kind_become_their_place_in_classes(tmp_path: Path) -> None:
    frame = _frame(30)
    for labels, classes in (
        (np.where(frame["target"] == 1, "sick", "well"), ["well", "sick"]),
        (frame["target"] == 1, [False, True]),
        (frame["target"] + 0.0, [0, 1]),
        (pd.Categorical(np.where(frame["target"] == 1, "sick", "well")), ["well", "sick"]),
    ):
        path = tmp_path / "a.parquet"
        frame.assign(target=labels).to_parquet(path, index=False)
        shard = open_shard(_section(tmp_path, classes=classes), "a")
        assert shard.train.targets.dtype == np.int64
        np.testing.assert_allclose(_both(shard), _sorted(frame), rtol=1e-6)


def test_without_classes_targets_are_numbers(tmp_path: Path) -> None:
    frame = _frame(12).assign(target=np.linspace(0, 1, 12))
    data = _section(_write_folder(tmp_path / "d", ".parquet", {"a": frame}), classes=None)
    assert schema_of(data).n_classes is None
    shard = open_shard(data, "a")
    assert shard.train.targets.dtype == np.float32
    assert shard.train.targets.shape == (9,)


def test_a_holdout_column_marks_the_rows(tmp_path: Path) -> None:
    frame = _frame(20).assign(test=[row % 5 < 2 for row in range(20)])
    data = _section(_write_folder(tmp_path / "d", ".csv", {"a": frame}), holdout_column="test")
    shard = open_shard(data, "a")
    expected = frame[~frame["test"]]
    assert schema_of(data).feature_shape == (3,)
    np.testing.assert_allclose(shard.train.features[:, 2], expected["dose"], rtol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_list_columns_take_the_shape_that_is_given(tmp_path: Path, nested: bool) -> None:
    images = np.arange(10 * 12, dtype=np.float32).reshape(10, 3, 4)
    cells = images.tolist() if nested else images.reshape(10, 12).tolist()
    pq.write_table(pa.table({"image": cells, "target": [0, 1] * 5}), tmp_path / "a.parquet")
    data = _section(tmp_path, feature_shape=[1, 3, 4], holdout=0)
    assert schema_of(data).feature_shape == (1, 3, 4)
    assert np.array_equal(open_shard(data, "a").train.features, images.reshape(10, 1, 3, 4))


def test_whole_numbers_beyond_double_precision_are_rounded_not_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [2**60 + 1, 2**53 + 1, 1], "target": [0, 1, 0]}), tmp_path / "a.parquet")
    features = open_shard(_section(tmp_path, holdout=0), "a").train.features
    assert features[:, 0].tolist() == [2.0**60, 2.0**53, 1.0]


def test_tensor_columns_of_other_tools_are_read_as_lists(tmp_path: Path) -> None:
    images = np.arange(72, dtype=np.float32).reshape(6, 3, 4)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    pq.write_table(pa.table({"image": column, "target": [0, 1] * 3}), tmp_path / "a.parquet")
    data = _section(tmp_path, feature_shape=[1, 3, 4], holdout=0)
    assert schema_of(data).feature_shape == (1, 3, 4)
    assert np.array_equal(open_shard(data, "a").train.features, images.reshape(6, 1, 3, 4))


def test_flat_columns_can_be_given_a_shape(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.arange(40.0).reshape(10, 4), columns=["p.10", "p.2", "p.3", "p.4"])
    frame["target"] = [0, 1] * 5
    data = _section(_write_folder(tmp_path / "d", ".parquet", {"a": frame}), feature_shape=[1, 2, 2], holdout=0)
    assert np.array_equal(open_shard(data, "a").train.features, np.arange(40.0).reshape(10, 1, 2, 2))


def test_whole_number_lists_stay_whole_for_embeddings(tmp_path: Path) -> None:
    pq.write_table(pa.table({"tokens": [[2**40, 1], [3, 4]] * 3, "target": [0, 1] * 3}), tmp_path / "a.parquet")
    data = _section(tmp_path, feature_shape=[2], holdout=0)
    assert schema_of(data).feature_dtype == "int64"
    features = open_shard(data, "a").train.features
    assert features.dtype == np.int64
    assert features[0, 0] == 2**40
    with pytest.raises(ConfigError, match="tokens"):
        schema_of(data.model_copy(update={"scaling": _section(tmp_path, scaling="owner").scaling}))


def test_owners_whose_files_lie_elsewhere_need_only_the_feature_names(tmp_path: Path) -> None:
    data = _section(tmp_path / "elsewhere", owners=["a", "b"], features=["age", "dose"])
    assert owner_names(data) == ("a", "b")
    assert schema_of(data).feature_shape == (2,)
    with pytest.raises(ConfigError, match=r"data\.features is not given"):
        schema_of(data.model_copy(update={"features": None}))
    with pytest.raises(DataError, match="no file"):
        open_shard(data, "a")


def test_the_schema_is_told_by_one_listed_file(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path / "d", ".parquet", {"a": _frame()})
    (folder / "b.parquet").write_bytes(b"not parquet at all")
    assert schema_of(_section(folder)).feature_shape == (3,)
    (folder / "c.csv").write_text("not,the,same\n1,2,3\n")
    assert schema_of(_section(folder, owners=["z", "a"])).feature_shape == (3,)


def test_held_out_rows_are_a_pure_function_of_seed_and_owner(tmp_path: Path) -> None:
    data = _section(_write_folder(tmp_path / "d", ".csv", {"a": _frame(50), "b": _frame(50)}))
    first, again = open_shard(data, "a"), open_shard(data, "a")
    other_owner, other_seed = open_shard(data, "b"), open_shard(data.model_copy(update={"seed": 1}), "a")
    assert np.array_equal(first.holdout.features, again.holdout.features)
    assert not np.array_equal(first.holdout.features, other_owner.holdout.features)
    assert not np.array_equal(first.holdout.features, other_seed.holdout.features)


def test_one_row_trains_and_is_never_held_out(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path / "d", ".csv", {"a": _frame(1)})
    shard = open_shard(_section(folder, min_classes=1, scaling="owner"), "a")
    assert (len(shard.train), len(shard.holdout)) == (1, 0)
    assert np.isfinite(shard.train.features).all()


# --- what does not --------------------

Change = Callable[[pd.DataFrame], pd.DataFrame]

BAD_ROWS: list[tuple[str, Change, dict[str, Any], str]] = [
    ("missing value", lambda f: f.assign(dose=[np.nan, *f["dose"][1:]]), {}, r"'dose' \(1 rows\)"),
    ("infinite", lambda f: f.assign(dose=[np.inf, -np.inf, *f["dose"][2:]]), {}, r"'dose' \(2 rows\)"),
    ("too large", lambda f: f.assign(dose=[1e300, *f["dose"][1:]]), {}, r"'dose' \(1 rows\)"),
    ("empty column", lambda f: f.assign(dose=None), {}, r"'dose' \(20 rows\)"),
    ("text", lambda f: f.assign(dose=[f"x{SECRET}"] * len(f)), {}, r"not numeric: 'dose'"),
    ("unknown label", lambda f: f.assign(target=[SECRET, *f["target"][1:]]), {}, r"1 rows of a have a label"),
    ("missing label", lambda f: f.assign(target=[None, *f["target"][1:]]), {}, r"1 rows of a have a label"),
    ("one class", lambda f: f.assign(target=0), {}, r"min_classes: 1"),
    ("missing target column", lambda f: f.rename(columns={"target": "tarjet"}), {}, r"did you mean 'tarjet'"),
    ("missing feature column", lambda f: f, {"features": ["agee"]}, r"did you mean 'age'"),
    ("no rows", lambda f: f.iloc[:0], {}, r"a has no rows"),
    ("no features", lambda f: f[["target"]], {}, r"no column besides"),
    ("shape", lambda f: f, {"feature_shape": [2, 2]}, r"\[2, 2\] has 4 values"),
    ("no holdout column", lambda f: f, {"holdout_column": "test"}, r"no column 'test'"),
    ("holdout of numbers", lambda f: f, {"holdout_column": "age"}, r"holdout column 'age' of a is int64"),
    ("all held out", lambda f: f.assign(test=True), {"holdout_column": "test"}, r"0 of them to train on"),
    ("regression on text", lambda f: f.assign(target=f"x{SECRET}"), {"classes": None}, r"not numeric"),
    ("nan target", lambda f: f.assign(target=[np.nan] * len(f)), {"classes": None}, r"'target' \(20 rows\)"),
    ("target as feature", lambda f: f, {"features": ["age", "target"]}, r"\['target'\] named twice"),
    ("feature twice", lambda f: f, {"features": ["age", "age"]}, r"\['age'\] named twice"),
    ("all labels missing", lambda f: f.assign(target=None), {}, r"20 rows of a have a label"),
    ("owner twice", lambda f: f, {"owners": ["a", "a"]}, r"data\.owners is \['a', 'a'\]"),
    (
        "scaled too far",
        lambda f: f.assign(dose=1e30),
        {"scaling": {"name": "fixed", "center": [0], "scale": [1e-30]}},
        r"scaled values are too large",
    ),
    ("equal classes", lambda f: f, {"classes": [1, True]}, r"all differ"),
    ("owner column of a folder", lambda f: f, {"owner_column": "age"}, r"is a folder"),
    ("scaling", lambda f: f, {"scaling": {"name": "fixed", "center": [0], "scale": [1, 2]}}, r"scale has 2"),
]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(("change", "section", "message"), [c[1:] for c in BAD_ROWS], ids=[c[0] for c in BAD_ROWS])
def test_bad_input_gives_one_error_without_a_value(
    tmp_path: Path, suffix: str, change: Change, section: dict[str, Any], message: str
) -> None:
    if suffix == ".csv" and message == "a has no rows":
        message = "not numeric|a has no rows"
    folder = _write_folder(tmp_path / "d", suffix, {"a": change(_frame())})
    with pytest.raises(FedrayError, match=message) as caught:
        open_shard(_section(folder, **section), "a")
    assert isinstance(caught.value, ConfigError | DataError)
    assert not re.search(r"987654", str(caught.value))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 nonsense"),
        ("a.parquet", b""),
        ("a.csv", b""),
        ("a.csv", b"x,target\n987654,0\n1,2,3,987654\n"),
        ("a.csv", b"x,target\n\xff\xfe987654,0\n"),
        ("a.csv", b"x,x,target\n1,2,0\n"),
    ],
)
def test_a_corrupt_file_is_named_but_not_quoted(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(name)) as caught:
        open_shard(_section(tmp_path), "a")
    assert "987654" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_rows_that_differ_in_length_late_in_a_csv_are_not_quoted(tmp_path: Path) -> None:
    lines = ["x,target", *(f"{row},{row % 2}" for row in range(300_000)), "987654,1,1"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="cannot be read as csv") as caught:
        open_shard(_section(tmp_path), "a")
    assert "987654" not in str(caught.value)


def test_lists_of_several_lengths_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0], [1.0, 2.0, 3.0]], "target": [0, 1, 0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="do not hold 2 values"):
        open_shard(_section(tmp_path, feature_shape=[2]), "a")
    with pytest.raises(ConfigError, match="feature_shape is not given"):
        schema_of(_section(tmp_path))


def test_a_missing_value_inside_a_list_is_counted_by_row(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"x": [[1.0, None], [None, None], [1.0, 2.0]], "target": [0, 1, 0]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"'x' \(2 rows\)"):
        open_shard(_section(tmp_path, feature_shape=[2]), "a")


def test_a_list_column_stands_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [[1.0], [2.0]], "age": [1, 2], "target": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="list column among 2"):
        schema_of(_section(tmp_path, feature_shape=[1]))


def test_owners_with_other_columns_are_refused_unless_features_are_named(tmp_path: Path) -> None:
    frames = {
        "a": _frame(),
        "b": _frame().assign(extra=1.0),
        "c": _frame()[["dose", "age", "smoker", "target"]],
    }
    folder = _write_folder(tmp_path / "d", ".csv", frames)
    with pytest.raises(DataError, match=r"extra \['extra'\]"):
        open_shard(_section(folder), "b")
    with pytest.raises(DataError, match="another order"):
        open_shard(_section(folder), "c")
    named = _section(folder, features=["age", "smoker", "dose"])
    assert np.array_equal(_both(open_shard(named, "b")), _both(open_shard(named, "c")))


def test_what_cannot_be_listed_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        owner_names(_section(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no \.parquet or \.csv file"):
        owner_names(_section(tmp_path))
    _frame().to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ConfigError, match="owner_column is not given"):
        owner_names(_section(tmp_path / "a.csv"))
    with pytest.raises(DataError, match="no column 'site'"):
        owner_names(_section(tmp_path / "a.csv", owner_column="site"))
    _frame().to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="both a"):
        owner_names(_section(tmp_path))


def test_an_owner_cannot_reach_out_of_the_folder(tmp_path: Path) -> None:
    folder = _write_folder(tmp_path / "d", ".csv", {"a": _frame()})
    _frame().to_csv(tmp_path / "outside.csv", index=False)
    with pytest.raises(DataError, match="no file"):
        open_shard(_section(folder, owners=["../outside"]), "../outside")


def test_an_owner_column_of_fractions_is_refused(tmp_path: Path) -> None:
    _frame().to_parquet(tmp_path / "all.parquet")
    for call in (owner_names, lambda data: open_shard(data, "1")):
        with pytest.raises(DataError, match="owner column 'dose'"):
            call(_section(tmp_path / "all.parquet", owner_column="dose"))


def test_an_owner_without_rows_in_one_table_is_refused(tmp_path: Path) -> None:
    _frame().assign(site="x").to_parquet(tmp_path / "all.parquet")
    with pytest.raises(DataError, match="y has no rows"):
        open_shard(_section(tmp_path / "all.parquet", owner_column="site"), "y")
