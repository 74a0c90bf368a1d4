"""Checkpoints: whole or not there, kept by rule, and refused where they are damaged or another run's."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from fedray import files
from fedray.checkpoints import CheckpointStore
from fedray.config import validated
from fedray.errors import ConfigError, RecordsError, RunDirectoryError, RunError
from fedray.federation import ServerState
from fedray.running import run
from fedray.values import RoundRecord

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "owners": 3, "split": "iid"},
    "model": "logistic",
    "rounds": 1,
    "train": {"steps": 1},
}
OWNER_LEVEL = {
    "privacy": {"name": "owner", "noise_multiplier": 1.0},
    "strategy": {"name": "fedavg", "weighting": "uniform"},
}
OWNER_LEVEL |= {"data": {**SMALL["data"], "central_test": 0.2}}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RoundRecord:
    """A real one."""
    (found,) = run(validated(SMALL), tmp_path_factory.mktemp("record") / "run", in_process=True)
    return found


def store(folder: Path, **changes: Any) -> CheckpointStore:
    return CheckpointStore(validated({**SMALL, **changes}), folder)


def state(round: int) -> ServerState:
    return ServerState(round, np.arange(4, dtype=np.float32) + round, {"velocity": np.ones(2) / round}, {})


def write(target: CheckpointStore, record: RoundRecord, rounds: int, accuracy: Any = lambda round: 0.5) -> None:
    for round in range(1, rounds + 1):
        target.write(state(round), replace(record, round=round, metrics={"accuracy": accuracy(round)}))


def rounds_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in folder.iterdir())


def test_the_newest_comes_back_as_it_was(tmp_path: Path, record: RoundRecord) -> None:
    write(store(tmp_path), record, 3)
    found = store(tmp_path).newest()
    assert found is not None
    assert found.record == replace(record, round=3, metrics={"accuracy": 0.5})
    assert found.state.vector.tobytes() == state(3).vector.tobytes()
    assert found.state.strategy["velocity"].tobytes() == state(3).strategy["velocity"].tobytes()
    assert store(tmp_path / "elsewhere").newest() is None


@settings(deadline=None, max_examples=40)
@given(
    n_rounds=st.integers(1, 12),
    last=st.integers(1, 4),
    every=st.none() | st.integers(1, 5),
    best=st.booleans(),
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=12, max_size=12),
    is_reopened=st.booleans(),
)
def test_what_is_kept_is_what_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory,
    record: RoundRecord,
    n_rounds: int,
    last: int,
    every: int | None,
    best: bool,
    scores: list[float],
    is_reopened: bool,
) -> None:
    """Held against the definition, worked out over all rounds at once."""
    folder = tmp_path_factory.mktemp("store")
    rule = {"checkpoints": {"last": last, "every": every, "best": best}}
    target = store(folder, **rule)
    for round in range(1, n_rounds + 1):
        target = store(folder, **rule) if is_reopened else target
        target.write(state(round), replace(record, round=round, metrics={"accuracy": scores[round - 1]}))
    expected = set(range(n_rounds - last + 1, n_rounds + 1)) & set(range(1, n_rounds + 1))
    expected |= {round for round in range(1, n_rounds + 1) if every and round % every == 0}
    known = [(score, -round) for round, score in enumerate(scores[:n_rounds], start=1) if score == score]
    if best and known:
        expected.add(-max(known)[1])
    assert rounds_in(folder / "checkpoints") == sorted(expected)


def test_the_best_is_the_least_where_less_is_better(tmp_path: Path, record: RoundRecord) -> None:
    rule = {"checkpoints": {"last": 1, "best": True}, "search": {"metric": "accuracy", "mode": "min"}}
    write(store(tmp_path, **rule), record, 5, lambda round: abs(round - 2))
    assert rounds_in(tmp_path / "checkpoints") == [2, 5]


def test_a_damaged_newest_one_is_passed_over(tmp_path: Path, record: RoundRecord) -> None:
    write(store(tmp_path), record, 3)
    newest = tmp_path / "checkpoints" / "round-000003.safetensors"
    whole = newest.read_bytes()
    for size in range(0, len(whole), 7):
        newest.write_bytes(whole[:size])
        found = store(tmp_path).newest()
        assert found is not None
        assert found.state.round == 2


def test_a_changed_byte_anywhere_is_found(tmp_path: Path, record: RoundRecord) -> None:
    write(store(tmp_path, checkpoints={"last": 1}), record, 1)
    (path,) = (tmp_path / "checkpoints").iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        try:
            found = store(tmp_path).newest()
        except RecordsError:
            continue
        assert found is not None, place
        assert found.state.vector.tobytes() == state(1).vector.tobytes(), f"byte {place}"
        assert found.record == replace(record, round=1, metrics={"accuracy": 0.5}), f"byte {place}"


def test_owner_level_privacy_goes_on_from_the_newest_only(tmp_path: Path, record: RoundRecord) -> None:
    """What the noise of an older state covers was released already."""
    write(store(tmp_path, **OWNER_LEVEL), record, 3)
    (tmp_path / "checkpoints" / "round-000003.safetensors").write_bytes(b"cut")
    with pytest.raises(RecordsError, match="round-000003"):
        store(tmp_path, **OWNER_LEVEL).newest()
    with pytest.raises(RecordsError, match="records of 3 rounds, but a checkpoint of round 2"):
        store(tmp_path, **OWNER_LEVEL).require_repeatable(3, 2)
    store(tmp_path).require_repeatable(3, 2)


def test_damaged_all_of_them_is_an_error_and_no_new_beginning(tmp_path: Path, record: RoundRecord) -> None:
    write(store(tmp_path), record, 3)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(RecordsError, match="cannot be read"):
        store(tmp_path).newest()


def test_a_writer_that_is_killed_leaves_the_one_before(
    tmp_path: Path, record: RoundRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = store(tmp_path)
    write(target, record, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        target.write(state(2), record)
    monkeypatch.undo()
    found = store(tmp_path).newest()
    assert found is not None
    assert found.state.round == 1


def test_only_its_user_reads_a_state(tmp_path: Path, record: RoundRecord) -> None:
    """It may hold past noise."""
    write(store(tmp_path), record, 1)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_under_privacy_a_state_outlives_a_loss_of_power(
    tmp_path: Path, record: RoundRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File and folder are flushed before ``write`` returns; without privacy a lost round is only done again."""
    flushed: list[int] = []
    monkeypatch.setattr(files.os, "fsync", flushed.append)
    write(store(tmp_path / "none"), record, 1)
    assert not flushed
    write(store(tmp_path / "owner", **OWNER_LEVEL), record, 1)
    assert len(flushed) == 2


