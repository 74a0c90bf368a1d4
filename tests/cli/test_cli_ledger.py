"""``fedray ledger`` as an owner meets it: its output and its exit code; once as a process, else in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedray.cli import main, screen
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian, SampledGaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_entries import Budget, Release
from fedray.privacy.ledger_file import LedgerFile, verify

STEP = SampledGaussian(0.25, 2.0)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mine"
    monkeypatch.setenv("FEDRAY_LEDGERS", str(folder))
    return folder


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Fedray = Callable[..., Done]


@pytest.fixture
def fedray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedray:
    monkeypatch.setattr(screen.console, "width", 120)
    monkeypatch.setattr(screen.errors, "width", 120)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedray", "ledger", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Done(int(ended.value.code or 0), shown.out, shown.err)

    return call


def charge(path: Path, owner: str, run: str, count: int) -> None:
    ledger = Ledger(LedgerFile(path), owner)
    ledger.charge(Release(run, f"trial of {run}", 1, "train", "example", STEP, count))


def rows(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines() if line.strip()]


def figure(count: int, delta: float) -> str:
    return f"{spent([Charge(STEP, count)], delta).epsilon:.4f}"


def test_an_owner_opens_a_ledger_and_reads_what_each_run_and_all_have_spent(fedray: Fedray, mine: Path) -> None:
    done = fedray("open", "st. mary", "--epsilon", 8, "--delta", 1e-6)
    path = mine / "st%2E%20mary.jsonl"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    assert Ledger(LedgerFile(path), "st. mary").budgets == {"example": Budget("example", 8.0, 1e-6)}
    charge(path, "st. mary", "a", 10)
    charge(path, "st. mary", "b", 20)
    shown = fedray("show", "st. mary")
    assert shown.returncode == 0, shown.stderr
    found = rows(shown.stdout)
    assert ["a", "trial", "of", "a", "example", "10", figure(10, 1e-6)] in found
    assert ["b", "trial", "of", "b", "example", "20", figure(20, 1e-6)] in found
    assert ["st.", "mary", "example", figure(30, 1e-6), "8", "1e-06"] in found
    assert ["head", verify(path).head] in found


def test_without_a_name_all_ledgers_are_shown_and_verified(fedray: Fedray, mine: Path, tmp_path: Path) -> None:
    assert "no owner has opened a ledger" in fedray("show").stdout
    charge(mine / "ann.jsonl", "ann", "a", 10)
    Ledger(LedgerFile(mine / "bob.jsonl"), "bob").charge(Release("a", "x", 1, "train", "owner", Gaussian(4.0), 1))
    found = rows(fedray("show", "--delta", 1e-4).stdout)
    assert ["ann", "example", figure(10, 1e-4), "-", "0.0001"] in found
    assert ["bob", "owner", f"{spent([Charge(Gaussian(4.0))], 1e-4).epsilon:.4f}", "-", "0.0001"] in found
    done = fedray("verify")
    assert done.returncode == 0
    assert {verify(path).head for path in mine.iterdir()} <= set(done.stdout.split())


def test_a_file_of_many_owners_is_shown_by_owner(fedray: Fedray, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for count, owner in enumerate(("ann", "bob"), 1):
        charge(path, owner, "a", count)
    found = rows(fedray("show", "--file", path).stdout)
    assert [row[:3] for row in found if row[1:2] == ["example"]] == [
        ["ann", "example", figure(1, 1e-5)],
        ["bob", "example", figure(2, 1e-5)],
    ]
    alone = fedray("show", "bob", "--file", path)
    assert "ann" not in alone.stdout
    assert figure(2, 1e-5) in alone.stdout
    assert fedray("show", "eve", "--file", path).returncode == 7


def test_what_protects_examples_only_is_said_to_bound_nothing_for_the_owner(fedray: Fedray, mine: Path) -> None:
    assert fedray("open", "ann", "--epsilon", 3, "--delta", 1e-5, "--unit", "owner").returncode == 0
    path = mine / "ann.jsonl"
    with path.open("rb") as file:
        assert json.loads(file.readline())["entry"]["unit"] == "owner"
    charge(tmp := path.with_name("run.jsonl"), "ann", "a", 1)
    Ledger(LedgerFile(tmp), "ann").set_budget("owner", 3.0, 1e-5)
    assert ["ann", "owner", "unbounded", "3", "1e-05"] in rows(fedray("show", "ann", "--file", tmp).stdout)


def test_verify_prints_the_head_and_knows_one_noted_earlier(fedray: Fedray, mine: Path) -> None:
    path = mine / "ann.jsonl"
    charge(path, "ann", "a", 1)
    noted = verify(path).head
    charge(path, "ann", "a", 1)
    done = fedray("verify", "ann", "--head", noted.upper())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == verify(path).head
    path.write_bytes(b"")
    gone = fedray("verify", "ann", "--head", noted)
    assert gone.returncode == 3
    assert gone.stderr.startswith("error: no entry of")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "ann"), 7, "no ledger of 'ann'"),
        (("verify", "ann"), 7, "no ledger at"),
        (("verify", "bad"), 3, "corrupt at line 1"),
        (("show", "bad"), 3, "corrupt at line 1"),
        (("open", "bad", "--epsilon", 1, "--delta", 1e-5), 3, "corrupt at line 1"),
        (("open", "ann", "--epsilon", -1, "--delta", 1e-5), 2, "an epsilon above 0"),
    ],
)
def test_errors_are_one_clear_message(
    fedray: Fedray, arguments: tuple[object, ...], code: int, said: str, mine: Path
) -> None:
    mine.mkdir()
    (mine / "bad.jsonl").write_text("nonsense\n")
    done = fedray(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_command_is_there(mine: Path) -> None:
    charge(mine / "ann.jsonl", "ann", "a", 1)
    command = [Path(sys.executable).with_name("fedray"), "ledger", "verify", "ann"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == verify(mine / "ann.jsonl").head


def test_wrong_usage_exits_with_two(fedray: Fedray, mine: Path) -> None:
    for arguments in (("open", "ann"), ("verify", "--head", "ab"), ("show", "--delta", 2), ("nothing",)):
        assert fedray(*arguments).returncode == 2
