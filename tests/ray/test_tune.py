"""Comparisons by Ray Tune: trials in groups of their own, early stopping, and a driver that is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedray
from fedray.config import Experiment, replaced
from fedray.errors import ConfigError, ResourcesError, RunDirectoryError, RunError
from fedray.records import find_runs
from fedray.report.comparison import compare as analysed
from fedray.tune import compare

BASE = Experiment(name="cmp", rounds=3, data={"name": "digits", "owners": 3}, model="logistic")


def test_every_point_of_the_space_is_a_federation_with_the_bits_of_a_single_run(tmp_path: Path, ray_dir: Path) -> None:
    space = {"strategy": ["fedavg", {"name": "fedprox", "mu": 0.5}], "seed": [0, 1]}
    result = compare(BASE, space, tmp_path / "out")
    assert result.n_failed == 0
    assert len(result.runs) == 4
    assert {run.status for run in result.runs} == {"complete"}
    for run in result.runs:
        point = {"strategy": run.experiment["strategy"], "seed": run.experiment["seed"]}
        alone = list(fedray.run(replaced(BASE, point), tmp_path / f"alone-{run.label}", in_process=True))
        assert run.rounds[-1].parameters_sha256 == alone[-1].parameters_sha256
    assert [run.label for run in find_runs(tmp_path / "out")] == [run.label for run in result.runs]
    assert len(analysed(result.runs).variants) == 2


def test_asha_stops_what_falls_behind(tmp_path: Path, ray_dir: Path) -> None:
    space = {
        "train.optimizer.lr": [0.5, 0.3, 1e-6, 1e-7],
        "search.stopping": [{"name": "asha", "grace_rounds": 2, "reduction_factor": 2}],
        "search.max_concurrent": [1],
    }
    result = compare(replaced(BASE, {"rounds": 8}), space, tmp_path / "out")
    reached = {run.experiment["train"]["optimizer"]["lr"]: len(run.rounds) for run in result.runs}
    assert reached[0.5] == 8
    assert reached[1e-6] < 8
    assert reached[1e-7] < 8
    assert {run.status for run in result.runs} == {"complete", "interrupted"}


def test_ranges_are_sampled_by_a_searcher(tmp_path: Path, ray_dir: Path) -> None:
    raw = {
        "name": "search",
        "rounds": 1,
        "data": {"name": "digits", "owners": 3},
        "model": "logistic",
        "train": {"optimizer": {"name": "sgd", "lr": {"loguniform": [0.01, 1.0]}}},
        "search": {"samples": 3, "algorithm": "optuna"},
    }
    result = compare(raw, None, tmp_path / "out")
    rates = {run.experiment["train"]["optimizer"]["lr"] for run in result.runs}
    assert len(rates) == 3
    assert all(0.01 <= rate <= 1.0 for rate in rates)


def test_what_cannot_run_is_refused_before_any_trial(tmp_path: Path, ray_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds=-1"):
        compare(BASE, {"rounds": [1, -1]}, tmp_path / "a")
    with pytest.raises(ResourcesError, match="CPU"):
        compare(BASE, {"resources.owner_cpus": [9]}, tmp_path / "b")
    with pytest.raises(ConfigError, match="choice"):
        compare(replaced(BASE, {"search.algorithm": "optuna"}), {"seed": [0, 1]}, tmp_path / "c")
    with pytest.raises(RunDirectoryError, match="nothing to resume"):
        compare(BASE, {"seed": [0, 1]}, tmp_path / "d", resume=True)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "something").touch()
    with pytest.raises(RunDirectoryError, match="exists"):
        compare(BASE, {"seed": [0, 1]}, tmp_path / "e")
    assert not any((tmp_path / name).exists() for name in "abcd")


def test_trials_that_all_fail_end_in_one_error(tmp_path: Path, ray_dir: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("ann", "bob", "cat"):
        (tmp_path / "data" / f"{name}.csv").write_text("x,target\n" + "1,0\n2,1\n" * 6)
    (tmp_path / "data" / "bob.csv").write_text("x,target\nnan,0\n2,1\n")
    data = {"name": "tables", "path": tmp_path / "data", "classes": [0, 1]}
    with pytest.raises(RunError, match="trials failed"):
        compare(Experiment(data=data, rounds=1), {"seed": [0, 1]}, tmp_path / "out")
