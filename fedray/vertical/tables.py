"""A party's table: opened inside the party, checked there, and never part of a message.

A source is a path (CSV or Parquet), a callable without arguments, a mapping of column names to arrays, or a data frame.
Paths and callables are opened where the party is. What is given as a mapping or a frame was seen by the caller.

Pandas is imported where it is used: actors start sooner without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray.errors import DataError
from fedray.psi import normalised

if TYPE_CHECKING:
    import pandas as pd

Source = Union[str, Path, Callable[[], Any], Mapping[str, Any], "pd.DataFrame"]


@dataclass(frozen=True)
class Table:
    """Columns of one party, each with a row a person.

    Attributes:
        ids: normalised, each once.
        columns: name to values, shape ``(n_rows, ...)``; without the id.
    """

    ids: Sequence[str] = field(repr=False)
    columns: Mapping[str, NDArray[Any]] = field(repr=False)

    def features(self) -> Tensor:
        """All columns side by side, float32 of shape ``(n_rows, n_features)``; one array of more axes as it is.

        Raises:
            DataError: there is none, or one holds what is no finite number.
        """
        arrays = [_numbers(name, values) for name, values in self.columns.items()]
        if not arrays:
            raise DataError("a table without features", "a column besides the id", "leave this owner out")
        if len(arrays) == 1 and arrays[0].ndim > 2:
            return torch.from_numpy(arrays[0])
        return torch.from_numpy(np.concatenate([one.reshape(len(one), -1) for one in arrays], axis=1))


def open_table(source: Source, id_column: str, party: str) -> Table:
    """What a party has.

    Args:
        source: where it is.
        id_column: the one that tells people apart.
        party: whose it is, for messages.

    Raises:
        DataError: it cannot be read, lacks the column, or columns differ in length; ids are empty or occur twice.
    """
    columns = {name: _array(name, values) for name, values in _columns(source, id_column, party).items()}
    if id_column not in columns:
        raise DataError(
            f"a table of {party!r} with the columns {', '.join(sorted(columns)) or 'none'}",
            f"a column {id_column!r}",
            "name the column of ids in id",
        )
    n_rows = {len(values) if values.ndim else 0 for values in columns.values()}
    if n_rows == {0} or len(n_rows) > 1:
        raise DataError(
            f"columns of {party!r} with {', '.join(map(str, sorted(n_rows)))} rows",
            "as many in each, and more than none",
            "correct the table",
        )
    return Table(normalised(columns.pop(id_column).tolist()), columns)


def _columns(source: Source, id_column: str, party: str) -> Mapping[str, Any]:
    found = source() if callable(source) else source
    if isinstance(found, str | Path):
        found = _read(Path(found), id_column, party)
    if isinstance(found, Mapping):
        return found
    import pandas as pd

    if isinstance(found, pd.DataFrame):
        return {str(name): found[name].to_numpy() for name in found.columns}
    raise DataError(
        f"a {type(found).__name__} as the data of {party!r}",
        "a path, a mapping of columns, a data frame, or a callable that returns one",
        "correct the source",
    )


def _array(name: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError(f"a column {name!r} with rows of several lengths", "one shape a row", "pad them") from None


def _read(path: Path, id_column: str, party: str) -> pd.DataFrame:
    """A file's table; ids of a CSV keep their zeros.

    Raises:
        DataError: it is missing, or no such file.
    """
    import pandas as pd

    readers = {".csv": lambda: pd.read_csv(path, dtype={id_column: str}), ".parquet": lambda: pd.read_parquet(path)}
    if path.suffix not in readers:
        raise DataError(f"a file {path.name!r} of {party!r}", "a .csv or .parquet file", "convert it")
    try:
        return readers[path.suffix]()
    except (OSError, ValueError) as error:
        raise DataError(
            f"a table {path.name!r} of {party!r} that cannot be read ({type(error).__name__})",
            "a readable file on this party's own node",
            "check the path there",
        ) from None


def _numbers(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype.kind not in "fiub":
        raise DataError(f"a column {name!r} of {values.dtype}", "numbers", "encode it, or leave it out")
    numbers = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"a column {name!r} with values that are not finite", "finite numbers", "fill them in first")
    return numbers
