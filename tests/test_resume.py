"""Runs that are killed, damaged or left, and go on: to the same bits, or with the budget that was really spent."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import yaml
from dp_accounting.rdp import RdpAccountant
from killing import Before, figures_in, is_complete, killed_again_and_again, run_until

import fedray
from fedray import cli
from fedray.config import validated
from fedray.errors import ConfigError, FedrayError, RecordsError, RunDirectoryError, RunError
from fedray.places import InProcessServer
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.records import read_run
from fedray.running import resume
from fedray.values import RoundRecord

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits", "owners": 4, "split": "iid"},
    "model": "logistic",
    "rounds": 5,
    "train": {"steps": 2, "batch_size": 32},
    "protection": "plain",
}
VARIANTS: Mapping[str, dict[str, Any]] = {
    "fedavg with momentum": {"strategy": {"name": "fedavg", "server_momentum": 0.9}},
    "fedprox with stragglers": {
        "strategy": {"name": "fedprox", "mu": 0.5},
        "train": {"epochs": 2, "batch_size": 128},
        "stragglers": {"fraction": 0.5},
    },
    "masked cohorts": {"protection": "masked", "cohort": {"name": "fixed", "size": 3}},
    "bfv": {"protection": {"name": "bfv", "key_rounds": 9}, "rounds": 3},
    "pooled": {"simulation": {"name": "pooled", "at_once": 1}},
}
EXAMPLE = {"privacy": {"name": "example", "noise_multiplier": 2.0}}
OWNER_LEVEL = {
    "privacy": {"name": "owner", "noise_multiplier": 1.0, "delta": 1e-3},
    "strategy": {"name": "fedavg", "weighting": "uniform"},
    "data": {**SMALL["data"], "owners": 6, "holdout": 0.0, "central_test": 0.2},
}
TREE = {
    **OWNER_LEVEL,
    "privacy": {**OWNER_LEVEL["privacy"], "noise": "tree"},
    "cohort": {"name": "cyclic", "size": 2},
}


def begun(folder: Path, n_rounds: int, **changes: Any) -> Path:
    """A run that its caller left after some rounds."""
    directory = folder / "run"
    rounds = iter(fedray.run(validated({**SMALL, **changes}), directory, in_process=True))
    for _ in range(n_rounds):
        next(rounds)
    rounds.close()
    return directory


def finished(directory: Path) -> Any:
    """Go on to the end; what is on record then, and the model."""
    list(resume(directory, in_process=True))
    return figures_in(directory, without_key)


def without_key(record: RoundRecord) -> RoundRecord:
    """Another run has another key, under which ciphertexts are compressed to another length."""
    if not record.sum.key_id:
        return record
    return replace(record, bytes_up=0, bytes_down=0, sum=replace(record.sum, key_id="", bytes_up=0, bytes_down=0))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``SMALL`` leaves when nothing happens to it."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    list(fedray.run(validated(SMALL), directory, in_process=True))
    return figures_in(directory, without_key)


# Killed


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(variant: str, tmp_path: Path) -> None:
    settings = {**SMALL, **VARIANTS[variant]}
    whole = run_until(settings, tmp_path / "whole")
    assert not whole.is_killed
    killed_again_and_again(settings, tmp_path / "run", whole.n_steps, variant)
    killed, expected = (figures_in(tmp_path / name, without_key) for name in ("run", "whole"))
    assert killed == expected
    assert {record.sum.outcome for record in expected[1]} == {"opened"}, "bits that never moved would be alike too"
    assert len({record.parameters_sha256 for record in expected[1]}) == settings["rounds"]


def test_killed_before_whatever_is_done_to_a_file_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Every place of a run of two rounds, one after the other."""
    settings = {**SMALL, "rounds": 2, "data": {**SMALL["data"], "owners": 2}}
    n_steps = run_until(settings, tmp_path / "whole").n_steps
    assert n_steps > 15
    expected = figures_in(tmp_path / "whole")
    for step in range(1, n_steps + 1):
        directory = tmp_path / str(step)
        assert run_until(settings, directory, Before(times=step)).is_killed
        assert is_complete(directory) or not run_until(settings, directory).is_killed
        assert figures_in(directory) == expected, f"step {step} of {n_steps}"


