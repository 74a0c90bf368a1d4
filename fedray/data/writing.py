"""Turning data in memory into a folder of one Parquet file an owner, which ``data: {name: tables}`` reads.

Sources are told apart by what they can do (``to_pandas``, ``iloc``, ``__getitem__``), so neither torch nor
Hugging Face ``datasets`` is imported.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError

from fedray.config.data import Split
from fedray.data import arrow
from fedray.data.kinds import SplitSection, absolute
from fedray.data.numbered import Numbered
from fedray.data.splits import deal
from fedray.errors import ConfigError, DataError

Owner = str | Sequence[str] | ArrayLike


def write_shards(
    folder: str | Path,
    source: Any,
    *,
    target: str = "target",
    owner: Owner | None = None,
    owners: int | None = None,
    split: SplitSection | Mapping[str, Any] | str | None = None,
    seed: int = 0,
) -> Path:
    """Write one Parquet file an owner, all or none; writing the same again changes nothing.

    Args:
        folder: where the files go; new, empty, or holding exactly what would be written.
        source: a pandas DataFrame, anything with ``to_pandas()`` (Hugging Face, polars, Arrow), a torch
            ``Dataset`` of ``(x, y)`` pairs, or a tuple ``(x, y)`` of arrays with ``n`` rows. It is read into
            memory once.
        target: column of the labels; what the labels' column is called where the source is arrays or pairs.
        owner: the column that names the owner, or ``n`` names. The column itself is not written.
        owners: number of simulated owners, instead of ``owner``.
        split: how rows are dealt to simulated owners, e.g. ``{"name": "dirichlet", "alpha": 0.3}``; ``iid``
            if left out.
        seed: of the split.

    Returns:
        The folder, for ``Experiment(data={"name": "tables", "path": folder})``.

    Raises:
        ConfigError: not exactly one of ``owner`` and ``owners`` is given, or ``split`` is wrong.
        DataError: the source cannot be read, an owner's name cannot be a file name, or the folder holds other
            files.
    """
    if (owner is None) == (owners is None) or (owner is not None and split is not None):
        raise ConfigError(
            f"owner {'is not' if owner is None else 'is'} given, owners is {owners}, split is {split!r}",
            "either owner (whose row it is), or owners (how many to simulate) with an optional split",
            "leave one of them out",
        )
    table = _as_table(source, target)
    if owner is not None:
        table, names = _named(table, owner)
    else:
        names = _dealt(table, target, owners or 0, _as_split(split), seed)
    path = absolute(Path(folder))
    _write(path, {name: table.take(rows) for name, rows in _rows_by_name(names).items()})
    return path


# --- sources --------------------


def _as_table(source: Any, target: str) -> pa.Table:
    if hasattr(source, "to_pandas"):
        source = source.to_pandas()
    if hasattr(source, "iloc"):
        table = _from_pandas(source)
    elif isinstance(source, tuple) and len(source) == 2:
        table = _from_arrays(np.asarray(source[0]), np.asarray(source[1]), target)
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        table = _from_pairs(source, target)
    else:
        raise DataError(
            f"a source of type {type(source).__name__}",
            "a DataFrame, a Hugging Face or torch dataset with a length, or a tuple (x, y)",
            "turn it into one of those",
        )
    if target not in table.column_names or table.num_rows == 0:
        raise DataError(
            f"a source with {table.num_rows} rows and columns {table.column_names[:40]}",
            f"at least one row, and a column {target!r}",
            "name the labels' column with target=...",
        )
    return table


def _from_pandas(frame: Any) -> pa.Table:
    try:
        return arrow.as_stored(pa.Table.from_pandas(frame, preserve_index=False)).replace_schema_metadata(None)
    except (pa.ArrowException, TypeError, ValueError):
        raise DataError(
            f"a DataFrame of types {sorted({str(kind) for kind in frame.dtypes})} that Arrow cannot store",
            "columns of numbers, text, or one-dimensional arrays of one length",
            "convert the odd columns, or pass a tuple of arrays (x, y)",
        ) from None


def _from_pairs(source: Any, target: str) -> pa.Table:
    pairs = [source[row] for row in range(len(source))]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise DataError(
            f"a dataset of {len(pairs)} items that are not all pairs",
            "items (x, y) with x of one shape",
            "wrap the dataset so that it gives (x, y)",
        )
    if len({np.shape(x) for x, _ in pairs}) > 1:
        raise DataError("examples of several shapes", "one shape for all", "resize, crop or pad them first")
    return _from_arrays(
        np.stack([np.asarray(x) for x, _ in pairs]), np.stack([np.asarray(y) for _, y in pairs]), target
    )


def _from_arrays(x: NDArray[Any], y: NDArray[Any], target: str) -> pa.Table:
    if x.ndim == 0 or x.dtype.kind not in "biuf":
        raise DataError(
            f"features of type {x.dtype} and shape {x.shape}",
            "numbers of shape (n, ...)",
            "encode them as numbers",
        )
    if target == arrow.FEATURES:
        raise ConfigError(f"target is {target!r}", "another name: that column holds x", "leave target out")
    x = x.reshape(-1, 1) if x.ndim == 1 else x
    if y.size != len(x):
        raise DataError(f"features {x.shape} and targets {y.shape}", "one target a row", "check the lengths")
    is_token = x.dtype.kind in "iu" and x.dtype.itemsize >= 4  # bytes and shorts are pixels
    features = x.astype(np.int64) if is_token else x.astype(np.float32)
    table = pa.table({arrow.FEATURES: arrow.feature_column(features), target: pa.array(y.reshape(-1))})
    return arrow.with_shape(table, x.shape[1:])


# --- owners --------------------


def _named(table: pa.Table, owner: Owner) -> tuple[pa.Table, NDArray[np.object_]]:
    """The table without its owner column, and the owner of each row, shape ``(n,)``."""
    if isinstance(owner, str):
        if owner not in table.column_names:
            raise DataError(
                f"no column {owner!r} among {table.column_names[:40]}",
                "a column of owners' names",
                "correct owner=...",
            )
        values = table[owner].to_pylist()
        return table.drop_columns([owner]), _checked_names([None if v is None else str(v) for v in values])
    names = [None if name is None else str(name) for name in np.asarray(owner).tolist()]
    if len(names) != table.num_rows:
        raise DataError(f"{len(names)} owners' names for {table.num_rows} rows", "one name a row", "check the lengths")
    return table, _checked_names(names)


def _rows_by_name(names: NDArray[np.object_]) -> dict[str, NDArray[np.int64]]:
    """Each owner's row numbers, ascending, by name."""
    found, place = np.unique(names.astype(np.str_), return_inverse=True)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(np.bincount(place))[:-1]
    return dict(zip(found.tolist(), np.split(order, ends), strict=True))


