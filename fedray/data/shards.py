"""Shards of simulated owners: what each holds, and the cache folder with one Parquet file an owner.

The content is a pure function of the data section (and, for heart disease, of UCI's files), so any process on
any node that misses the folder makes the same one. The folder appears whole or not at all: it is written
beside and renamed, and whoever loses the race uses the winner's. Scaling, held-out share and ``min_classes``
act on open, not here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from fedray.config.data import HeartDisease, Synthetic
from fedray.data import arrow, heart, synthetic
from fedray.data.kinds import PooledData, SimulatedData
from fedray.data.rows import Rows, share_of, take
from fedray.data.sklearn_sets import load_pool, pooled_schema
from fedray.data.splits import deal
from fedray.errors import DataError
from fedray.seeds import generator
from fedray.values import Examples, Schema

FORMAT = 1
"""Raise it when what a data section stands for changes, so that old shards are not read."""


def simulated_owners(data: SimulatedData) -> tuple[str, ...]:
    """``owner-00``, ``owner-01``, ..., as wide as needed; the hospitals' names for heart disease."""
    if isinstance(data, HeartDisease):
        return heart.HOSPITALS
    width = max(2, len(str(data.owners - 1)))
    return tuple(f"owner-{number:0{width}d}" for number in range(data.owners))


def simulated_schema(data: SimulatedData) -> Schema:
    """Known without loading anything."""
    if isinstance(data, HeartDisease):
        return heart.SCHEMA
    if isinstance(data, Synthetic):
        return Schema((synthetic.N_FEATURES,), "float32", (), synthetic.N_CLASSES)
    return pooled_schema(data)


def central_rows(data: PooledData) -> Examples:
    """The server's own test rows, unscaled; empty where ``central_test`` is 0."""
    pool = load_pool(data)
    return take(pool, _central_split(data, len(pool))[0])


def ensure_simulated(data: SimulatedData) -> Path:
    """The folder with one Parquet file an owner, made if it is not there.

    Raises:
        DataError: the split cannot be dealt, or files of heart disease are missing.
    """
    folder = cache_folder() / _key(data)
    if not folder.is_dir():
        _write_folder(folder, shards(data))
    return folder


def read_simulated(data: SimulatedData, owner: str) -> Rows:
    """Rows of one owner from its own file, which is made if this machine lacks it.

    Raises:
        DataError: no owner has this name, or the file is corrupt.
    """
    names = simulated_owners(data)
    if owner not in names:
        raise DataError(
            f"no owner {owner!r} in data set {data.name}",
            f"one of {names[0]}, ..., {names[-1]}",
            "take a name that owner_names(data) gives",
        )
    path = ensure_simulated(data) / f"{owner}.parquet"
    columns = [arrow.FEATURES, "target", *([arrow.HOLDOUT] if isinstance(data, HeartDisease) else [])]
    table = arrow.read_columns(path, columns)
    features = arrow.numbers(arrow.flat_list(table[arrow.FEATURES], _size(data)))
    examples = Examples(
        np.ascontiguousarray(features).reshape(-1, *simulated_schema(data).feature_shape),
        arrow.to_numpy(table["target"], np.int64),
    )
    mask = arrow.to_numpy(table[arrow.HOLDOUT], np.bool_).astype(np.bool_) if len(columns) > 2 else None
    return Rows(examples, mask)


def shards(data: SimulatedData) -> Iterator[tuple[str, Rows]]:
    """Every owner's name and rows, one at a time.

    Raises:
        DataError: the split cannot be dealt, or files of heart disease are missing.
    """
    names = simulated_owners(data)
    if isinstance(data, HeartDisease):
        yield from ((name, heart.read_hospital(data.path, name)) for name in names)
    elif isinstance(data, Synthetic):
        yield from ((name, synthetic.rows(data, number)) for number, name in enumerate(names))
    else:
        yield from zip(names, _dealt(data), strict=True)


def cache_folder() -> Path:
    """``$FEDRAY_CACHE/shards``, else ``shards`` in the user's cache folder."""
    chosen = os.environ.get("FEDRAY_CACHE")
    root = Path(chosen) if chosen else platformdirs.user_cache_path("fedray")
    return root / "shards"


def _write_folder(folder: Path, rows_of: Iterator[tuple[str, Rows]]) -> None:
    arrow.write_folder(folder, ((name, arrow.to_table(rows)) for name, rows in rows_of))


def _size(data: SimulatedData) -> int:
    return int(np.prod(simulated_schema(data).feature_shape))


def _key(data: SimulatedData) -> str:
    excluded = {"scaling", "min_classes", "path"} | (set() if isinstance(data, HeartDisease) else {"holdout"})
    content = data.model_dump(mode="json", exclude=excluded)
    if isinstance(data, HeartDisease):
        content = {"name": data.name, "files": [_digest(data, hospital) for hospital in heart.HOSPITALS]}
    return hashlib.sha256(json.dumps([FORMAT, content], sort_keys=True).encode()).hexdigest()


def _digest(data: HeartDisease, hospital: str) -> str:
    return hashlib.sha256(heart.hospital_file(data.path, hospital).read_bytes()).hexdigest()


def _central_split(data: PooledData, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the central test set and of the rest, ascending."""
    order = generator(data.seed, "central test").permutation(n_rows)
    n_central = share_of(n_rows, data.central_test)
    return np.sort(order[:n_central]), np.sort(order[n_central:])


def _dealt(data: PooledData) -> list[Rows]:
    pool = load_pool(data)
    pool = take(pool, _central_split(data, len(pool))[1])
    labels = pool.targets.astype(np.int64)
    return [Rows(take(pool, index)) for index in deal(data.split, labels, data.owners, data.seed)]
