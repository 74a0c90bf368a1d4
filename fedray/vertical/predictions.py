"""Predictions with their ids, as a file at the label holder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError
from fedray.files import put


def write_predictions(path: Path, ids: Sequence[str], predictions: NDArray[np.float32]) -> None:
    """Write a column of ids, in their normalised form, and one for each output; for the party's user alone.

    Args:
        path: ends in .csv or .parquet.
        ids: shape ``(n,)``.
        predictions: shape ``(n,)`` or ``(n, n_classes)``.

    Raises:
        ConfigError: the name ends otherwise, or the file cannot be written.
    """
    import pandas as pd

    columns = predictions.reshape(len(ids), -1)
    frame = pd.DataFrame({"id": list(ids), **{f"prediction_{i}": columns[:, i] for i in range(columns.shape[1])}})
    formats: Mapping[str, Callable[[], bytes]] = {
        ".csv": lambda: frame.to_csv(index=False).encode(),
        ".parquet": lambda: frame.to_parquet(path=None),
    }
    if path.suffix not in formats:
        raise ConfigError(f"a file {path.name!r} for predictions", "a .csv or .parquet file", "rename it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, formats[path.suffix]())
    except OSError as error:
        raise ConfigError(
            f"predictions that cannot be written to {path} ({error.strerror})",
            "a folder on the label holder's node that it may write to",
            "name another",
        ) from None
