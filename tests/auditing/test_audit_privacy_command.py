"""``fedray audit-privacy``: what it prints, and its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml
from toys import study
from typer.testing import CliRunner, Result

from fedray.cli.audit_privacy import audit_privacy

STUDY = study("audit")
APP = typer.Typer()
APP.command()(audit_privacy)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    privacy = {"name": "example", "noise_multiplier": 4.0, "unsafe_replay_seed": 1}
    settings = {"name": "mine", "rounds": 2, "train": {"batch_size": 500, "steps": 2}, "privacy": privacy}
    path.write_text(yaml.safe_dump(settings))
    return path


def _run(experiment: Path, *arguments: str) -> Result:
    return CliRunner().invoke(APP, [str(experiment), "--canaries", "5000", *arguments])


def _words(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_right_mechanism_is_consistent_and_the_limits_are_said(experiment: Path) -> None:
    done = _run(experiment)
    assert done.exit_code == 0, done.output
    shown = _words(done)
    assert "mine: privacy example, 2 rounds, 2 steps of batch 500 on 500 rows an owner" in shown
    assert "claimed epsilon 1.993" in shown
    assert "verdict consistent" in shown
    assert "which proves nothing. This audits fedray's mechanism at these settings, not your data." in shown


def test_a_broken_mechanism_ends_with_exit_code_1(experiment: Path) -> None:
    with STUDY.noise_times(0.0):
        done = _run(experiment)
    assert done.exit_code == 1
    assert "verdict violated" in _words(done)
    assert "that proves a bug, but for a chance of at most 0.05" in _words(done)


def test_an_audit_that_could_find_nothing_says_so(experiment: Path) -> None:
    done = _run(experiment, "--set", "privacy.noise_multiplier=0.5", "--confidence", "0.99")
    assert done.exit_code == 0
    assert "lower bound, 0.99 confidence" in _words(done)
    assert "Nor could it have been above" in _words(done)
