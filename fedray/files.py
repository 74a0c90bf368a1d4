"""Files for their user alone: written whole or not at all, or added to."""

from __future__ import annotations

import os
from pathlib import Path


def put(path: Path, data: bytes, *, is_durable: bool = False) -> None:
    """Write a file in one step: readers see the one before, or all of this one.

    Args:
        path: where.
        data: what is in it.
        is_durable: whether it must also outlive a loss of power, from when this returns.
    """
    partial = path.with_suffix(".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        if is_durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)
    if is_durable:
        _sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, which is made if it is not there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
        file.write(data)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
