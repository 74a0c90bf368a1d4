"""A run whose directory was lost goes on from the place of its checkpoints."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import fedray
from fedray.config import validated
from fedray.errors import RecordsError, RunDirectoryError
from fedray.records import read_run

PRIVATE = {"name": "example", "noise_multiplier": 2.0}


def raw(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    return {
        "data": {"name": "digits", "owners": 3, "split": "iid"},
        "model": "logistic",
        "rounds": 5,
        "train": {"steps": 2},
        "strategy": {"name": "fedavg", "server_momentum": 0.5},
        "checkpoints": {"path": str(tmp_path / "far")},
        **settings,
    }


def cut_off(tmp_path: Path, **settings: Any) -> None:
    """A run of which three rounds are done."""
    rounds = iter(fedray.run(validated(raw(tmp_path, **settings)), tmp_path / "run", in_process=True))
    list(islice(rounds, 3))
    rounds.close()  # type: ignore[attr-defined]  # a generator


def test_the_disk_is_lost_and_the_run_ends_as_if_it_were_not(tmp_path: Path) -> None:
    whole = list(fedray.run(validated(raw(tmp_path, checkpoints={})), tmp_path / "whole", in_process=True))
    cut_off(tmp_path)
    shutil.rmtree(tmp_path / "run")
    rest = list(fedray.resume(tmp_path / "far", in_process=True))
    assert [record.round for record in rest] == [4, 5]
    found = read_run(tmp_path / "run")
    assert found.status == "complete"
    assert [one.parameters_sha256 for one in found.rounds] == [one.parameters_sha256 for one in whole]
    assert [one.metrics for one in found.rounds] == [one.metrics for one in whole]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_a_checkpoint_that_came_before_its_record_brings_it(tmp_path: Path) -> None:
    cut_off(tmp_path)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "far" / "record-000003.json").unlink()
    assert [record.round for record in fedray.resume(tmp_path / "far", in_process=True)] == [4, 5]
    assert [record.round for record in read_run(tmp_path / "run").rounds] == [1, 2, 3, 4, 5]


def test_the_run_is_the_same_to_owners_ledgers(tmp_path: Path) -> None:
    """They are on the owners' machines, which were not lost: epsilon goes on from where it was."""
    cut_off(tmp_path, privacy=PRIVATE)
    before = read_run(tmp_path / "run").rounds[-1].epsilon
    for path in (tmp_path / "run").iterdir():
        if path.name != "owners":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "run" / "owners" / "run").unlink()
    rest = list(fedray.resume(tmp_path / "far", in_process=True))
    assert before is not None
    assert rest[0].epsilon is not None
    assert rest[0].epsilon > before
    steady = list(
        fedray.run(validated(raw(tmp_path, privacy=PRIVATE, checkpoints={})), tmp_path / "b", in_process=True)
    )
    assert rest[-1].epsilon == steady[-1].epsilon


def test_a_directory_that_is_still_there_is_gone_on_with(tmp_path: Path) -> None:
    cut_off(tmp_path)
    (tmp_path / "run" / "mine.txt").write_text("stays")
    list(fedray.resume(tmp_path / "far", in_process=True))
    assert (tmp_path / "run" / "mine.txt").exists()
    with pytest.raises(RunDirectoryError, match="is complete"):
        fedray.resume(tmp_path / "far", in_process=True)


@pytest.mark.parametrize("place", ["nowhere", "runs/nowhere"])
def test_a_place_without_a_run_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no experiment"):
        fedray.resume(tmp_path / place)


@pytest.mark.parametrize("name", ["run.json", "record-000002.json"])
def test_what_is_damaged_is_named(name: str, tmp_path: Path) -> None:
    cut_off(tmp_path)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "far" / name).write_text("{")
    with pytest.raises(RecordsError, match=r"run\.json|a record"):
        fedray.resume(tmp_path / "far")
    assert not (tmp_path / "run" / "experiment.yaml").exists()
