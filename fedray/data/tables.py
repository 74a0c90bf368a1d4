"""Your own data: which files and columns belong to which owner, and whether they can be learned from.

This file owns the rules for user tables; bytes are read in ``arrow``. Only column names, types and counts
ever appear in an error. Without ``data.features`` the columns of one reference file (the first owner's) say
what is learned from, so that every owner learns from the same columns in the same order.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedray.config.data import Tables
from fedray.data import arrow
from fedray.data.kinds import absolute
from fedray.data.rows import Rows
from fedray.errors import ConfigError, DataError
from fedray.values import Examples, Schema

Labels = tuple[str | int | float | bool, ...]


def table_owners(data: Tables) -> tuple[str, ...]:
    """``data.owners``, else names of the files, else distinct values of the owner column; sorted where found.

    Raises:
        ConfigError: ``owner_column`` is missing for one table, or given for a folder.
        DataError: nothing is there to list, or an owner has two files.
    """
    if data.owners is not None:
        return data.owners
    path = absolute(data.path)
    _check_layout(data, path)
    if path.is_dir():
        return tuple(sorted(_owner_files(path)))
    names = _owner_values(path, data.owner_column or "")
    return tuple(sorted(names))


def table_schema(data: Tables) -> Schema:
    """What every owner's examples look like, from the columns of one file, or from the configuration alone.

    Raises:
        ConfigError: no owner's file lies here and ``data.features`` is not given, or sections contradict each
            other.
        DataError: a column is missing or is not numeric, or ``feature_shape`` does not fit.
    """
    _check_sections(data)
    reference = _reference_file(data)
    if reference is not None:
        columns = arrow.read_schema(reference)
        return _schema(data, columns, _features(data, columns, reference), reference)
    if data.features is None:
        raise ConfigError(
            f"no file of the owners {list(data.owners or ())} lies in {absolute(data.path)} on this machine, "
            "and data.features is not given",
            "a file to read column names from, or the names themselves",
            "list the columns in data.features (and give data.feature_shape for a list column)",
        )
    return Schema(
        feature_shape=data.feature_shape or (len(data.features),),
        feature_dtype="float32",
        target_shape=(),
        n_classes=None if data.classes is None else len(data.classes),
    )


def read_rows(data: Tables, owner: str) -> Rows:
    """All rows of one owner, checked. Call it where the owner's data lies.

    Raises:
        ConfigError: sections contradict each other.
        DataError: a file, a column or a value cannot be learned from.
    """
    _check_sections(data)
    path, where = _source(data, owner)
    columns = arrow.read_schema(path)
    features = _features(data, columns, path)
    _check_same_columns(data, features, path)
    schema = _schema(data, columns, features, path)
    needed = [*features, data.target, *([data.holdout_column] if data.holdout_column else [])]
    table = arrow.read_columns(path, needed, where)
    if table.num_rows == 0:
        raise DataError(
            f"{owner} has no rows in {path}", "at least one row", "leave this owner out (data.owners)"
        )
    return Rows(
        Examples(_read_features(table, features, schema, owner), _read_targets(table, data, owner)),
        _read_holdout(table, data.holdout_column, owner),
    )


# --- files --------------------


def _check_layout(data: Tables, path: Path) -> None:
    if not path.exists():
        raise arrow.missing_file(path)
    if path.is_dir() and data.owner_column is not None:
        raise ConfigError(
            f"data.owner_column is {data.owner_column!r}, but {path} is a folder",
            "a folder of one file an owner, or one table with an owner column",
            "leave owner_column out, or point data.path at one table",
        )
    if path.is_file() and data.owner_column is None:
        raise ConfigError(
            f"{path} is one table and data.owner_column is not given",
            "the column that names the owner of each row",
            "give data.owner_column, or point data.path at a folder of one file an owner",
        )


def _owner_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in arrow.SUFFIXES or path.name.startswith((".", "_")):
            continue
        if path.stem in found:
            raise DataError(
                f"{folder} holds both {found[path.stem].name} and {path.name}",
                "one file an owner",
                "remove or rename one of them",
            )
        found[path.stem] = path
    if not found:
        raise DataError(
            f"no .parquet or .csv file in {folder}",
            "one file an owner, named after the owner",
            "check data.path, or write the folder with fedray.data.write_shards",
        )
    return found


def _owner_values(path: Path, column: str) -> list[str]:
    _check_present([column], arrow.read_schema(path), path)
    values = pc.unique(arrow.read_columns(path, [column])[column].cast(pa.string()))
    return [str(value) for value in values.to_pylist() if value is not None]


def _source(data: Tables, owner: str) -> tuple[Path, tuple[str, str] | None]:
    path = absolute(data.path)
    _check_layout(data, path)
    if data.owner_column is not None:
        _check_present([data.owner_column], arrow.read_schema(path), path)
        return path, (data.owner_column, owner)
    files = _owner_files(path)
    if owner not in files:
        raise arrow.missing_file(path / f"{owner}.parquet")
    return files[owner], None


def _reference_file(data: Tables) -> Path | None:
    path = absolute(data.path)
    if data.owners is not None and not path.exists():
        return None
    _check_layout(data, path)
    if path.is_file():
        return path
    if data.owners is None:
        return next(iter(_owner_files(path).values()))
    candidates = (path / f"{owner}{suffix}" for owner in data.owners for suffix in arrow.SUFFIXES)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


# --- columns --------------------


def _check_sections(data: Tables) -> None:
    special = [data.target, *(name for name in (data.owner_column, data.holdout_column) if name is not None)]
    clash = sorted(set(special) & set(data.features or ()))
    if clash:
        raise ConfigError(
            f"data.features names {clash}, which is the target, owner or holdout column",
            "columns to learn from",
            "take them out of data.features",
        )
    if data.classes is not None and len(set(data.classes)) < max(2, len(data.classes)):
        raise ConfigError(
            f"data.classes is {list(data.classes)}",
            "two labels or more that all differ (1, 1.0 and true are equal)",
            "list each label once",
        )


def _check_present(needed: Sequence[str], columns: pa.Schema, path: Path) -> None:
    missing = [name for name in needed if name not in columns.names]
    if missing:
        close = difflib.get_close_matches(missing[0], columns.names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}{hint}",
            f"columns named so; there are {_shortened(columns.names)}",
            "correct data.target, data.features, data.owner_column or data.holdout_column, or the file",
        )


def _shortened(names: Sequence[str], limit: int = 40) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def _features(data: Tables, columns: pa.Schema, path: Path) -> tuple[str, ...]:
    special = [name for name in (data.target, data.owner_column, data.holdout_column) if name is not None]
    _check_present([*special, *(data.features or ())], columns, path)
    names = data.features or tuple(name for name in columns.names if name not in special)
    if not names:
        raise DataError(f"{path} has no column besides {special}", "columns to learn from", "add features")
    return names


def _check_same_columns(data: Tables, features: Sequence[str], path: Path) -> None:
    reference = None if data.features is not None else _reference_file(data)
    if reference is None or reference == path:
        return
    expected = _features(data, arrow.read_schema(reference), reference)
    if list(expected) != list(features):
        missing = sorted(set(expected) - set(features))
        extra = sorted(set(features) - set(expected))
        raise DataError(
            f"columns of {path} differ from those of {reference.name}: missing {missing}, extra {extra}"
            + ("" if missing or extra else ", in another order"),
            "the same columns in the same order in every owner's file",
            "list the columns to learn from in data.features; their order in the files is then free",
        )


def _schema(data: Tables, columns: pa.Schema, features: tuple[str, ...], path: Path) -> Schema:
    kinds = [columns.field(name).type for name in features]
    has_list = any(arrow.is_list(kind) for kind in kinds)
    if has_list and len(features) > 1:
        raise DataError(
            f"{path} has a list column among {len(features)} feature columns",
            "numeric columns, or exactly one list column",
            "name the one list column, or only numeric columns, in data.features",
        )
    _check_numeric(features, kinds, path)
    stored = arrow.stored_shape(columns, features[0]) if has_list else (len(features),)
    return Schema(
        feature_shape=_fitting_shape(data.feature_shape, stored, path),
        feature_dtype="int64" if has_list and _is_token(arrow.innermost(kinds[0])) else "float32",
        target_shape=(),
        n_classes=None if data.classes is None else len(data.classes),
    )


def _is_token(kind: pa.DataType) -> bool:
    return bool(pa.types.is_int32(kind) or pa.types.is_int64(kind))


def _check_numeric(features: Sequence[str], kinds: Sequence[pa.DataType], path: Path) -> None:
    pairs = zip(features, kinds, strict=True)
    wrong = [f"{name!r} ({kind})" for name, kind in pairs if not arrow.is_number(arrow.innermost(kind))]
    if wrong:
        raise DataError(
            f"{path} has feature columns that are not numeric: {', '.join(wrong[:20])}",
            "integers, floats or booleans",
            "encode them as numbers (pandas.get_dummies), or choose columns with data.features; in CSV a "
            "sign for 'missing' such as '?' makes a column text",
        )


def _fitting_shape(
    asked: tuple[int, ...] | None, stored: tuple[int, ...] | None, path: Path
) -> tuple[int, ...]:
    if asked is None and stored is None:
        raise ConfigError(
            f"{path} holds lists of no fixed length and data.feature_shape is not given",
            "the shape of one example",
            "give data.feature_shape, e.g. [1, 28, 28]",
        )
    if asked is not None and stored is not None and math.prod(asked) != math.prod(stored):
        raise DataError(
            f"data.feature_shape {list(asked)} has {math.prod(asked)} values, but {path} stores "
            f"{math.prod(stored)} values an example",
            "a shape with as many values",
            "correct or leave out data.feature_shape",
        )
    return asked or stored or ()


# --- values --------------------


def _read_features(
    table: pa.Table, names: Sequence[str], schema: Schema, owner: str
) -> NDArray[np.float32] | NDArray[np.int64]:
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
        columns = [
            f"{name!r} ({count} rows)" for name, count in zip(names, is_bad.sum(axis=0), strict=True) if count
        ]
        raise DataError(
            f"{owner} has missing, infinite or too large values in {_joined(columns)}",
            "finite numbers in every row",
            "fill or drop those rows before training",
        )


def _joined(parts: Sequence[str], limit: int = 20) -> str:
    return ", ".join(parts[:limit]) + (
        f" and {len(parts) - limit} more columns" if len(parts) > limit else ""
    )


def _read_targets(table: pa.Table, data: Tables, owner: str) -> NDArray[np.float32] | NDArray[np.int64]:
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
        raise DataError(
            f"target column {name!r} of {owner} is {column.type}", "one label a row", "flatten it"
        )
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


def _read_holdout(table: pa.Table, name: str | None, owner: str) -> NDArray[np.bool_] | None:
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
