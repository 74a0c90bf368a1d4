"""What of a run lies beside its checkpoints, where they are kept elsewhere: enough to go on without the run directory.

``run.json`` says what the run is, ``record-000012.json`` is the record of a round. Owners keep ledgers and journals
under the run directory's path on their own machines, so that the directory is made again at that path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import yaml

from fedray.build import keep_run_id, run_id
from fedray.config import Experiment, as_yaml, validated
from fedray.config.privacy import NoPrivacy
from fedray.errors import RecordsError, RunDirectoryError
from fedray.files import put
from fedray.folders import Folder
from fedray.records import PARQUET, header, record_from_json, record_to_json, write_parquet
from fedray.run_directory import EXPERIMENT, OWNERS
from fedray.values import RoundRecord

_RUN = "run.json"
_RECORD = re.compile(r"record-\d+\.json")


class _Begun(msgspec.Struct, frozen=True):
    """A run that has begun: the directory and the experiment, and its name in owners' ledgers."""

    directory: str
    experiment: str
    run: str


class Mirror:
    """Keeps a run's beginning and its records beside its checkpoints.

    Raises:
        RunError: they cannot be written there.

    Args:
        experiment: what is run.
        directory: the run directory.
    """

    def __init__(self, experiment: Experiment, directory: Path) -> None:
        assert experiment.checkpoints.path is not None, "checkpoints are in the run directory itself"
        self._folder = Folder(experiment.checkpoints.path)
        run = "" if isinstance(experiment.privacy, NoPrivacy) else run_id(directory / OWNERS)
        begun = _Begun(str(directory.absolute()), as_yaml(experiment), run)
        self._folder.write(_RUN, msgspec.json.encode(begun))

    def write(self, record: RoundRecord) -> None:
        """Keep the record of one more round."""
        self._folder.write(f"record-{record.round:06d}.json", record_to_json(record).encode())


def restored(place: str) -> Path:
    """The directory of a run whose checkpoints are in ``place``, made again where it was if it is not there any more.

    Raises:
        RunDirectoryError: no run is kept there.
        RecordsError: what is kept there is damaged.
    """
    folder = Folder(place)
    names = folder.names()
    if _RUN not in names:
        raise RunDirectoryError(
            f"no {EXPERIMENT} or {_RUN} in {place}",
            "the directory of a run that was cut off, or the place of its checkpoints",
            "check the path",
        )
    begun = _read(folder)
    directory = Path(begun.directory)
    if not (directory / EXPERIMENT).is_file():
        records = [record_from_json(folder.read(name).decode()) for name in sorted(names) if _RECORD.fullmatch(name)]
        _make(directory, begun, records)
    return directory


def _read(folder: Folder) -> _Begun:
    try:
        return msgspec.json.decode(folder.read(_RUN), type=_Begun)
    except (OSError, msgspec.DecodeError) as error:
        raise RecordsError(
            f"{folder}/{_RUN} cannot be read: {type(error).__name__}", "what fedray wrote there", "restore it"
        ) from error


def _make(directory: Path, begun: _Begun, records: Sequence[RoundRecord]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if begun.run:
        keep_run_id(directory / OWNERS, begun.run)
    experiment = validated(yaml.safe_load(begun.experiment))
    write_parquet(directory / PARQUET, replace(header(experiment), status="interrupted", rounds=tuple(records)))
    put(directory / EXPERIMENT, begun.experiment.encode())
