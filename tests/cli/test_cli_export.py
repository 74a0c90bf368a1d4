"""``fedray export`` as a user meets it: its output, its exit code, and what is said where a library is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedray.cli import main, screen
from fedray.config import Experiment
from fedray.running import run


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Fedray = Callable[..., Done]


@pytest.fixture
def fedray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fedray:
    monkeypatch.setattr(screen.console, "width", 120)
    monkeypatch.setattr(screen.errors, "width", 120)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedray", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two runs below it."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b")):
        experiment = Experiment(
            name="told", seed=seed, rounds=2, data={"name": "digits", "owners": 3}, model="logistic"
        )
        list(run(experiment, folder / name, in_process=True))
    return folder


def test_every_run_below_a_directory_is_told_to_tensorboard_and_again_to_the_same_place(
    fedray: Fedray, runs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    first = fedray(runs, "--tensorboard", "board")
    assert (first.returncode, first.stderr) == (0, "")
    folders = sorted(path.name for path in (tmp_path / "board").iterdir())
    assert [name.partition("-")[0] for name in folders] == ["a", "b"]
    assert first.stdout.splitlines() == [
        "a: 2 rounds",
        f"  tensorboard board/{folders[0]}",
        "b: 2 rounds",
        f"  tensorboard board/{folders[1]}",
    ]
    assert fedray(runs / "a", runs / "b", "--tensorboard", "board") == first
    assert sorted(path.name for path in (tmp_path / "board").iterdir()) == folders


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_a_run_is_told_to_mlflow_and_its_number_there_is_shown(fedray: Fedray, runs: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    done = fedray(runs / "a", "--mlflow", f"sqlite:///{tmp_path}/ml.db")
    assert done.returncode == 0
    shown, place = done.stdout.splitlines()
    experiment, _, run_id = place.split()[1].partition("/")
    assert (shown, experiment) == ("a: 2 rounds", "told")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/ml.db")
    assert client.get_run(run_id).info.run_name == "a"


@pytest.mark.parametrize(("extra", "place"), [("tensorboard", "board"), ("mlflow", "sqlite:///ml.db")])
def test_a_library_that_is_missing_is_named_with_how_to_get_it(
    extra: str, place: str, fedray: Fedray, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith((extra, "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"fedray.exporting.to_{extra}", raising=False)
    monkeypatch.setitem(sys.modules, extra, None)
    done = fedray(runs, f"--{extra}", place)
    assert done.returncode == 2
    assert f"{extra} is not installed" in done.stderr
    assert f"pip install 'fedray[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_to_tell_it_to_the_usage_is_shown(fedray: Fedray, runs: Path) -> None:
    done = fedray(runs)
    assert done.returncode == 2
    assert "--tensorboard" in done.stderr
    assert "--mlflow" in done.stderr


def test_what_is_no_run_is_one_clear_error(fedray: Fedray, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    for path, found in (("nowhere", "does not exist"), ("torn.parquet", "cannot be read")):
        done = fedray(path, "--tensorboard", "board")
        assert (done.returncode, done.stdout) == (7, "")
        assert found in done.stderr
    assert not (tmp_path / "board").exists()
