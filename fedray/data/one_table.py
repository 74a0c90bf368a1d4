"""One table of many owners: a process that opens all of them takes time in proportion to the table.

The first owner's rows are picked out of the file, so a process that has one owner never keeps another's. A process
that asks for a second one simulates the federation: the table is then read once, sorted by owner, and kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedray.data import arrow
from fedray.data.remembering import remembered


def rows_of_owner(path: Path, columns: tuple[str, ...], owner_column: str, owner: str) -> pa.Table:
    """The columns named of the rows whose owner column reads ``owner``, in the order of the file.

    Raises:
        DataError: the file is missing or corrupt.
    """
    return _table(path, columns, owner_column).rows_of(owner)


@remembered(2)
def _table(path: Path, columns: tuple[str, ...], owner_column: str) -> _OneTable:
    return _OneTable(path, columns, owner_column)


class _OneTable:
    def __init__(self, path: Path, columns: tuple[str, ...], owner_column: str) -> None:
        self._path = path
        self._columns = columns
        self._owner_column = owner_column
        self._first: str | None = None
        self._sorted: _Sorted | None = None

    def rows_of(self, owner: str) -> pa.Table:
        if self._sorted is None and self._first in (None, owner):
            self._first = owner
            return arrow.read_columns(self._path, self._columns, (self._owner_column, owner))
        if self._sorted is None:
            both = arrow.read_columns(self._path, [*self._columns, self._owner_column])
            self._sorted = _sorted(both.select(list(self._columns)), both[self._owner_column])
        return self._sorted.rows_of(owner)


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """Rows of one owner side by side, and where they lie: owner to first row and number of rows."""

    table: pa.Table
    places: dict[str, tuple[int, int]]

    def rows_of(self, owner: str) -> pa.Table:
        return self.table.slice(*self.places.get(owner, (0, 0)))


def _sorted(table: pa.Table, owners: pa.ChunkedArray) -> _Sorted:
    """Sorted by owner, otherwise in the order of the file; rows without an owner come first and are nobody's."""
    encoded = pc.dictionary_encode(owners.cast(pa.string())).combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    number = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    counts = np.bincount(number + 1, minlength=len(encoded.dictionary) + 1)
    starts = np.cumsum(counts)
    places = zip(starts[:-1].tolist(), counts[1:].tolist(), strict=True)
    together = _widened(table).take(pa.array(np.argsort(number, kind="stable")))
    return _Sorted(together, dict(zip(encoded.dictionary.to_pylist(), places, strict=True)))


def _widened(table: pa.Table) -> pa.Table:
    """With 64-bit offsets of lists and text: taken together, columns may hold more values than 32 bits count."""
    fields = [field.with_type(_wide(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_wide(kind.value_type), kind.list_size)
    if arrow.is_list(kind):
        return pa.large_list(_wide(kind.value_type))
    return pa.large_string() if pa.types.is_string(kind) else kind