@pytest.mark.parametrize(
    ("place", "n_before"),
    [
        (Before("round-000001.safetensors", event="os.rename"), 0),
        (Before(event="record", times=2), 1),
        (Before(event="record", times=5), 3),
        (Before(event="record", times=10), 5),
        (Before("rounds.parquet", event="os.rename"), 5),
    ],
    ids=["no checkpoint", "a record", "a checkpoint without its record", "no model", "no parquet"],
)
def test_it_goes_on_after_the_last_checkpoint(place: Before, n_before: int, uninterrupted: Any, tmp_path: Path) -> None:
    """Whose record comes with it, whether it was written or not."""
    directory = tmp_path / "run"
    assert run_until(SMALL, directory, place).is_killed
    federation = resume(directory, in_process=True)
    rest = list(federation)
    assert [record.round for record in federation.before] == list(range(1, n_before + 1))
    assert [record.round for record in rest] == list(range(n_before + 1, SMALL["rounds"] + 1))
    assert (f"goes on after round {n_before}" in federation.notes) == (0 < n_before < SMALL["rounds"])
    assert figures_in(directory, without_key) == uninterrupted
    assert read_run(directory).status == "complete"


def test_killed_with_all_written_it_is_complete(uninterrupted: Any, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert run_until(SMALL, directory, Before("rounds.arrows", event="os.remove")).is_killed
    assert figures_in(directory, without_key) == uninterrupted
    with pytest.raises(RunDirectoryError, match="is complete"):
        resume(directory, in_process=True)


# Under privacy


def charges(directory: Path) -> list[tuple[str, int, float, float, int]]:
    """Owner, round, sampling rate, noise and count of every charge, as they stand in the file of ledgers."""
    lines = [json.loads(line) for line in (directory / "owners" / "ledger.jsonl").read_text().splitlines()]
    assert {line["entry"]["kind"] for line in lines} == {"charge"}, "nothing was settled for less"
    return [
        (
            line["owner"],
            line["entry"]["round"],
            line["entry"]["event"]["sample_rate"],
            line["entry"]["event"]["noise_multiplier"],
            line["entry"]["count"],
        )
        for line in lines
    ]


def epsilon(found: list[tuple[str, int, float, float, int]]) -> float:
    """By Renyi DP, from dp-accounting's own events."""
    accountant = RdpAccountant()
    for _, _, rate, noise, count in found:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), count)
    return float(accountant.get_epsilon(1e-5))


def until(found: list[tuple[str, int, float, float, int]], round: int) -> list[tuple[str, int, float, float, int]]:
    """What was charged before the round after this one began."""
    later = next((place for place, charge in enumerate(found) if charge[1] > round), len(found))
    return found[:later]


def test_a_round_that_is_done_again_is_charged_again_and_no_figure_is_below_what_was_charged(tmp_path: Path) -> None:
    """Killed in the third round once all had trained, and in the fourth before one had."""
    settings, directory = {**SMALL, **EXAMPLE, "protection": "masked"}, tmp_path / "run"
    assert run_until(settings, directory, Before("round-000003.partial")).is_killed
    assert run_until(settings, directory, Before("round-000004.partial")).is_killed
    assert not run_until(settings, directory).is_killed
    found = charges(directory)
    names = {name for name, *_ in found}
    assert Counter((name, round) for name, round, *_ in found) == {
        (name, round): 2 if round in (3, 4) else 1 for name in names for round in range(1, 6)
    }
    records = read_run(directory).rounds
    assert [record.n_updates for record in records] == [4] * 5
    for record in records:
        for owner in record.owners:
            fresh = epsilon(until([charge for charge in found if charge[0] == owner.name], record.round))
            assert owner.epsilon_rdp == pytest.approx(fresh, rel=1e-9)
            assert owner.epsilon is not None
            assert 0.5 * fresh < owner.epsilon <= fresh


def test_killed_anywhere_the_ledger_holds_all_that_was_released(tmp_path: Path) -> None:
    settings, directory = {**SMALL, **EXAMPLE, "rounds": 3}, tmp_path / "run"
    n_steps = run_until(settings, tmp_path / "whole").n_steps
    killed_again_and_again(settings, directory, n_steps, "ledger")
    found, records = charges(directory), read_run(directory).rounds
    charged = Counter((name, round) for name, round, *_ in found)
    released = {(owner.name, record.round) for record in records for owner in record.owners}
    assert released <= charged.keys()
    for owner in records[-1].owners:
        fresh = epsilon([charge for charge in found if charge[0] == owner.name])
        assert owner.epsilon_rdp is not None
        assert owner.epsilon_rdp >= fresh * (1 - 1e-9)


