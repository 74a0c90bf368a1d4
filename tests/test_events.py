"""The event log: every line is JSON by itself, says what the record says, and outlives a driver that was killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from fedray.config import Experiment
from fedray.events import Event, EventLog
from fedray.running import run
from fedray.values import OwnerRecord, RoundRecord


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RoundRecord:
    """A round of a run, with one owner gone, one over its budget and one that was only evaluated."""
    experiment = Experiment(rounds=1, data={"name": "digits", "owners": 3}, model="logistic")
    (first,) = run(experiment, tmp_path_factory.mktemp("run"), in_process=True)
    gone = OwnerRecord("owner-01", "absent", "its actor is gone", 0, 0.0, None, None, 0)
    spent = OwnerRecord("owner-02", "exhausted", "its privacy budget is spent", 0, 0.0, 1.5, 1.5, 0)
    idle = OwnerRecord("owner-03", "idle", "", 0, 0.0, 0.5, 0.5, 4)
    return replace(first, n_updates=1, epsilon=1.5, owners=(first.owners[0], gone, spent, idle))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[EventLog]:
    log = EventLog(path, "trial 3f2a")
    yield log
    log.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def without_time(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in lines(path)]


def test_a_line_says_when_in_which_run_what_happened_to_whom_and_why(log: EventLog, path: Path) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    log.write("server lost", round=3, reason="its node is gone", attempt=2)
    log.write("run started")
    (lost, started) = lines(path)
    assert datetime.fromisoformat(lost.pop("time")).tzinfo == UTC
    assert before <= datetime.fromisoformat(started.pop("time")) <= datetime.now(UTC)
    about = {"round": 3, "reason": "its node is gone", "figures": {"attempt": 2}}
    assert lost == {"run": "trial 3f2a", "event": "server lost", **about}
    assert started == {"run": "trial 3f2a", "event": "run started"}


def test_a_round_that_ended_is_what_its_record_says_and_names_who_gave_no_update(
    log: EventLog, path: Path, record: RoundRecord
) -> None:
    log.round_ended(record)
    gone, spent, ended = without_time(path)
    common = {"run": "trial 3f2a", "event": "owner absent", "round": 1}
    assert gone == {**common, "owner": "owner-01", "reason": "its actor is gone", "figures": {"outcome": "absent"}}
    assert spent["owner"] == "owner-02"
    assert spent["figures"] == {"outcome": "exhausted"}
    assert (ended["event"], ended["round"]) == ("round ended", 1)
    assert ended["figures"] == {
        "asked": 3,
        "updates": 1,
        "sum": "opened",
        "metrics": dict(record.metrics),
        "epsilon": 1.5,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": record.seconds["total"],
    }


def test_why_there_was_no_sum_is_said(log: EventLog, path: Path, record: RoundRecord) -> None:
    log.round_ended(replace(record, owners=(), sum=replace(record.sum, outcome="abandoned", reason="2 of 3 are left")))
    (ended,) = lines(path)
    assert (ended["reason"], ended["figures"]["sum"]) == ("2 of 3 are left", "abandoned")


def test_figures_that_are_not_finite_are_null_since_json_has_none_other(
    log: EventLog, path: Path, record: RoundRecord
) -> None:
    log.round_ended(replace(record, owners=(), metrics={"loss": float("nan"), "accuracy": 0.5}, epsilon=float("inf")))
    figures = lines(path)[0]["figures"]
    assert figures["metrics"] == {"loss": None, "accuracy": 0.5}
    assert figures["epsilon"] is None


def test_texts_with_line_breaks_stay_on_one_line(log: EventLog, path: Path) -> None:
    reason = 'two\nlines, "quotes"\u2028 and \udcff'
    log.write("owner absent", owner="st. mary\n", reason=reason)
    (line,) = path.read_bytes().splitlines()
    assert (json.loads(line)["owner"], json.loads(line)["reason"]) == ("st. mary\n", reason)


def test_a_resumed_run_goes_on_in_the_same_file(path: Path) -> None:
    for event in ("run started", "resumed"):
        with closing(EventLog(path, "a")) as log:
            log.write(event)
            log.close()
    assert [line["event"] for line in lines(path)] == ["run started", "resumed"]


def test_a_line_that_was_torn_spoils_no_other(path: Path) -> None:
    path.write_text('{"event": "run started"}\n{"event": "rou')
    with closing(EventLog(path, "a")) as log:
        log.write("resumed")
    first, torn, resumed = path.read_text().splitlines()
    assert json.loads(first)["event"] == "run started"
    assert torn == '{"event": "rou'
    assert json.loads(resumed)["event"] == "resumed"


KILLED = """
import os, signal, sys
from pathlib import Path
from fedray.events import EventLog
log = EventLog(Path(sys.argv[1]), "a")
log.write("run started")
log.write("round ended", round=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_driver_that_is_killed_has_written_all_that_it_said(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, path], env=os.environ, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [line["event"] for line in lines(path)] == ["run started", "round ended"]


def test_the_logger_of_the_library_gets_the_same(
    log: EventLog, record: RoundRecord, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fedray"):
        log.round_ended(record)
    gone, _, ended = caplog.records
    assert (gone.name, gone.levelname, gone.getMessage()) == ("fedray", "WARNING", "owner absent")
    told = vars(gone)
    assert [told[key] for key in ("run", "round", "owner")] == ["trial 3f2a", 1, "owner-01"]
    assert (ended.levelname, vars(ended)["figures"]["updates"]) == ("INFO", 1)


ALL_EVENTS = f"""
import sys
from pathlib import Path
from fedray.events import EventLog
log = EventLog(Path(sys.argv[1]), "a")
for event in {get_args(Event)!r}:
    log.write(event)
assert not {{"ray", "torch"}} & set(sys.modules)
"""


def test_nothing_is_printed_by_a_library_that_nobody_asked_for_its_log(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_EVENTS, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [line["event"] for line in lines(path)] == list(get_args(Event))
