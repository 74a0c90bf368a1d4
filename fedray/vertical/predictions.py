"""Predictions with their ids, as a file at the label holder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError


def write_predictions(path: Path, ids: Sequence[str], predictions: NDArray[np.float32]) -> None:
    """Write a column of ids and one for each output.

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
    writers = {".csv": lambda: frame.to_csv(path, index=False), ".parquet": lambda: frame.to_parquet(path)}
    if path.suffix not in writers:
        raise ConfigError(f"a file {path.name!r} for predictions", "a .csv or .parquet file", "rename it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[path.suffix]()
    except OSError as error:
        raise ConfigError(
            f"predictions that cannot be written to {path} ({error.strerror})",
            "a folder on the label holder's node that it may write to",
            "name another",
        ) from None