@pytest.mark.parametrize("settings", [OWNER_LEVEL, TREE], ids=["gaussian", "tree"])
def test_owner_level_privacy_survives_being_killed(settings: dict[str, Any], tmp_path: Path) -> None:
    """Fresh noise is charged again. Where noise hangs together, owners of the round that was cut off sit it out."""
    whole, directory = {**SMALL, **settings}, tmp_path / "run"
    assert run_until(whole, directory, Before("round-000003.partial")).is_killed
    assert not run_until(whole, directory).is_killed
    records = read_run(directory).rounds
    assert [record.round for record in records] == [1, 2, 3, 4, 5]
    entries = [json.loads(line)["entry"] for line in (directory / "owners" / "ledger.jsonl").read_text().splitlines()]
    kinds = Counter((entry["kind"], entry.get("round")) for entry in entries)
    if settings is TREE:
        assert [record.n_updates for record in records] == [2, 2, 0, 2, 2]
        assert {owner.outcome for owner in records[2].owners if owner.name in records[2].cohort} == {"refused"}
        assert kinds["charge", None] == 6
        assert kinds["participation", 3] == 2
    else:
        assert [record.n_updates for record in records] == [6] * 5
        assert [kinds["charge", round] for round in range(1, 6)] == [6, 6, 12, 6, 6]


@pytest.mark.parametrize("settings", [OWNER_LEVEL, TREE], ids=["gaussian", "tree"])
def test_without_its_newest_checkpoint_an_owner_level_run_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    directory = begun(tmp_path, 3, **settings)
    newest = directory / "checkpoints" / "round-000003.safetensors"
    kept = newest.read_bytes()
    before = (directory / "rounds.parquet").read_bytes()
    newest.unlink()
    with pytest.raises(RecordsError, match="records of 3 rounds, but a checkpoint of round 2"):
        list(resume(directory, in_process=True))
    newest.write_bytes(kept[:-1])
    with pytest.raises(RecordsError, match=r"round-000003\.safetensors cannot be read"):
        list(resume(directory, in_process=True))
    assert (directory / "rounds.parquet").read_bytes() == before
    newest.write_bytes(kept)
    assert len(list(resume(directory, in_process=True))) == 2


# What may be found in a directory


