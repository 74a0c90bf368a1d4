"""Runs on Ray whose driver, server or owners are killed, and that end as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml
from ray._private.state import actors
from toys import study

import fedray
from fedray import cli
from fedray.config import Experiment
from fedray.errors import ServerLost
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, verify
from fedray.records import read_run

breaking, replaying = study("breaking"), study("replaying")

DIGITS: dict[str, Any] = {
    "name": "digits",
    "rounds": 25,
    "data": {"name": "digits", "owners": 4, "split": "iid"},
    "model": "logistic",
    "train": {"steps": 2, "batch_size": 32},
    "strategy": {"name": "fedavg", "server_momentum": 0.9},
    "cohort": {"name": "fixed", "size": 3},
    "evaluation": {"every": 5},
    "resources": {"owner_cpus": 0.25},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    directory = tmp_path_factory.mktemp("whole") / "run"
    return [figures(one) for one in fedray.run(Experiment(**DIGITS), directory, in_process=True)]


def figures(record: fedray.RoundRecord) -> tuple[object, ...]:
    """What must not depend on where a run was cut off."""
    return record.round, record.parameters_sha256, record.metrics, record.cohort, record.n_updates


def recorded(directory: Path) -> list[Any]:
    return [figures(record) for record in read_run(directory).rounds]


def kill(what: str) -> None:
    """Kill the process of an actor, by the beginning of its name."""
    (pid,) = [one["Pid"] for one in actors().values() if one["State"] == "ALIVE" and one["Name"].startswith(what)]
    os.kill(int(pid), signal.SIGKILL)


@contextmanager
def killed_as_soon_as_it_is_there(what: str) -> Iterator[None]:
    """Kill whatever actor goes by a name, again and again."""
    ends = Event()

    def kills() -> None:
        while not ends.wait(0.1):
            for one in actors().values():
                if one["State"] == "ALIVE" and one["Name"].startswith(what):
                    breaking.kill(int(one["Pid"]))

    thread = Thread(target=kills)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_a_driver_that_is_killed_with_its_own_ray_is_resumed_on_another(
    uninterrupted: list[Any], tmp_path: Path, ray_dir: Path
) -> None:
    """All processes of the first Ray go with the driver, as when the head's node is lost."""
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(DIGITS))
    directory = tmp_path / "run"
    with tempfile.TemporaryDirectory(prefix="fr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [Path(sys.executable).with_name("fedray"), "run", tmp_path / "experiment.yaml", "--out", directory]
        environment = {**os.environ, "RAY_TMPDIR": folder}
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
        try:
            while breaking.rounds_done(directory) < 3:
                assert driver.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.02)
        finally:
            driver.kill()
            driver.wait()
    assert 3 <= breaking.rounds_done(directory) < DIGITS["rounds"]
    federation = fedray.resume(directory)
    rest = list(federation)
    assert [*map(figures, [*federation.before, *rest])] == recorded(directory) == uninterrupted
    assert rest[0].round >= 4


def test_a_run_outlives_its_server_and_says_so(uninterrupted: list[Any], tmp_path: Path, ray_dir: Path) -> None:
    """Killed in the middle of a round: of the one that it does while the caller has the record of the last."""
    federation = fedray.run(Experiment(**DIGITS), tmp_path / "run")
    found = []
    for record in federation:
        found.append(figures(record))
        if record.round == 4:
            kill("server")
    assert found == recorded(tmp_path / "run") == uninterrupted
    (said,) = [note for note in federation.notes if "the server actor was lost" in note]
    assert said.endswith(("it is started again after round 4", "it is started again after round 5"))


def test_a_server_that_is_lost_again_and_again_ends_the_run_and_its_records_are_kept(
    uninterrupted: list[Any],
    tmp_path: Path,
    ray_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, experiment = tmp_path / "run", Experiment(**DIGITS, faults={"server_restarts": 1})
    rounds = iter(fedray.run(experiment, directory))
    found = [figures(next(rounds)) for _ in range(3)]
    with killed_as_soon_as_it_is_there("server"), pytest.raises(ServerLost) as lost:
        found.extend(figures(record) for record in rounds)
    assert "--resume" in lost.value.remedy
    assert read_run(directory).status == "failed"
    assert recorded(directory) == found == uninterrupted[: len(found)]
    monkeypatch.setattr(sys, "argv", ["fedray", "run", "--resume", str(directory)])
    with killed_as_soon_as_it_is_there("server"), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ServerLost.exit_code == 8
    assert "the server actor was lost" in capsys.readouterr().err
    list(fedray.resume(directory, in_process=True))
    assert recorded(directory) == uninterrupted


def test_an_owner_that_is_killed_comes_back_with_its_ledger_and_its_journal(tmp_path: Path, ray_dir: Path) -> None:
    """Every update is of an owner that was charged for it; what a round cost in which it was killed stays charged."""
    settings = {**DIGITS, "rounds": 12, "cohort": "all", "faults": {"wait_s": 60}, "evaluation": {"every": 100}}
    private = Experiment(**settings, privacy={"name": "example", "noise_multiplier": 2.0})
    outcomes = []
    for record in fedray.run(private, tmp_path / "run"):
        outcomes.append(record.owners[1].outcome)
        assert record.sum.outcome == "opened"
        if record.round in (2, 5):
            kill("owner-01")
    assert set(outcomes) <= {"update", "absent"}
    assert outcomes[-1] == "update"
    assert outcomes.count("absent") <= 4, "it is waited for before a round begins"
    ledger = tmp_path / "run" / "owners" / "owner-01" / "ledger.jsonl"
    verify(ledger)
    charged = replaying.charges(ledger)
    assert {round for round, outcome in enumerate(outcomes, 1) if outcome == "update"} <= charged.keys()
    on_disk = Ledger(LedgerFile(ledger), "owner-01").spent("example", 1e-5)
    assert record.owners[1].epsilon == pytest.approx(on_disk.epsilon, rel=1e-9)
