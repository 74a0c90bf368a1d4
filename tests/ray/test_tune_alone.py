"""Comparisons that start Ray themselves: on one CPU, and by a driver that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import yaml
from conftest_ray import own_ray

from fedray.config import Experiment
from fedray.records import find_runs, read_run
from fedray.tune import compare


def test_concurrent_trials_neither_deadlock_nor_starve_on_one_cpu(tmp_path: Path) -> None:
    with own_ray(1):
        experiment = Experiment(name="cmp", data={"name": "digits", "owners": 3}, model="logistic")
        result = compare(experiment, {"seed": [0, 1, 2], "rounds": [2]}, tmp_path / "out")
    assert [len(run.rounds) for run in result.runs] == [2, 2, 2]


DRIVER = """
    import sys
    from fedray.tune import compare
    compare(sys.argv[1], None, sys.argv[2])
"""


def test_a_killed_driver_is_resumed_from_the_trials_own_rounds(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.yaml"
    settings = {
        "name": "long",
        "seed": [0, 1],
        "rounds": 120,
        "data": {"name": "digits", "owners": 3},
        "privacy": [{"name": "example", "noise_multiplier": 2.0}],
        "search": {"max_concurrent": 1},
        "evaluation": {"every": 40},
    }
    experiment.write_text(yaml.safe_dump(settings))
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    command = [sys.executable, str(tmp_path / "driver.py"), str(experiment), str(tmp_path / "out")]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 150
            while _rounds_of_a_trial(tmp_path / "out") < 5:
                assert driver.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    reached = _rounds_of_a_trial(tmp_path / "out")
    assert 5 <= reached < 120
    experiment.unlink()
    fedray_command = [str(Path(sys.executable).with_name("fedray")), "compare", "--resume", str(tmp_path / "out")]
    done = subprocess.run(fedray_command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = find_runs(tmp_path / "out" / "trials")
    assert [[record.round for record in run.rounds] for run in runs] == [list(range(1, 121))] * 2
    for run in runs:
        epsilons = [record.epsilon for record in run.rounds]
        assert epsilons == sorted(epsilons)
        name = (tmp_path / "out" / "accounts" / run.label / "run").read_text()
        entries = (tmp_path / "out" / "ledgers" / "owner-00.jsonl").read_text().splitlines()
        n_charged = sum(f'"{name}"' in entry and '"charge"' in entry for entry in entries)
        n_opened = sum(record.sum.outcome == "opened" for record in run.rounds)
        assert n_opened >= 119, "no round but the one that was cut off is abandoned"
        assert n_charged >= n_opened, "one ledger for all trials says which of them charged"


def _rounds_of_a_trial(directory: Path) -> int:
    found = 0
    for file in directory.glob("tune/*/checkpoint_*/rounds.parquet"):
        try:
            found = max(found, len(read_run(file).rounds))
        except Exception:
            continue
    return found
