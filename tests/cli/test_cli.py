"""The command line as a user meets it: a process, its output, its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fedray.errors import RecordsError
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.records import read_run

FEDRAY = Path(sys.executable).with_name("fedray")
SMALL = {"name": "small", "rounds": 2, "data": {"name": "digits", "owners": 3}, "model": "logistic"}


def fedray(*arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    command = [str(FEDRAY), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False, **options
    )


HEEDING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
"""Whoever runs the tests in the background has them ignore SIGINT, and their children too."""


def interruptible(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """A fedray process in a session of its own, which heeds Ctrl-C."""
    command = [sys.executable, "-c", HEEDING, str(FEDRAY), *map(str, arguments)]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, start_new_session=True, **options)


def write(folder: Path, **changes: object) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def test_run_prints_every_round_and_writes_records_report_and_model(tmp_path: Path) -> None:
    done = fedray("run", write(tmp_path), "--in-process", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "rounds.parquet",
        "report.html",
        "model.safetensors",
        "experiment.yaml",
    }
    records = read_run(tmp_path / "out")
    assert records.status == "complete"
    assert f"{records.rounds[-1].metrics['accuracy']:.4f}" in done.stdout
    again = fedray("report", "out", "--out", "again.html", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_ends_with_its_owners_budgets_is_a_success_and_leaves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No owner's ledger on its machine allows for a single round."""
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    for name in ("owner-00", "owner-01", "owner-02"):
        Ledger(LedgerFile(ledger_path(name)), name).set_budget("example", 1e-6, 1e-5)
    private = write(tmp_path, privacy={"name": "example", "noise_multiplier": 2.0})
    done = fedray("run", private, "--in-process", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = read_run(tmp_path / "out")
    assert (records.status, [record.n_updates for record in records.rounds]) == ("exhausted", [0])
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "model.safetensors"}


