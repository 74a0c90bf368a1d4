"""``fedray run --profile`` on Ray: the pools are known, and Ray's timeline lies beside the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedray import cli

EXPERIMENT = {
    "rounds": 3,
    "data": {"name": "digits", "owners": 2},
    "model": "logistic",
    "protection": "plain",
    "simulation": {"name": "pooled", "pools": 2, "at_once": 1},
}


def profiled(folder: Path, **changes: object) -> str:
    (folder / "experiment.yaml").write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
    arguments = ["run", str(folder / "experiment.yaml"), "--profile", "--out", str(folder / "out")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_profile_on_ray_knows_the_pools_and_leaves_a_timeline_of_every_round(tmp_path: Path, ray_dir: Path) -> None:
    shown = profiled(tmp_path)
    assert shown.index("pools: 2") < shown.index("cohort")
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert (found["processes"], found["is_derived"]) == (2, False)
    assert {"train", "serialise", "wait", "rest"} <= set(found["owners"][1]["seconds"])
    assert "ui.perfetto.dev" in shown
    events = json.loads((tmp_path / "out" / "timeline.json").read_text())
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    calls = [event["cat"] for event in events]
    assert calls.count("task::PoolActor.train") == 3 * 2
    assert calls.count("task::ServerActor.advance") >= 3


def test_owners_with_an_actor_each_have_training_told_from_the_rest(tmp_path: Path, ray_dir: Path) -> None:
    shown = profiled(tmp_path, simulation="none", rounds=2)
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert (found["processes"], found["is_derived"]) == (2, True)
    assert all(list(one["seconds"]) == ["train", "rest"] for one in found["owners"])
    assert all(one["shares"]["train"] == pytest.approx(1 - one["shares"]["rest"]) for one in found["owners"])
    assert "not told apart" in shown
