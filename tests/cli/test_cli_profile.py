"""``fedray run --profile`` in process: two tables, one file, and no word of a timeline that is not there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import yaml
from typer.testing import CliRunner

from fedray import cli
from fedray.config import Experiment
from fedray.records import read_run
from fedray.running import run

SMALL = {"rounds": 4, "data": {"name": "digits", "owners": 3}, "model": "logistic", "evaluation": {"every": 3}}


def fedray_run(folder: Path, *options: str, **changes: object) -> str:
    (folder / "experiment.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
    arguments = ["run", str(folder / "experiment.yaml"), "--in-process", "--out", str(folder / "out"), *options]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_profile_shows_where_time_went_and_leaves_the_same_in_a_file(tmp_path: Path) -> None:
    shown = fedray_run(tmp_path, "--profile")
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert [(one["rounds"], one["n_rounds"]) for one in found["server"]] == [
        ("first round", 1),
        ("evaluated", 2),
        ("not evaluated", 1),
    ]
    assert found["processes"] == 1
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    train = [f"{1000 * one['seconds']['train']:,.1f}" for one in found["owners"]]
    server, owners = shown.split("Server, wall time")[1].split("Owners, in one process")
    assert [line.split()[1::2] for line in owners.splitlines() if line.startswith("train")] == [train]
    assert "\nrecords" in server
    assert f"{found['rounds_per_s']:.3g} rounds/s" in shown
    assert rows["profile"][0].endswith("profile.json")
    assert "timeline" not in shown


def test_the_profile_is_of_the_records(tmp_path: Path) -> None:
    fedray_run(tmp_path, "--profile")
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    first = read_run(tmp_path / "out").rounds[0]
    kept = {phase: spent for phase, spent in found["server"][0]["seconds"].items() if phase != "records"}
    assert kept == {phase: spent for phase, spent in first.seconds.items() if phase != "total"}
    assert found["owners"][0]["seconds"]["train"] == first.work["train"]


def test_without_the_option_there_is_no_profile(tmp_path: Path) -> None:
    assert "rounds/s" not in fedray_run(tmp_path, rounds=1)
    assert not (tmp_path / "out" / "profile.json").exists()


def test_notes_on_how_owners_are_run_come_before_the_first_round(tmp_path: Path) -> None:
    federation = run(Experiment.model_validate({**SMALL, "simulation": "pooled"}), tmp_path / "run", in_process=True)
    assert not federation.notes
    list(federation)
    assert len(federation.notes) == 1, "three owners are too few to measure anything, so that it is the same again"
    shown = fedray_run(tmp_path, simulation="pooled", rounds=1).splitlines()
    note = shown.index(federation.notes[0])
    (heading,) = [place for place, line in enumerate(shown) if line.split()[:2] == ["round", "cohort"]]
    assert note < heading


def test_a_run_measures_from_record_to_record_and_what_writing_took(tmp_path: Path) -> None:
    federation = run(Experiment.model_validate(SMALL), tmp_path / "run", in_process=True)
    started = time.perf_counter()
    for record in federation:
        assert len(federation.rounds_s) == len(federation.records_s) == record.round
        assert federation.records_s[-1] > 0
        assert federation.rounds_s[-1] > record.seconds["total"] + federation.records_s[-1]
        time.sleep(0.05)  # what the caller does counts
    assert sum(federation.rounds_s) <= time.perf_counter() - started
    assert all(taken >= 0.05 for taken in federation.rounds_s[1:])