def _checked_names(names: list[str | None]) -> NDArray[np.object_]:
    wrong = {name for name in names if not name or name[0] in "._" or set(name) & set("/\\:\0") or len(name) > 200}
    if wrong:
        raise DataError(
            f"{sum(name in wrong for name in names)} rows whose owner's name is missing or no file name",
            "names without / \\ : that do not start with . or _",
            "rename those owners, or drop the rows",
        )
    return np.array(names, dtype=np.object_)


def _dealt(table: pa.Table, target: str, n_owners: int, split: SplitSection, seed: int) -> NDArray[np.object_]:
    if n_owners < 1:
        raise ConfigError(f"owners is {n_owners}", "1 or more", "raise owners")
    names = np.empty(table.num_rows, dtype=np.object_)
    for name, index in zip(Numbered.of(n_owners), deal(split, _classes(table[target]), n_owners, seed), strict=True):
        names[index] = name
    return names


def _classes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each distinct label, shape ``(n,)``."""
    encoded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column, null_encoding="encode")
    indices = pa.chunked_array([chunk.indices for chunk in encoded.unify_dictionaries().chunks])
    return arrow.to_numpy(indices.fill_null(-1), np.int64)


def _as_split(split: SplitSection | Mapping[str, Any] | str | None) -> SplitSection:
    try:
        section: SplitSection = TypeAdapter(Split).validate_python("iid" if split is None else split)
    except ValidationError as error:
        raise ConfigError(
            f"split is {split!r}: {'; '.join(item['msg'] for item in error.errors())}",
            "iid, dirichlet, shards or quantity, alone or as {'name': 'dirichlet', 'alpha': 0.3}",
            "correct split=...",
        ) from None
    return section


# --- files --------------------


def _write(folder: Path, tables: Mapping[str, pa.Table]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if arrow.write_folder(folder, tables.items()):
            return
        again = Path(scratch) / "shards"
        arrow.write_folder(again, tables.items())
        if _same_files(folder, again):
            return
    raise DataError(
        f"{folder} holds other files already",
        "a new or empty folder, so that no owner of an earlier split is left behind",
        "remove the folder, or choose another",
    )


def _same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in other.iterdir())
    return names == sorted(path.name for path in one.iterdir()) and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names
    )
