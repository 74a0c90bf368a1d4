"""Trials that are lost go on, trials that failed are left alone, and comparisons on one file system do not mix."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray._private.state import actors

import fedray
from fedray.config import Experiment, replaced
from fedray.errors import ConfigError, RunError
from fedray.tune import compare

BASE = Experiment(name="cmp", rounds=6, data={"name": "digits", "owners": 3}, model="logistic")


class Killer:
    """Watches a comparison, and kills a trial's process once."""

    def __init__(self) -> None:
        self.n_killed = 0

    def __call__(self, trial: str, settings: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        if result and result["round"] == 2 and not self.n_killed:
            pids = [one["Pid"] for one in actors().values() if one["State"] == "ALIVE" and "Implicit" in str(one)]
            os.kill(pids[0], signal.SIGKILL)
            self.n_killed += 1


def test_a_trial_whose_process_is_lost_ends_with_the_same_bits(tmp_path: Path, ray_dir: Path) -> None:
    killer = Killer()
    result = compare(BASE, {"seed": [3]}, tmp_path / "out", watch=killer)
    assert (killer.n_killed, result.n_failed) == (1, 0)
    (run,) = result.runs
    alone = list(fedray.run(replaced(BASE, {"seed": 3}), tmp_path / "alone", in_process=True))
    assert [one.round for one in run.rounds] == [1, 2, 3, 4, 5, 6]
    assert [one.parameters_sha256 for one in run.rounds] == [one.parameters_sha256 for one in alone]


def test_a_trial_that_fails_for_a_reason_of_its_own_is_tried_once(tmp_path: Path, ray_dir: Path) -> None:
    with pytest.raises(RunError, match="all 1 trials failed"):
        compare(
            {"data": {"name": "digits", "owners": 3}, "model": "logistic", "privacy": IMPOSSIBLE, "rounds": 1},
            None,
            tmp_path / "out",
        )
    marks = list((tmp_path / "out" / "accounts").rglob("failed-*"))
    assert len(marks) == 1
    assert "epsilon" in marks[0].read_text()


IMPOSSIBLE = {"name": "example", "epsilon": 1e-6, "delta": 1e-12}
"""No noise that fedray draws reaches it, which owners find out."""


def test_two_comparisons_share_a_place_and_do_not_mix(tmp_path: Path, ray_dir: Path) -> None:
    short = replaced(BASE, {"rounds": 1, "checkpoints.path": str(tmp_path / "far")})
    for name in ("a", "b"):
        assert compare(short, {"seed": [0]}, tmp_path / name).n_failed == 0
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["a", "b"]
    assert not (tmp_path / "a" / "tune").exists()


def test_a_place_that_is_none_is_refused_before_a_trial_starts(tmp_path: Path, ray_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoints\.path"):
        compare(replaced(BASE, {"checkpoints.path": "not/absolute"}), {"seed": [0]}, tmp_path / "out")
