"""Your own data: which files and columns belong to which owner, and whether they can be learned from.

This file owns the rules for user tables; bytes are read in ``arrow``. Only column names, types and counts
ever appear in an error. Without ``data.features`` the columns of one reference file (the first owner's) say
what is learned from, so that every owner learns from the same columns in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedray.config.data import Tables
from fedray.data import arrow
from fedray.data.kinds import absolute
from fedray.data.one_table import rows_of_owner
from fedray.data.rows import Rows
from fedray.data.table_columns import check_sections, feature_names, schema_of_file
from fedray.data.table_files import check_layout, owner_files, owner_values, reference_file, source_of
from fedray.data.table_values import read_features, read_holdout, read_targets
from fedray.errors import ConfigError, DataError
from fedray.values import Examples, Schema


def table_owners(data: Tables) -> tuple[str, ...]:
    """``data.owners``, else names of the files, else distinct values of the owner column; sorted where found.

    Raises:
        ConfigError: ``owner_column`` is missing for one table or given for a folder, or sections contradict
            each other.
        DataError: nothing is there to list, or an owner has two files.
    """
    check_sections(data)
    if data.owners is not None:
        return data.owners
    path = absolute(data.path)
    check_layout(data, path)
    if path.is_dir():
        return tuple(sorted(owner_files(path)))
    return owner_values(path, data.owner_column or "")


def table_schema(data: Tables) -> Schema:
    """What every owner's examples look like, from the columns of one file, or from the configuration alone.

    Raises:
        ConfigError: no owner's file lies here and ``data.features`` is not given, or sections contradict each
            other.
        DataError: a column is missing or is not numeric, or ``feature_shape`` does not fit.
    """
    check_sections(data)
    reference = reference_file(data)
    if reference is not None:
        columns = arrow.read_schema(reference)
        return schema_of_file(data, columns, feature_names(data, columns, reference), reference)
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
    check_sections(data)
    path, where = source_of(data, owner)
    columns = arrow.read_schema(path)
    features = feature_names(data, columns, path)
    _check_same_columns(data, features, path)
    schema = schema_of_file(data, columns, features, path)
    needed = [*features, data.target, *([data.holdout_column] if data.holdout_column else [])]
    table = arrow.read_columns(path, needed) if where is None else rows_of_owner(path, tuple(needed), *where)
    if table.num_rows == 0:
        raise DataError(f"{owner} has no rows in {path}", "at least one row", "leave this owner out (data.owners)")
    return Rows(
        Examples(read_features(table, features, schema, owner), read_targets(table, data, owner)),
        read_holdout(table, data.holdout_column, owner),
    )


def _check_same_columns(data: Tables, features: Sequence[str], path: Path) -> None:
    reference = None if data.features is not None else reference_file(data)
    if reference is None or reference == path:
        return
    expected = feature_names(data, arrow.read_schema(reference), reference)
    if list(expected) != list(features):
        missing = sorted(set(expected) - set(features))
        extra = sorted(set(features) - set(expected))
        raise DataError(
            f"columns of {path} differ from those of {reference.name}: missing {missing}, extra {extra}"
            + ("" if missing or extra else ", in another order"),
            "the same columns in the same order in every owner's file",
            "list the columns to learn from in data.features; their order in the files is then free",
        )
