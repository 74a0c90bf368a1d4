"""Which columns of a user's table are learned from, and whether they can be: names and types, never rows."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from fedray.config.data import Tables
from fedray.data import arrow
from fedray.errors import ConfigError, DataError
from fedray.values import Schema


def check_sections(data: Tables) -> None:
    """Refuse a section that contradicts itself.

    Raises:
        ConfigError: a column has two roles, ``owners`` repeats a name, ``classes`` repeats a label or holds
            fewer than two.
    """
    if data.owners is not None and len(set(data.owners)) < max(1, len(data.owners)):
        raise ConfigError(
            f"data.owners is {list(data.owners)}", "one name or more that all differ", "list each owner once"
        )
    named = [*special_columns(data), *(data.features or ())]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{twice} named twice among data.features, target, owner_column and holdout_column",
            "one role a column",
            "take them out of data.features, or correct the other names",
        )
    if data.classes is not None and len(set(data.classes)) < max(2, len(data.classes)):
        raise ConfigError(
            f"data.classes is {list(data.classes)}",
            "two labels or more that all differ (1, 1.0 and true are equal)",
            "list each label once",
        )


def special_columns(data: Tables) -> list[str]:
    """Target, owner and holdout columns, as far as they are given: never learned from."""
    return [name for name in (data.target, data.owner_column, data.holdout_column) if name is not None]


def check_present(needed: Sequence[str], columns: pa.Schema, path: Path) -> None:
    """Refuse a file without the columns needed.

    Raises:
        DataError: with the columns there and the closest match.
    """
    present = set(columns.names)
    missing = [name for name in needed if name not in present]
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


def feature_names(data: Tables, columns: pa.Schema, path: Path) -> tuple[str, ...]:
    """``data.features``, else all columns but the special ones, in the file's order.

    Raises:
        DataError: a column is missing, or none is left to learn from.
    """
    special = special_columns(data)
    check_present([*special, *(data.features or ())], columns, path)
    names = data.features or tuple(name for name in columns.names if name not in special)
    if not names:
        raise DataError(f"{path} has no column besides {special}", "columns to learn from", "add features")
    return names


def schema_of_file(data: Tables, columns: pa.Schema, features: tuple[str, ...], path: Path) -> Schema:
    """What examples look like, by the types of the feature columns.

    Raises:
        ConfigError: lists of no fixed length and no ``feature_shape``.
        DataError: a column is not numeric, a list column is not the only one, or ``feature_shape`` misfits.
    """
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
    """Wide integers in a list are token ids; narrow ones (pixels) and single columns are numbers."""
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


def _fitting_shape(asked: tuple[int, ...] | None, stored: tuple[int, ...] | None, path: Path) -> tuple[int, ...]:
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
