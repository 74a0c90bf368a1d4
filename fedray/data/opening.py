"""What is asked of any data section: whose data, what it looks like, one owner's shard, the central test set.

Each function dispatches on the section's class and does nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedray.config.data import FixedScaling, HeartDisease, Images, Synthetic, Tables
from fedray.data import images
from fedray.data.kinds import AnyData, absolute
from fedray.data.rows import Rows, check_classes, divide
from fedray.data.scaling import apply, check_scaling, fixed_statistics, scale_shard
from fedray.data.shards import (
    central_rows,
    ensure_store,
    read_simulated,
    simulated_owners,
    simulated_schema,
)
from fedray.data.sizes import Sizes, divided
from fedray.data.tables import read_rows, table_owners, table_schema
from fedray.values import Examples, Schema, Shard


def owner_names(data: AnyData) -> Sequence[str]:
    """Names of all data owners, in a fixed order; hashable, and equal to the tuple of the same names.

    Simulated owners are ``owner-00``, ``owner-01``, ... (``Numbered``: no name is put together before it is asked
    for); hospitals, files and owner columns bring their own names.

    Raises:
        ConfigError: a table has no ``owner_column``, or a folder has one.
        DataError: there is nothing to list.
    """
    return table_owners(data) if isinstance(data, Tables) else simulated_owners(data)


def schema_of(data: AnyData) -> Schema:
    """What every owner's examples look like, without reading an owner's rows.

    User tables: from the column names and types of one listed file, or from ``data.features`` where no file
    lies here.

    Raises:
        ConfigError: nothing here says what the features are, or sections contradict each other.
        DataError: the listed file is missing, corrupt, or has not the columns asked for.
    """
    schema = table_schema(data) if isinstance(data, Tables) else simulated_schema(data)
    check_scaling(data.scaling, schema)
    return schema


def open_shard(data: AnyData, owner: str) -> Shard:
    """All that one owner holds: divided, checked and scaled. Called inside the owner's process.

    Returns:
        Training and held-out examples: features float32 (or int64 for tokens) of shape ``(n,
        *feature_shape)``, targets int64 class numbers or float32 numbers of shape ``(n,)``; all arrays own
        their memory.

    Raises:
        ConfigError: sections contradict each other, or scaling does not fit the features.
        DataError: the rows cannot be learned from; the message holds counts and column names, never a value
            of a row.
    """
    rows = read_rows(data, owner) if isinstance(data, Tables) else read_simulated(data, owner)
    schema = _schema_of_rows(data, rows)
    check_scaling(data.scaling, schema)
    holdout = 0.0 if isinstance(data, HeartDisease) else data.holdout
    shard = divide(rows, holdout=holdout, seed=data.seed, owner=owner)
    if schema.n_classes is not None:
        check_classes(shard, min_classes=data.min_classes, owner=owner)
    return scale_shard(shard, data.scaling)


def sizes_of(data: AnyData) -> Sizes | None:
    """How many rows every owner has, where that is known without opening one, and opening cannot fail.

    None for sets whose owners must be opened to be counted, or could be refused for having too few classes.
    """
    if not isinstance(data, Images) or data.min_classes > 1:
        return None
    return divided(images.sizes(data), data.holdout)


def ensure_shards(data: AnyData) -> Path | None:
    """Where owners' rows lie on this machine; None where they are drawn when an owner is opened.

    Sets that are dealt or prepared have one file in the cache folder, which is written first, once: idempotent and
    safe to call from several processes. For user tables it is ``data.path``, and nothing is written.

    Raises:
        DataError: a simulated split cannot be dealt, or source files are missing.
    """
    match data:
        case Tables():
            return absolute(data.path)
        case Synthetic() | Images():
            return None
        case _:
            return ensure_store(data)


def central_test(data: AnyData) -> Examples | None:
    """The server's own test rows, scaled like the owners' rows; None where the data section keeps none aside.

    Raises:
        ConfigError: the scaling does not fit the features.
    """
    if isinstance(data, Tables | HeartDisease | Synthetic) or data.central_test == 0:
        return None
    check_scaling(data.scaling, simulated_schema(data))
    rows = central_rows(data)
    if isinstance(data.scaling, FixedScaling):
        return apply(rows, fixed_statistics(data.scaling, rows.features.shape[1:]))
    return rows


def _schema_of_rows(data: AnyData, rows: Rows) -> Schema:
    """The schema that an owner can tell from its own rows."""
    if not isinstance(data, Tables):
        return simulated_schema(data)
    return Schema(
        feature_shape=rows.examples.features.shape[1:],
        feature_dtype="int64" if rows.examples.features.dtype.kind == "i" else "float32",
        target_shape=(),
        n_classes=None if data.classes is None else len(data.classes),
    )
