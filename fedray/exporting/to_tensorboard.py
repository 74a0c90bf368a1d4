"""Runs as TensorBoard's event files, by torch's ``SummaryWriter`` on TensorBoard's own library.

A run has a folder ``LABEL-IDENTITY``. Exported again it keeps that folder, whatever it is called by now, and its event
files are written anew: nothing is doubled, and a run that went on is there in full.
"""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedray.errors import RunDirectoryError
from fedray.exporting.runs import Exported, scalars


def export(run: Exported, directory: Path) -> Path:
    """Write a run's event files below a directory; returns their folder.

    Raises:
        RunDirectoryError: the directory cannot be written to.
    """
    try:
        return _written(run, directory)
    except OSError as error:
        raise RunDirectoryError(
            f"{directory} cannot be written to: {error.strerror}", "a directory of yours", "check --tensorboard"
        ) from None


def _written(run: Exported, directory: Path) -> Path:
    folder = next(directory.glob(f"*-{run.identity}"), directory / f"{run.records.label}-{run.identity}")
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for ended_s, record in run.timed():
            for name, value in scalars(record).items():
                writer.add_scalar(name, value, record.round, walltime=ended_s)
        writer.add_hparams(run.settings, {f"final/{name}": value for name, value in run.final.items()}, run_name=".")
    return folder
