"""Which configuration classes the data layer serves, as types that a checker can follow."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from fedray.config.data import (
    BreastCancer,
    Digits,
    Dirichlet,
    HeartDisease,
    Iid,
    Images,
    LabelShards,
    Quantity,
    Synthetic,
    Tables,
)

PooledData: TypeAlias = Digits | BreastCancer
"""One pool of rows that a split deals to simulated owners."""

DrawnData: TypeAlias = Synthetic | Images
"""Sets that are drawn: each owner's rows are made when it is opened, and nothing is kept on disk."""

StoredData: TypeAlias = PooledData | HeartDisease
"""Sets that are dealt or prepared once, for all owners together, and kept in a file."""

SimulatedData: TypeAlias = DrawnData | StoredData
"""Sets that fedray makes into shards itself."""

AnyData: TypeAlias = SimulatedData | Tables
"""Every ``data`` section of an experiment."""

SplitSection: TypeAlias = Iid | Dirichlet | LabelShards | Quantity
"""Every ``split`` section."""


def absolute(path: Path) -> Path:
    """``path`` with ``~`` expanded, seen from the working folder."""
    return path.expanduser().absolute()
