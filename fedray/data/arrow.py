"""Arrow files and columns as numpy arrays: the only place where shards are read from disk.

A message never holds a value of a row: parser errors, whose text may quote rows, are replaced and not
chained. Array features are one fixed-size list column; the shape of one example stands in the schema's
metadata.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedray.data.remembering import remembered
from fedray.data.rows import Rows
from fedray.errors import DataError

FEATURES = "features"
HOLDOUT = "holdout"
SUFFIXES = (".parquet", ".csv")

_SHAPE_KEY = b"fedray.feature_shape"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise missing_file(path) from None
    except (pa.ArrowException, OSError, ValueError):
        raise DataError(
            f"{path} cannot be read as {path.suffix.removeprefix('.') or 'a table'}",
            "a complete Parquet file, or a CSV file with a header and as many values in every row",
            "write the file again; an interrupted copy is a usual cause",
        ) from None


def missing_file(path: Path) -> DataError:
    """The error for a file or folder that is not there."""
    return DataError(
        f"no file {path} on this machine",
        "a Parquet or CSV file with the owner's rows",
        "check data.path, and that this owner runs where its data lies (placement)",
    )


@remembered(256)
def read_schema(path: Path) -> pa.Schema:
    """Names and types of the columns, without reading rows (of a CSV file, its first block).

    Raises:
        DataError: the file is missing or corrupt, or two columns share a name.
    """
    with _readable(path):
        if path.suffix == ".csv":
            with pacsv.open_csv(path) as reader:
                schema = reader.schema
        else:
            schema = _stored_schema(pq.read_schema(path, memory_map=True))
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has several columns named {repeated}", "names that differ", "rename them")
    return schema


def read_columns(path: Path, columns: Sequence[str], where: tuple[str, str] | None = None) -> pa.Table:
    """The columns named, with the schema's metadata.

    Args:
        path: a Parquet or CSV file.
        columns: names of the columns to read.
        where: a column and the text that it must equal; only such rows are kept.

    Raises:
        DataError: the file is missing or corrupt.
    """
    needed = list(dict.fromkeys([*columns, *([where[0]] if where else [])]))
    row_filter = None if where is None else pc.field(where[0]).cast(pa.string()) == where[1]
    with _readable(path):
        if path.suffix == ".csv":
            table = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(include_columns=needed))
            table = table if row_filter is None else table.filter(row_filter)
            return table.select(list(columns))
        table = pq.read_table(path, columns=list(columns), filters=row_filter, memory_map=True, partitioning=None)
    return as_stored(table)


def as_stored(table: pa.Table) -> pa.Table:
    """The table with extension types (tensors of Hugging Face or Ray) replaced by what they are stored as."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            column = pa.chunked_array(chunks, type=field.type.storage_type)
            table = table.set_column(place, field.name, column)
    return table


def _stored_schema(schema: pa.Schema) -> pa.Schema:
    for place, field in enumerate(schema):
        if isinstance(field.type, pa.BaseExtensionType):
            schema = schema.set(place, field.with_type(field.type.storage_type))
    return schema


def is_number(kind: pa.DataType) -> bool:
    """Whether values count as numbers: integers, floats, decimals, booleans, and empty columns."""
    types = pa.types
    checks = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    return any(check(kind) for check in checks)


def is_list(kind: pa.DataType) -> bool:
    """Whether a value of this type is a list of values."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def innermost(kind: pa.DataType) -> pa.DataType:
    """The type inside all lists."""
    return innermost(kind.value_type) if is_list(kind) else kind


def stored_shape(schema: pa.Schema, column: str) -> tuple[int, ...] | None:
    """Shape of an example, noted by ``write_shards`` or fixed by the type; None where lists may differ."""
    noted = (schema.metadata or {}).get(_SHAPE_KEY)
    if noted is not None:
        return tuple(int(size) for size in json.loads(noted))
    shape: list[int] = []
    kind = schema.field(column).type
    while pa.types.is_fixed_size_list(kind):
        shape.append(int(kind.list_size))
        kind = kind.value_type
    return None if is_list(kind) else tuple(shape)


def numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A numeric column as float32 of shape ``(n,)``; a missing value is NaN, one too large is infinite."""
    if column.type == pa.float32() and column.null_count == 0:
        return np.array(column.to_numpy(), dtype=np.float32)
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def flat_list(column: pa.ChunkedArray, size: int) -> pa.ChunkedArray | None:
    """Values of a list column, shape ``(n * size,)``; None where a list is missing or of another size."""
    n_rows = len(column)
    while is_list(column.type):
        if column.null_count or len(set(pc.unique(pc.list_value_length(column)).to_pylist())) > 1:
            return None
        column = pc.list_flatten(column)
    return column if len(column) == n_rows * size else None


def to_numpy(column: pa.ChunkedArray, dtype: type[np.int64] | type[np.bool_]) -> NDArray[np.int64]:
    """A column without missing values as a writable array of shape ``(n,)``."""
    values: NDArray[np.int64] = np.array(column.to_numpy(), dtype=dtype)
    return values


def feature_column(features: NDArray[np.float32] | NDArray[np.int64]) -> pa.FixedSizeListArray:
    """Features of shape ``(n, *feature_shape)`` as one fixed-size list column of ``n`` rows."""
    return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), math.prod(features.shape[1:]))


def with_shape(table: pa.Table, feature_shape: tuple[int, ...]) -> pa.Table:
    """The table with the shape of one example noted in its schema."""
    return table.replace_schema_metadata({_SHAPE_KEY: json.dumps(list(feature_shape)).encode()})


def to_table(rows: Rows, target: str = "target") -> pa.Table:
    """Columns ``features``, ``target`` and, where rows are marked, ``holdout``."""
    columns: Mapping[str, object] = {
        FEATURES: feature_column(rows.examples.features),
        target: pa.array(rows.examples.targets),
        **({} if rows.is_holdout is None else {HOLDOUT: pa.array(rows.is_holdout)}),
    }
    return with_shape(pa.table(columns), rows.examples.features.shape[1:])


def write_folder(folder: Path, tables: Iterable[tuple[str, pa.Table]]) -> bool:
    """Write ``OWNER.parquet`` files beside ``folder`` and rename them into place, all at once.

    Returns:
        False where ``folder`` had files already, which are left as they are.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}-", dir=folder.parent))
    try:
        for owner, table in tables:
            pq.write_table(table, beside / f"{owner}.parquet")
        beside.chmod(0o755)
        return _renamed(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _renamed(beside: Path, folder: Path) -> bool:
    try:
        beside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True