def test_ended_by_control_c_or_a_failure_it_goes_on(
    uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the one, then the other; records are Parquet and say so."""
    directory = tmp_path / "run"
    advance, failures = InProcessServer.advance, [KeyboardInterrupt(), RunError("no sum", "one", "wait")]

    def failing(server: InProcessServer) -> Any:
        after = advance(server)
        if failures and after is not None and after[0].round % 2 == 0:
            raise failures.pop(0)
        return after

    monkeypatch.setattr(InProcessServer, "advance", failing)
    with pytest.raises(KeyboardInterrupt):
        list(fedray.run(validated(SMALL), directory, in_process=True))
    found = read_run(directory)
    assert (found.status, len(found.rounds), (directory / "rounds.parquet").is_file()) == ("interrupted", 1, True)
    with pytest.raises(RunError):
        list(resume(directory, in_process=True))
    found = read_run(directory)
    assert (found.status, len(found.rounds)) == ("failed", 1)
    assert finished(directory) == uninterrupted


def test_a_caller_that_leaves_the_loop_goes_on_later(uninterrupted: Any, tmp_path: Path) -> None:
    directory = begun(tmp_path, 3)
    assert (read_run(directory).status, (directory / "rounds.arrows").exists()) == ("interrupted", False)
    assert finished(directory) == uninterrupted


@pytest.mark.parametrize("budget", [1e-6, None], ids=["exhausted", "complete"])
def test_what_has_ended_does_not_go_on(budget: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    names = [f"owner-{number:02}" for number in range(4)]
    for name in names if budget else ():
        Ledger(LedgerFile(ledger_path(name)), name).set_budget("example", budget, 1e-5)
    directory = tmp_path / "run"
    changes = EXAMPLE if budget else {}
    list(fedray.run(validated({**SMALL, **changes}), directory, in_process=True))
    assert read_run(directory).status == ("exhausted" if budget else "complete")
    with pytest.raises(RunDirectoryError, match="is complete"):
        resume(directory, in_process=True)


@pytest.mark.parametrize("cut", [1, 60, 300])
def test_a_record_that_was_cut_off_comes_with_its_checkpoint(cut: int, uninterrupted: Any, tmp_path: Path) -> None:
    """As a loss of power may leave it: the last batch is not whole, or not there."""
    directory = tmp_path / "run"
    assert run_until(SMALL, directory, Before(event="record", times=6)).is_killed
    stream = directory / "rounds.arrows"
    stream.write_bytes(stream.read_bytes()[:-cut])
    assert len(read_run(directory).rounds) == 2
    assert finished(directory) == uninterrupted


def test_records_of_earlier_rounds_that_are_gone_are_missed(tmp_path: Path) -> None:
    """Nothing that was on record is dropped without a word."""
    directory = begun(tmp_path, 3)
    (directory / "rounds.parquet").unlink()
    with pytest.raises(RecordsError, match="records of 0 rounds, but a checkpoint of round 3"):
        list(resume(directory, in_process=True))


@pytest.mark.parametrize("protection", ["plain", "masked"])
def test_from_an_older_checkpoint_rounds_are_done_again_with_the_same_bits(protection: str, tmp_path: Path) -> None:
    """The newest is damaged. Owners seal and open the round once more, on the same terms."""
    settings = {**SMALL, "protection": protection}
    list(fedray.run(validated(settings), tmp_path / "whole", in_process=True))
    directory = begun(tmp_path, 3, protection=protection)
    newest = directory / "checkpoints" / "round-000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    federation = resume(directory, in_process=True)
    assert [record.round for record in federation] == [3, 4, 5]
    assert figures_in(directory) == figures_in(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, RunDirectoryError),
        ("", ConfigError),
        ("nonsense: {", ConfigError),
        ("rounds: minus one", ConfigError),
        ("model: {name: mlp, hidden: [4]}", ConfigError),
        ("data: {name: digits, owners: 3}", ConfigError),
    ],
    ids=["missing", "empty", "no YAML", "no experiment", "another model", "other owners"],
)
def test_an_experiment_that_is_not_the_runs_is_one_clear_error(
    text: str | None, error: type[FedrayError], tmp_path: Path
) -> None:
    directory = begun(tmp_path, 2)
    path, before = directory / "experiment.yaml", (directory / "rounds.parquet").read_bytes()
    path.unlink()
    if text is not None:
        changes = yaml.safe_load(text) if text.startswith(("model", "data")) else None
        path.write_text(yaml.safe_dump({**SMALL, **changes}) if changes else text)
    with pytest.raises(error):
        list(resume(directory, in_process=True))
    assert (directory / "rounds.parquet").read_bytes() == before


def test_where_and_how_patiently_it_runs_may_change(uninterrupted: Any, tmp_path: Path) -> None:
    directory = begun(tmp_path, 2)
    changed = {**SMALL, "faults": {"wait_s": 1}, "resources": {"owner_cpus": 0.1}}
    (directory / "experiment.yaml").write_text(yaml.safe_dump(changed))
    assert finished(directory) == uninterrupted


def test_two_processes_do_not_go_on_with_one_run(tmp_path: Path) -> None:
    directory = begun(tmp_path, 1)
    first = iter(resume(directory, in_process=True))
    next(first)
    with pytest.raises(RunDirectoryError, match="another process runs in"):
        next(iter(resume(directory, in_process=True)))
    first.close()
    assert [record.round for record in resume(directory, in_process=True)] == [3, 4, 5]


# On the command line


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of ``fedray`` with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["fedray", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_line_goes_on_with_a_run_and_shows_where(
    uninterrupted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = begun(tmp_path, 2)
    assert command(monkeypatch, "run", "--resume", directory, "--in-process") == 0
    shown = capsys.readouterr().out
    assert "goes on after round 2" in shown
    assert (directory / "report.html").is_file()
    assert figures_in(directory, without_key) == uninterrupted
    assert command(monkeypatch, "run", "--resume", directory, "--in-process") == RunDirectoryError.exit_code
    assert "is complete" in " ".join(capsys.readouterr().err.split())


def test_the_command_line_says_in_one_message_why_it_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owner_level = begun(tmp_path, 2, **OWNER_LEVEL)
    (owner_level / "checkpoints" / "round-000002.safetensors").unlink()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "experiment.yaml").write_text("rounds: {")
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(SMALL))
    for arguments, code, said in [
        (("--resume", tmp_path / "nowhere"), RunDirectoryError.exit_code, "no experiment.yaml"),
        (("--resume", tmp_path / "torn"), ConfigError.exit_code, "YAML"),
        (("--resume", owner_level), RecordsError.exit_code, "checkpoint of round 1"),
        (("--resume", owner_level, "--set", "rounds=9"), ConfigError.exit_code, "--set"),
        (("--resume", owner_level, "--out", tmp_path / "out"), ConfigError.exit_code, "--out"),
        ((experiment, "--resume", owner_level), ConfigError.exit_code, "--resume"),
    ]:
        assert command(monkeypatch, "run", "--in-process", *arguments) == code, arguments
        shown = capsys.readouterr()
        assert said in shown.out + shown.err
        assert "Traceback" not in shown.out + shown.err
