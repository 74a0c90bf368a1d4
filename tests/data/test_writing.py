"""Whatever the data come as, a folder of shards gives back the same rows, and an experiment reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config import Experiment
from fedray.config.data import Quantity, Tables
from fedray.data import open_shard, owner_names, schema_of, write_shards
from fedray.errors import ConfigError, DataError


class HuggingFaceLike:
    """All that is used of ``datasets.Dataset``."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def to_pandas(self) -> pd.DataFrame:
        return self.frame


class Pairs(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, n_rows: int = 40) -> None:
        self.x = torch.arange(n_rows * 12, dtype=torch.float32).reshape(n_rows, 1, 3, 4)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.x[row], row % 4


def _frame(n_rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    site = [f"site {row % 3}" for row in range(n_rows)]
    return pd.DataFrame(
        {"a": rng.normal(size=n_rows), "b": np.arange(n_rows), "site": site, "label": np.arange(n_rows) % 2}
    )


def _opened(folder: Path, **section: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features and targets of all owners, in the order of the first feature."""
    data = Tables.model_validate({"path": folder, "holdout": 0, "min_classes": 1, **section})
    shards = [open_shard(data, owner).train for owner in owner_names(data)]
    features = np.concatenate([shard.features for shard in shards])
    order = np.argsort(features.reshape(len(features), -1)[:, -1])
    return features[order], np.concatenate([shard.targets for shard in shards])[order]


@pytest.mark.parametrize("wrap", [lambda frame: frame, HuggingFaceLike], ids=["pandas", "hugging face"])
def test_frames_with_an_owner_column_round_trip(tmp_path: Path, wrap: Any) -> None:
    frame = _frame()
    folder = write_shards(tmp_path / "d", wrap(frame), target="label", owner="site")
    assert sorted(path.name for path in folder.iterdir()) == [f"site {n}.parquet" for n in range(3)]
    features, targets = _opened(folder, target="label", classes=[0, 1])
    np.testing.assert_allclose(features, frame[["a", "b"]], rtol=1e-6)
    assert np.array_equal(targets, frame["label"])


def test_hugging_face_array_columns_round_trip(tmp_path: Path) -> None:
    frame = pd.DataFrame({"pixels": list(np.arange(36.0).reshape(12, 3)), "label": [0, 1] * 6})
    folder = write_shards(tmp_path / "d", HuggingFaceLike(frame), target="label", owners=3)
    features, _ = _opened(folder, target="label", classes=[0, 1], feature_shape=[3])
    assert np.array_equal(features, np.arange(36.0).reshape(12, 3))


def test_a_torch_dataset_keeps_its_shape_without_being_told(tmp_path: Path) -> None:
    split = {"name": "dirichlet", "alpha": 1.0, "min_rows": 2}
    folder = write_shards(tmp_path / "d", Pairs(), owners=4, split=split, seed=3)
    data = Tables.model_validate({"path": folder, "classes": range(4)})
    assert schema_of(data).feature_shape == (1, 3, 4)
    assert owner_names(data) == ("owner-00", "owner-01", "owner-02", "owner-03")
    features, targets = _opened(folder, classes=range(4))
    assert np.array_equal(features, Pairs().x.numpy())
    assert np.array_equal(targets, np.arange(40) % 4)


def test_tensor_datasets_with_named_owners_round_trip(tmp_path: Path) -> None:
    x, y = torch.arange(20.0).reshape(10, 2), torch.linspace(0, 1, 10)
    folder = write_shards(tmp_path / "d", torch.utils.data.TensorDataset(x, y), owner=["u", "v"] * 5)
    features, targets = _opened(folder)
    assert np.array_equal(features, x.numpy())
    np.testing.assert_allclose(targets, y.numpy())


@settings(max_examples=20, deadline=None)
@given(
    n_rows=st.integers(6, 40),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    kind=st.sampled_from(["float64", "float32", "uint8", "bool", "int64"]),
    n_owners=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_arrays_of_any_shape_and_kind_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    n_rows: int,
    shape: list[int],
    kind: str,
    n_owners: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 200, (n_rows, *shape)).astype(kind)
    x.reshape(n_rows, -1)[:, -1] = np.arange(n_rows)
    y = rng.integers(0, 3, n_rows)
    folder = write_shards(tmp_path_factory.mktemp("d") / "s", (x, y), owners=n_owners, seed=seed)
    features, targets = _opened(folder, classes=[0, 1, 2])
    assert features.dtype == ("int64" if kind == "int64" else "float32")
    if kind != "bool":
        assert np.array_equal(features, x)
        assert np.array_equal(targets, y)
    assert features.shape == x.shape
    assert np.bincount(targets, minlength=3).tolist() == np.bincount(y, minlength=3).tolist()


def test_an_experiment_reads_what_was_written(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "d", (np.eye(12), np.arange(12) % 2), owners=2)
    data: Any = {"name": "tables", "path": folder, "classes": [0, 1]}
    assert schema_of(Experiment(data=data).data).feature_shape == (12,)


def test_writing_again_changes_nothing_and_other_data_are_refused(tmp_path: Path) -> None:
    x, y = np.eye(12), np.arange(12) % 2
    folder = write_shards(tmp_path / "d", (x, y), owners=2, split=Quantity(min_rows=1), seed=1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert write_shards(tmp_path / "d", (x, y), owners=2, split=Quantity(min_rows=1), seed=1) == folder
    with pytest.raises(DataError, match="holds other files"):
        write_shards(tmp_path / "d", (x, y), owners=3)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


X, Y = np.eye(6), np.arange(6) % 2
MISUSE: list[tuple[Any, dict[str, Any], str]] = [
    ((X, Y), {}, "owner is not given, owners is None"),
    ((X, Y), {"owner": ["a"] * 6, "owners": 2}, "either owner"),
    ((X, Y), {"owner": ["a"] * 6, "split": "iid"}, "either owner"),
    ((X, Y), {"owners": 0}, "owners is 0"),
    ((X, Y), {"owners": 7}, "6 rows to deal to 7 owners"),
    ((X, Y), {"owners": 2, "split": "dirichlett"}, "split is 'dirichlett'"),
    ((X, Y), {"owners": 2, "split": {"name": "dirichlet", "alpha": -1}}, "split is"),
    ((X, Y), {"owner": ["a"] * 5}, "5 owners' names for 6 rows"),
    ((X, Y), {"owner": ["a/b"] * 6}, "6 rows whose owner's name"),
    ((X, Y), {"owner": ["a", None] * 3}, "3 rows whose owner's name"),
    ((X, Y), {"owner": ["..", "a"] * 3}, "3 rows whose owner's name"),
    ((X, Y), {"owners": 2, "target": "features"}, "that column holds x"),
    ((X, Y[:5]), {"owners": 2}, "one target a row"),
    ((X, np.eye(6)), {"owners": 2}, "one target a row"),
    ((np.array([["x"]] * 6), Y), {"owners": 2}, "encode them as numbers"),
    ((X[:0], Y[:0]), {"owners": 1}, "0 rows"),
    ([1, 2, 3], {"owners": 1}, "not all pairs"),
    ([(np.zeros(2), 0), (np.zeros(3), 1)], {"owners": 1}, "several shapes"),
    (iter([]), {"owners": 1}, "a source of type"),
    (_frame(), {"owner": "site"}, "a column 'target'"),
    (_frame(), {"owner": "sites", "target": "label"}, "no column 'sites'"),
    (pd.DataFrame({"x": [np.eye(2)] * 6, "target": Y}), {"owners": 1}, "that Arrow cannot store"),
]


@pytest.mark.parametrize(("source", "arguments", "message"), MISUSE)
def test_misuse_gives_a_clear_error_and_no_folder(
    tmp_path: Path, source: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        write_shards(tmp_path / "d", source, **arguments)
    assert list(tmp_path.iterdir()) == []
