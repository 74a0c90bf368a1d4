"""Shards of simulated owners: what each holds, and the cache file of sets that are dealt.

The content is a pure function of the data section (and, for heart disease, of UCI's files), so any process on
any node that misses the file makes the same one. Scaling, held-out share and ``min_classes`` act on open, not here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedray.config.data import HeartDisease, Images, Synthetic
from fedray.data import heart, images, synthetic
from fedray.data.kinds import PooledData, SimulatedData, StoredData
from fedray.data.numbered import Numbered
from fedray.data.rows import Rows, share_of, take
from fedray.data.sklearn_sets import load_pool, pooled_schema
from fedray.data.splits import deal
from fedray.data.store import open_store, write_store
from fedray.environment import cache_folder
from fedray.errors import DataError
from fedray.seeds import generator
from fedray.values import Examples, Schema

FORMAT = 1
"""Raise it when what a data section stands for changes, so that old shards are not read."""


def simulated_owners(data: SimulatedData) -> Sequence[str]:
    """``owner-00``, ``owner-01``, ..., as wide as needed; the hospitals' names for heart disease."""
    return heart.HOSPITALS if isinstance(data, HeartDisease) else Numbered.of(data.owners)


def simulated_schema(data: SimulatedData) -> Schema:
    """Known without loading anything."""
    match data:
        case HeartDisease():
            return heart.SCHEMA
        case Synthetic():
            return synthetic.SCHEMA
        case Images():
            return images.schema(data)
        case _:
            return pooled_schema(data)


def central_rows(data: PooledData | Images) -> Examples:
    """The server's own test rows, unscaled; empty where ``central_test`` is 0."""
    if isinstance(data, Images):
        return images.central_rows(data)
    pool = load_pool(data)
    return take(pool, _central_split(data, len(pool))[0])


def read_simulated(data: SimulatedData, owner: str) -> Rows:
    """Rows of one owner: drawn, or a part of the cache file, which is made if this machine lacks it.

    Raises:
        DataError: no owner has this name, the cache file is corrupt, or it cannot be made.
    """
    number = _number(data, owner)
    match data:
        case Synthetic():
            return synthetic.rows(data, number)
        case Images():
            return images.rows(data, number)
        case _:
            return open_store(ensure_store(data)).rows(number)


def ensure_store(data: StoredData) -> Path:
    """The cache file with the rows of all owners, made if it is not there; safe to call from several processes.

    Raises:
        DataError: the split cannot be dealt, or files of heart disease are missing.
    """
    path = cache_folder() / "shards" / f"{_key(data)}.arrow"
    if not path.is_file():
        write_store(path, shards(data))
    return path


def shards(data: StoredData) -> Iterator[Rows]:
    """Every owner's rows, in the order of the owners' names.

    Raises:
        DataError: the split cannot be dealt, or files of heart disease are missing.
    """
    if isinstance(data, HeartDisease):
        yield from (heart.read_hospital(data.path, name) for name in heart.HOSPITALS)
    else:
        yield from _dealt(data)


def _number(data: SimulatedData, owner: str) -> int:
    names = simulated_owners(data)
    if owner not in names:
        raise DataError(
            f"no owner {owner!r} in data set {data.name}",
            f"one of {names[0]}, ..., {names[-1]}",
            "take a name that owner_names(data) gives",
        )
    return names.index(owner)


def _key(data: StoredData) -> str:
    content = data.model_dump(mode="json", exclude={"scaling", "min_classes", "holdout"})
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