def test_settings_are_overridden(tmp_path: Path) -> None:
    settings = ["--set", "rounds=1", "--set", "strategy.name=fedprox", "-s", "strategy.mu=0.5"]
    done = fedray("run", write(tmp_path), "--in-process", "--out", "out", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = read_run(tmp_path / "out")
    assert len(records.rounds) == 1
    assert records.experiment["strategy"]["mu"] == 0.5


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"roundz": 3}, 2, "did you mean 'rounds'"),
        ({"rounds": "many"}, 2, "rounds: "),
        ({"rounds": 0}, 2, "rounds: "),
        ({"strategy": {"name": "fedprox", "mu": -0.1}}, 2, "strategy.mu: "),
        ({"privacy": {"name": "example", "epsilon": 0}}, 2, "privacy.epsilon: "),
        ({"privacy": {"name": "example", "epsilon": 1, "delta": 0.1}}, 2, "privacy.delta"),
        ({"data": {"name": "digits", "owners": 1900}}, 3, "1900"),
        ({"cohort": {"name": "fixed", "size": 9}}, 2, "at most 3"),
        ({"data": {"name": "digits", "owners": 2}}, 2, "protection: plain"),
        ({"protection": {"name": "masked", "server": "may_lie"}}, 2, "fedray enrol"),
        ({"protection": {"name": "masked", "identities": {"owner-00": "ab"}}}, 2, "protection.identities.owner-00"),
        ({"protection": {"name": "plain", "precision": 1e-9}}, 2, "protection.precision"),
        ({"model": {"name": "custom", "factory": "no.such:thing"}}, 2, "no.such:thing"),
        ({"model": {"name": "custom", "factory": "torch.nn:Linear", "args": {"in_features": 8, "out_features": 3}}},
         4, "10 scores"),
        ({"model": {"name": "cnn", "norm": "batch"}, "privacy": {"name": "example", "epsilon": 1}}, 4, "GroupNorm"),
        ({"loss": "binary_cross_entropy", "metrics": ["binary_accuracy"]}, 4, "10 classes"),
        ({"data": {"name": "tables", "path": "nowhere", "classes": [0, 1]}}, 3, "nowhere"),
        ({"data": {"name": "heart_disease", "path": "nowhere"}}, 3, "nowhere"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_error_and_leaves_nothing(
    settings: dict[str, object], code: int, said: str, tmp_path: Path
) -> None:
    done = fedray("run", write(tmp_path, **settings), "--in-process", "--out", "out", cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert said in " ".join(done.stderr.split())
    assert "expected:" in done.stderr
    assert "to do:" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def table(rows: int = 12, **columns: object) -> pd.DataFrame:
    frame = {"age": np.arange(rows) / 3, "dose": np.arange(rows) % 5, "target": np.arange(rows) % 2, **columns}
    return pd.DataFrame(frame)


@pytest.mark.parametrize(
    ("frame", "settings", "said"),
    [
        (table(rows=0), {}, "bob"),
        (table(target=[1] * 12), {}, "1 class"),
        (table().drop(columns="dose"), {"features": ["age", "dose"]}, "dose"),
        (table(age=[float("nan")] + [1.0] * 11), {}, "age"),
        (table(target=[7] * 6 + [0] * 6), {}, "classes"),
        (table(age=["old"] * 12), {}, "age"),
    ],
    ids=["no rows", "one class", "missing column", "nan", "unknown label", "text"],
)
def test_a_bad_table_is_refused_before_round_one(
    frame: pd.DataFrame, settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("ann", "cat"):
        table().to_csv(folder / f"{name}.csv", index=False)
    frame.to_csv(folder / "bob.csv", index=False)
    data = {"name": "tables", "path": str(folder), "classes": [0, 1], **settings}
    done = fedray("run", write(tmp_path, data=data), "--in-process", "--out", "out", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_two_owners_are_told_to_let_the_server_read_or_to_be_more(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("ann", "bob"):
        table().to_csv(folder / f"{name}.csv", index=False)
    experiment = write(tmp_path, data={"name": "tables", "path": str(folder), "classes": [0, 1]})
    done = fedray("run", experiment, "--in-process", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "protection: plain" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
    done = fedray("run", experiment, "--in-process", "--out", "out", "--set", "protection=plain", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_run(tmp_path / "out").rounds[-1].n_updates == 2


def test_an_existing_directory_and_a_corrupt_record_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rounds.parquet").write_bytes(b"PAR1 no")
    again = fedray("run", write(tmp_path), "--in-process", "--out", "out", cwd=tmp_path)
    assert again.returncode == 6
    assert "out exists" in again.stderr
    corrupt = fedray("report", "out", cwd=tmp_path)
    assert corrupt.returncode == 7
    assert "cannot be read" in corrupt.stderr
    missing = fedray("report", "nowhere", cwd=tmp_path)
    assert missing.returncode == 7
    assert "Traceback" not in again.stderr + corrupt.stderr + missing.stderr


def test_wrong_usage_exits_with_two_and_help_is_everywhere(tmp_path: Path) -> None:
    assert fedray("run", "--no-such-option", cwd=tmp_path).returncode == 2
    assert fedray("compare", cwd=tmp_path).returncode == 2
    assert fedray("run", "missing.yaml", cwd=tmp_path).returncode == 2
    assert fedray("run", write(tmp_path), "--set", "rounds", cwd=tmp_path).returncode == 2
    for command in ("run", "compare", "report", "audit", "enrol", "datasets", "schema"):
        shown = fedray(command, "--help", cwd=tmp_path)
        assert shown.returncode == 0
        assert len(shown.stdout.splitlines()) >= 5


def test_datasets_and_schema_are_printed(tmp_path: Path) -> None:
    listed = fedray("datasets", cwd=tmp_path)
    assert {"digits", "breast_cancer", "synthetic", "heart_disease", "tables"} <= set(listed.stdout.split())
    schema = yaml.safe_load(fedray("schema", cwd=tmp_path).stdout)
    assert schema["properties"]["rounds"]["type"] == "integer"


def test_control_c_ends_all_actors_and_keeps_records(tmp_path: Path) -> None:
    experiment = write(tmp_path, rounds=100_000, evaluation={"every": 1})
    process = interruptible("run", experiment, "--out", "out", cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while _rounds_on_disk(tmp_path / "out") < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        family = _descendants(process.pid)
        assert len(family) > 3
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    kept = read_run(tmp_path / "out")
    assert kept.status == "interrupted"
    assert len(kept.rounds) >= 3
    deadline = time.monotonic() + 30
    while alive := [pid for pid in family if _is_alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.5)


def test_control_c_in_a_comparison_exits_with_130_and_can_be_resumed(tmp_path: Path) -> None:
    experiment = write(tmp_path, rounds=3000, seed=[0, 1], evaluation={"every": 1000})
    process = interruptible("compare", experiment, "--out", "out", cwd=tmp_path)
    try:
        deadline = time.monotonic() + 150
        while not list((tmp_path / "out").glob("tune/*/checkpoint_*/rounds.parquet")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    refused = fedray("compare", "--resume", "out", "--set", "rounds=3", cwd=tmp_path)
    assert refused.returncode == 2


def _rounds_on_disk(directory: Path) -> int:
    try:
        return len(read_run(directory).rounds)
    except RecordsError:
        return 0


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, stack = [], [pid]
    while stack:
        for child in children.get(stack.pop(), []):
            found.append(child)
            stack.append(child)
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
