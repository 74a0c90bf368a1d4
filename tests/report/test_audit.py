"""An audit finds what the records show and no more: real runs, then records that were tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedray
from fedray.cli import app
from fedray.config import Experiment
from fedray.records import RunRecords, read_run, write_parquet
from fedray.report.audit import Claim, audit

SMALL = {
    "rounds": 2,
    "data": {"name": "digits", "owners": 4},
    "model": "logistic",
    "train": {"steps": 1},
}


def finished(folder: Path, **settings: Any) -> RunRecords:
    for _ in fedray.run(Experiment.model_validate({**SMALL, **settings}), folder / "run", in_process=True):
        pass
    return read_run(folder / "run")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> RunRecords:
    return finished(tmp_path_factory.mktemp("masked"))


def verdicts(run: RunRecords) -> dict[str, str]:
    return {claim.claim: claim.verdict for claim in audit(run)}


def found(run: RunRecords, word: str) -> Claim:
    (claim,) = [claim for claim in audit(run) if word in claim.claim]
    return claim


def with_sum(run: RunRecords, **changes: Any) -> RunRecords:
    first, *rest = run.rounds
    return replace(run, rounds=(replace(first, sum=replace(first.sum, **changes)), *rest))


def with_round(run: RunRecords, **changes: Any) -> RunRecords:
    return replace(run, rounds=(replace(run.rounds[0], **changes), *run.rounds[1:]))


def test_a_masked_run_keeps_its_promises(masked: RunRecords) -> None:
    assert "fails" not in verdicts(masked).values()
    assert found(masked, "fewer than").found == "the smallest was of 4"
    assert found(masked, "shares open").found == "3 of 4 at least"


def test_plain_hides_nothing_and_says_so(tmp_path: Path) -> None:
    run = finished(tmp_path, protection="plain")
    claim = found(run, "who can read")
    assert claim.verdict == "fails"
    assert "server" in claim.found


@pytest.mark.parametrize(
    ("tampered", "word"),
    [
        (lambda run: with_round(run, n_updates=2), "fewer than"),
        (lambda run: with_sum(run, threshold=2), "shares open"),
        (lambda run: with_sum(run, key_bits=64), "entropy"),
        (lambda run: with_sum(run, protection="plain"), "as asked"),
        (lambda run: with_sum(run, outcome="abandoned", reason="too few"), "abandoned"),
    ],
)
def test_a_broken_promise_is_found(masked: RunRecords, tampered: Callable[[RunRecords], RunRecords], word: str) -> None:
    assert found(masked, word).verdict == "holds"
    assert found(tampered(masked), word).verdict == "fails"


def test_dropouts_are_counted_by_stage(masked: RunRecords) -> None:
    run = with_sum(masked, stages={"asked": 4, "keys": 4, "shares": 4, "updates": 3, "revealed": 3})
    assert found(run, "dropouts").found == "1 before updates"


def test_sums_that_differ_by_one_owner_are_counted(masked: RunRecords) -> None:
    owners = (replace(masked.rounds[0].owners[0], outcome="idle"), *masked.rounds[0].owners[1:])
    assert found(masked, "differences").found.startswith("0 times")
    assert found(with_round(masked, owners=owners), "differences").found.startswith("1 times")


def test_the_command_prints_the_claims_and_fails_with_a_broken_one(masked: RunRecords, tmp_path: Path) -> None:
    write_parquet(tmp_path / "rounds.parquet", masked)
    good = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert good.exit_code == 0
    assert "3 of 4 at least" in good.output
    write_parquet(tmp_path / "rounds.parquet", with_round(masked, n_updates=1))
    assert CliRunner().invoke(app, ["audit", str(tmp_path)]).exit_code == 1


def test_enrolled_owners_sign_with_their_own_keys_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_KEYS", str(tmp_path / "keys"))
    names = [f"owner-{number:02}" for number in range(4)]
    printed = [CliRunner().invoke(app, ["enrol", name]).stdout.strip() for name in names]
    identities = dict(line.split(": ") for line in printed)
    assert sorted(identities) == names
    assert {oct(path.stat().st_mode)[-3:] for path in (tmp_path / "keys").iterdir()} == {"600"}
    assert CliRunner().invoke(app, ["enrol", names[0]]).stdout.strip() == printed[0]

    run = finished(tmp_path, protection={"name": "masked", "server": "may_lie", "identities": identities})
    assert found(run, "keys are theirs").verdict == "holds"
    assert found(run, "two thirds").found == "3 of 4 at least"

    swapped = {**identities, names[0]: identities[names[1]]}
    with pytest.raises(fedray.errors.ConfigError, match="not the one under"):
        finished(tmp_path / "swapped", protection={"name": "masked", "identities": swapped})
    del identities["owner-03"]
    with pytest.raises(fedray.errors.ConfigError, match="without owner-03"):
        finished(tmp_path / "missing", protection={"name": "masked", "identities": identities})