def test_a_full_disk_is_one_clear_error(tmp_path: Path, record: RoundRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedray.folders.put", full)
    with pytest.raises(RunError, match=r"round-000001.* cannot be written.*No space left"):
        write(store(tmp_path), record, 1)


@pytest.mark.parametrize("path", ["relative/folder", "ftp://host/folder", "s3:/nonsense", "://"])
def test_a_place_that_is_none_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoints\.path"):
        store(tmp_path, checkpoints={"path": path})


def test_another_file_system_holds_them_too(tmp_path: Path, record: RoundRecord) -> None:
    """By URI; and one that is not this machine's, through pyarrow's own interface."""
    uri = (tmp_path / "far").as_uri()
    write(store(tmp_path / "run", checkpoints={"path": uri}), record, 3)
    assert rounds_in(tmp_path / "far") == [2, 3]
    assert not (tmp_path / "run").exists()

    target = store(tmp_path / "other", checkpoints={"path": str(tmp_path / "remote")})
    target._folder._files = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
    write(target, record, 3)
    assert rounds_in(tmp_path / "remote") == [2, 3]
    found = store(tmp_path / "other", checkpoints={"path": str(tmp_path / "remote")}).newest()
    assert found is not None
    assert found.state.round == 3


def test_two_runs_do_not_share_a_folder(tmp_path: Path, record: RoundRecord) -> None:
    place = {"checkpoints": {"path": str(tmp_path / "shared")}}
    store(tmp_path, **place).require_empty()
    write(store(tmp_path, **place), record, 1)
    with pytest.raises(RunDirectoryError, match="of round 1 already"):
        store(tmp_path, **place).require_empty()
