"""One file with the rows of all owners of a simulated set, grouped by owner: written once, mapped, sliced.

Arrow's IPC file, uncompressed, so that rows are read where they lie; where each owner's rows begin stands in the
schema's metadata. The file appears whole or not at all: it is written beside and renamed, and processes that race
write the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedray.data import arrow
from fedray.data.rows import Rows
from fedray.errors import DataError
from fedray.values import Examples

_STARTS = b"fedray.starts"


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Rows of all owners, as views of the mapped file.

    Attributes:
        together: ``n`` rows, each owner's side by side; read-only.
        starts: first row of each owner, and ``n``; int64 of shape ``(n_owners + 1,)``.
    """

    together: Rows
    starts: NDArray[np.int64]

    def rows(self, number: int) -> Rows:
        """Rows of owner ``number``; read-only views."""
        part = slice(self.starts[number], self.starts[number + 1])
        examples, mask = self.together.examples, self.together.is_holdout
        return Rows(Examples(examples.features[part], examples.targets[part]), None if mask is None else mask[part])


def write_store(path: Path, owners: Iterable[Rows]) -> None:
    """Write the rows of all owners, in order, where all of them or none hold marked rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = _grouped(list(owners))
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:16]}-", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@lru_cache(maxsize=16)
def open_store(path: Path) -> Store:
    """Map a store into memory; once a process, since a store never changes.

    Raises:
        DataError: the file is missing or corrupt.
    """
    try:
        with pa.memory_map(str(path)) as file:
            return _store(pa.ipc.open_file(file).read_all())
    except (pa.ArrowException, OSError, ValueError, LookupError):
        raise DataError(
            f"{path} cannot be read", "a complete store of shards", "remove the file: it is made again"
        ) from None


def _grouped(owners: list[Rows]) -> pa.Table:
    masks = [rows.is_holdout for rows in owners if rows.is_holdout is not None]
    together = Examples(
        np.concatenate([rows.examples.features for rows in owners]),
        np.concatenate([rows.examples.targets for rows in owners]),
    )
    table = arrow.to_table(Rows(together, np.concatenate(masks) if masks else None))
    starts = np.cumsum([0, *(len(rows.examples) for rows in owners)], dtype="<i8")
    return table.replace_schema_metadata({**table.schema.metadata, _STARTS: starts.tobytes()})


def _store(table: pa.Table) -> Store:
    """Views of the table's columns.

    Raises:
        ValueError, LookupError: it is no store, or its columns reach beyond the file.
    """
    table.validate()
    starts = np.frombuffer((table.schema.metadata or {})[_STARTS], dtype="<i8")
    if starts[0] != 0 or starts[-1] != len(table) or (np.diff(starts) < 0).any():
        raise ValueError("owners' rows do not follow one another")
    shape = arrow.stored_shape(table.schema, arrow.FEATURES) or ()
    features = _view(table[arrow.FEATURES].chunk(0).flatten()).reshape(-1, *shape)
    mask = np.array(table[arrow.HOLDOUT].to_pylist(), dtype=np.bool_) if arrow.HOLDOUT in table.column_names else None
    return Store(Rows(Examples(features, _view(table["target"].chunk(0))), mask), starts)


def _view(column: pa.Array) -> NDArray[Any]:
    """By DLPack, since Arrow's ``to_numpy`` imports pandas: half a second in every process."""
    return np.from_dlpack(column)
