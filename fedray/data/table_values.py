"""Values of a user's table as arrays, checked; errors hold counts and column names, never values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedray.config.data import Tables
from fedray.data import arrow
from fedray.errors import DataError
from fedray.values import Schema

Labels = tuple[str | int | float | bool, ...]


def read_features(
    table: pa.Table, names: Sequence[str], schema: Schema, owner: str
) -> NDArray[np.float32] | NDArray[np.int64]:
    """Features of shape ``(n, *feature_shape)``.

    Raises:
        DataError: values are missing or not finite, or lists have another length.
    """
    if not arrow.is_list(table[names[0]].type):
        columns = np.column_stack([arrow.numbers(table[name]) for name in names])
        _refuse_rows(~np.isfinite(columns), names, owner)
        return np.ascontiguousarray(columns.reshape(-1, *schema.feature_shape))
    size = math.prod(schema.feature_shape)
    flat = arrow.flat_list(table[names[0]], size)
    if flat is None:
        raise DataError(
            f"{owner} has lists in column {names[0]!r} that are missing or do not hold {size} values",
            f"one list of feature shape {list(schema.feature_shape)} a row",
            "correct data.feature_shape, or pad or drop those rows",
        )
    if schema.feature_dtype == "int64" and flat.null_count == 0:
        return arrow.to_numpy(flat, np.int64).reshape(-1, *schema.feature_shape)
    values = arrow.numbers(flat).reshape(-1, size)
    _refuse_rows(~np.isfinite(values).all(axis=1, keepdims=True), names, owner)
    return np.ascontiguousarray(values.reshape(-1, *schema.feature_shape))


def _refuse_rows(is_bad: NDArray[np.bool_] | np.bool_, names: Sequence[str], owner: str) -> None:
    """Raise if any value is bad; ``is_bad`` has shape ``(n, len(names))``."""
    if is_bad.any():
        columns = [f"{name!r} ({count} rows)" for name, count in zip(names, is_bad.sum(axis=0), strict=True) if count]
        raise DataError(
            f"{owner} has missing, infinite or too large values in {_joined(columns)}",
            "finite numbers in every row",
            "fill or drop those rows before training",
        )


def _joined(parts: Sequence[str], limit: int = 20) -> str:
    return ", ".join(parts[:limit]) + (f" and {len(parts) - limit} more columns" if len(parts) > limit else "")


def read_targets(table: pa.Table, data: Tables, owner: str) -> NDArray[np.float32] | NDArray[np.int64]:
    """Class numbers (int64) or real targets (float32) of shape ``(n,)``.

    Raises:
        DataError: labels outside the classes, or targets that are not finite numbers.
    """
    column = table[data.target]
    if data.classes is not None:
        return _class_ids(column, data.classes, data.target, owner)
    if not arrow.is_number(column.type):
        raise DataError(
            f"target column {data.target!r} of {owner} is {column.type}, not numeric",
            "numbers for regression, or labels together with data.classes",
            "for classification list all labels in data.classes",
        )
    targets = arrow.numbers(column)
    _refuse_rows(~np.isfinite(targets[:, None]), [data.target], owner)
    return targets


def _class_ids(column: pa.ChunkedArray, classes: Labels, name: str, owner: str) -> NDArray[np.int64]:
    """Place of each label in ``classes``, int64 of shape ``(n,)``."""
    if arrow.is_list(column.type) or pa.types.is_struct(column.type):
        raise DataError(f"target column {name!r} of {owner} is {column.type}", "one label a row", "flatten it")
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    encoded = column.combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    place = {label: number for number, label in enumerate(classes)}
    ids = np.array([*(place.get(label, -1) for label in encoded.dictionary.to_pylist()), -1], dtype=np.int64)
    targets = ids[arrow.to_numpy(encoded.indices.cast(pa.int64()).fill_null(-1), np.int64)]
    n_unknown = int((targets < 0).sum())
    if n_unknown:
        raise DataError(
            f"{n_unknown} rows of {owner} have a label in column {name!r} ({encoded.dictionary.type}) that "
            "is missing or not in data.classes",
            f"one of {list(classes)}",
            "complete data.classes (1 and '1' differ), or correct those rows",
        )
    return targets


def read_holdout(table: pa.Table, name: str | None, owner: str) -> NDArray[np.bool_] | None:
    """True where a row is held out, shape ``(n,)``; None without such a column.

    Raises:
        DataError: the column is not boolean, or has missing values.
    """
    if name is None:
        return None
    column = table[name]
    if not pa.types.is_boolean(column.type) or column.null_count:
        raise DataError(
            f"holdout column {name!r} of {owner} is {column.type} with {column.null_count} missing values",
            "true or false in every row",
            "store it as booleans, or leave out data.holdout_column for a random share",
        )
    return arrow.to_numpy(column, np.bool_).astype(np.bool_)
