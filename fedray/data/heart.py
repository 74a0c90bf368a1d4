"""UCI heart disease in four hospitals, prepared as FLamby does, one hospital at a time.

Janosi, Steinbrunn, Pfisterer, Detrano: Heart Disease, UCI 1988, doi 10.24432/C52P4X. Preparation of Ogier du
Terrail et al., FLamby, 2022, Fed-Heart-Disease: three sparse columns and incomplete rows are dropped, chest
pain and resting ECG become indicators, any disease is class 1, and two thirds of each hospital's rows train.
FLamby finds the categories of the two indicators in all hospitals together; they are fixed here, so that a
hospital needs no file but its own. pandas and scikit-learn are imported on use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedray.config.data import OwnerScaling
from fedray.data.kinds import absolute
from fedray.data.rows import Rows, take
from fedray.data.scaling import scale_shard
from fedray.errors import DataError
from fedray.values import Examples, Schema, Shard

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
SCHEMA = Schema(feature_shape=(13,), feature_dtype="float32", target_shape=(), n_classes=2)

_N_COLUMNS = 14
_SPARSE = [10, 11, 12]
_LABEL = 13
_CATEGORIES = {2: (1, 2, 3, 4), 6: (0, 1, 2)}  # chest pain, resting ECG
_TRAIN_SHARE = 0.66
_SPLIT_SEED = 43


def hospital_file(folder: Path, hospital: str) -> Path:
    """``folder/processed.HOSPITAL.data``.

    Raises:
        DataError: the file is not there.
    """
    path = absolute(folder) / f"processed.{hospital}.data"
    if not path.is_file():
        raise DataError(
            f"no file {path}",
            "the four processed.*.data files of UCI data set 45 in data.path",
            "download them from https://archive.ics.uci.edu/dataset/45 and point data.path at their folder",
        )
    return path


def read_hospital(folder: Path, hospital: str) -> Rows:
    """One hospital's complete rows, unscaled, ``(n, 13)``; class 1 is disease; FLamby's test rows held out.

    Raises:
        DataError: the file is missing, or does not look like UCI's.
    """
    numbers = _complete_rows(hospital_file(folder, hospital))
    labels = (numbers[:, -1] > 0).astype(np.int64)
    features = _with_indicators(numbers[:, :-1], hospital)
    return Rows(Examples(features, labels), _flamby_test_rows(labels))


def pooled(folder: Path) -> Shard:
    """All hospitals as one shard, scaled by the pooled training rows: the baseline without a federation.

    Returns:
        486 training and 254 held-out rows of UCI's files.

    Raises:
        DataError: a file is missing, or does not look like UCI's.
    """
    hospitals = [read_hospital(folder, hospital) for hospital in HOSPITALS]
    examples = Examples(
        np.concatenate([rows.examples.features for rows in hospitals]),
        np.concatenate([rows.examples.targets for rows in hospitals]),
    )
    mask = np.concatenate([rows.is_holdout for rows in hospitals if rows.is_holdout is not None])
    return scale_shard(Shard(train=take(examples, ~mask), holdout=take(examples, mask)), OwnerScaling())


def _complete_rows(path: Path) -> NDArray[np.float64]:
    import pandas as pd

    try:
        table = pd.read_csv(path, header=None, na_values="?", dtype=np.float64)
    except (ValueError, OSError):  # pandas' parser errors are ValueErrors; their text may hold rows
        raise _unlike_uci(path, "cannot be parsed as numbers") from None
    if table.shape[1] != _N_COLUMNS:
        raise _unlike_uci(path, f"has {table.shape[1]} columns")
    return table.drop(columns=_SPARSE).dropna().to_numpy()


def _unlike_uci(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}",
        f"UCI's file: {_N_COLUMNS} comma-separated numbers a row, '?' where missing",
        "download it again from https://archive.ics.uci.edu/dataset/45",
    )


def _with_indicators(columns: NDArray[np.float64], hospital: str) -> NDArray[np.float32]:
    kept = [columns[:, number] for number in range(columns.shape[1]) if number not in _CATEGORIES]
    for number, categories in _CATEGORIES.items():
        n_unknown = int((~np.isin(columns[:, number], categories)).sum())
        if n_unknown:
            raise DataError(
                f"{n_unknown} rows of {hospital} hold an unknown category in column {number}",
                f"one of {list(categories)}",
                "download the file again from https://archive.ics.uci.edu/dataset/45",
            )
        kept += [(columns[:, number] == category) for category in categories[1:]]
    return np.column_stack(kept).astype(np.float32)


def _flamby_test_rows(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels, minlength=2)
    stratify = labels if counts.min() > 2 else None  # FLamby's rule
    _, test = train_test_split(
        np.arange(len(labels)),
        test_size=1.0 - _TRAIN_SHARE,
        train_size=_TRAIN_SHARE,
        random_state=_SPLIT_SEED,
        stratify=stratify,
    )
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[test] = True
    return mask
