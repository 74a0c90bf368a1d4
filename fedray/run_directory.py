"""The directory of one run: what its files are called, and that one process has it at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from fedray.errors import RunDirectoryError

MODEL = "model.safetensors"
TIMELINE = "timeline.json"
EXPERIMENT = "experiment.yaml"
OWNERS = "owners"
"""Folder of what owners keep of the run, on the machine of each."""


def new_directory(directory: str | Path | None, name: str) -> Path:
    """The directory asked for, or ``runs/NAME-TIME``.

    Raises:
        RunDirectoryError: it exists and is not empty.
    """
    target = Path(directory) if directory else Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunDirectoryError(
            f"{target} exists already", "a new or empty directory", "name another, or move the old one away"
        )
    return target


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run directory until this one lets go or ends, however it ends.

    An empty one is not left behind.

    Raises:
        RunDirectoryError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    folder = os.open(directory, os.O_RDONLY)
    try:
        _lock(folder, directory)
        yield
    finally:
        os.close(folder)
        with suppress(OSError):
            directory.rmdir()


def _lock(folder: int, directory: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirectoryError(
            f"another process runs in {directory}", "a run that nobody goes on with", "wait until it has ended"
        ) from None
