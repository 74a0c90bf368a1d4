"""Which files of a user's tables belong to which owner. Reads names and the owner column, never features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fedray.config.data import Tables
from fedray.data import arrow
from fedray.data.kinds import absolute
from fedray.data.remembering import remembered
from fedray.data.table_columns import check_present
from fedray.errors import ConfigError, DataError


def check_layout(data: Tables, path: Path) -> None:
    """Refuse a path that is neither a folder of owners' files nor a table with an owner column.

    Raises:
        ConfigError: ``owner_column`` does not suit the path.
        DataError: nothing is there.
    """
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


@remembered(64)
def owner_files(folder: Path) -> Mapping[str, Path]:
    """Owner's name to file, sorted; files that start with ``.`` or ``_`` are left out.

    Raises:
        DataError: there is no file, or an owner has two.
    """
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


@remembered(2)
def owner_values(path: Path, column: str) -> tuple[str, ...]:
    """Distinct values of the owner column as text, sorted; rows without an owner belong to nobody.

    Raises:
        DataError: the column is missing, or holds neither text nor whole numbers.
    """
    _check_owner_column(column, arrow.read_schema(path), path)
    values = pc.unique(arrow.read_columns(path, [column])[column].cast(pa.string()))
    return tuple(sorted(str(value) for value in values.to_pylist() if value is not None))


def source_of(data: Tables, owner: str) -> tuple[Path, tuple[str, str] | None]:
    """The owner's file and, in one table of all owners, what its rows have in common.

    Raises:
        ConfigError: ``owner_column`` does not suit the path.
        DataError: the owner has no file here, or the owner column is missing.
    """
    path = absolute(data.path)
    check_layout(data, path)
    if data.owner_column is not None:
        _check_owner_column(data.owner_column, arrow.read_schema(path), path)
        return path, (data.owner_column, owner)
    files = owner_files(path)
    if owner not in files:
        raise arrow.missing_file(path / f"{owner}.parquet")
    return files[owner], None


def _check_owner_column(column: str, columns: pa.Schema, path: Path) -> None:
    check_present([column], columns, path)
    kind = columns.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)):
        raise DataError(
            f"owner column {column!r} of {path} is {kind}",
            "text or whole numbers",
            "store owners' names as text",
        )


def reference_file(data: Tables) -> Path | None:
    """The first owner's file that lies here; None where only ``data.owners`` says that there are any.

    Raises:
        ConfigError: ``owner_column`` does not suit the path.
        DataError: nothing can be listed and ``data.owners`` is not given.
    """
    path = absolute(data.path)
    if data.owners is not None and not path.exists():
        return None
    check_layout(data, path)
    if path.is_file():
        return path
    if data.owners is None:
        return next(iter(owner_files(path).values()))
    candidates = (path / f"{owner}{suffix}" for owner in data.owners for suffix in arrow.SUFFIXES)
    return next((candidate for candidate in candidates if candidate.is_file()), None)
