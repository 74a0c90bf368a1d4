"""Of each round one sum at most is ever read, whatever happens to owner and server in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_toys import OTHER_RUN, RUN, refused

from fedray.errors import ConfigError, ProtocolError
from fedray.protection import journal as journal_module
from fedray.protection.journal import KEPT, Journal

THIRD_RUN = bytes(range(32, 48))
TERMS, OTHER_TERMS = bytes(32), bytes(range(32))
FIVE, FOUR = list("abcde"), list("abcd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.json"


def sealed(path: Path, *runs: bytes, round: int = 1) -> Journal:
    """A journal of a round that was sealed for these servers, opened anew for each."""
    for run in runs:
        Journal(path).seal(run, round, TERMS, 5)
    return Journal(path)


# Sealing


def test_a_round_is_sealed_once_for_each_server_in_its_turn(path: Path) -> None:
    for run in (RUN, OTHER_RUN, THIRD_RUN):
        journal = Journal(path)
        journal.require_open(run, 1)
        journal.require_open(run, 1)
        journal.seal(run, 1, TERMS, 5)
        for one in (journal, Journal(path)):
            with refused("round 1 again"):
                one.seal(run, 1, TERMS, 5)
            with refused("round 1 again"):
                one.require_open(run, 1)
    with refused("round 1 again"):
        sealed(path, RUN)


@pytest.mark.parametrize("run", [RUN, OTHER_RUN], ids=["same server", "next server"])
def test_a_round_that_was_passed_over_is_not_sealed_later(run: bytes, path: Path) -> None:
    journal = sealed(path, RUN, round=5)
    for number in (4, 1, 0, -1):
        with refused(f"round {number} again"):
            journal.seal(run, number, TERMS, 5)
        with refused(f"round {number} again"):
            journal.require_open(run, number)
    journal.seal(run, 6, TERMS, 5)


@pytest.mark.parametrize(
    ("terms", "n_steps", "why"), [(OTHER_TERMS, 5, "model or plan"), (TERMS, 4, "4 steps")], ids=["terms", "steps"]
)
@pytest.mark.parametrize("is_opened", [True, False])
def test_a_round_is_sealed_again_of_the_same_only(
    terms: bytes, n_steps: int, why: str, is_opened: bool, path: Path
) -> None:
    """Whether or not this owner has helped: its update can be in a sum that others opened."""
    journal = sealed(path, RUN)
    if is_opened:
        journal.open(RUN, 1, FIVE)
    with refused(why):
        journal.seal(OTHER_RUN, 1, terms, n_steps)
    journal.seal(OTHER_RUN, 1, TERMS, 5)
    journal.seal(OTHER_RUN, 2, terms, n_steps)


def test_what_is_forgotten_is_over(path: Path) -> None:
    for number in range(1, KEPT + 3):
        sealed(path, RUN, round=number)
    assert len(json.loads(path.read_text())["rounds"]) == KEPT
    for number in (1, 2):
        with refused("again"):
            sealed(path, OTHER_RUN, round=number)
    sealed(path, OTHER_RUN, round=3)


# Opening


def test_a_server_that_is_started_anew_gets_the_same_list_opened_and_no_other(path: Path) -> None:
    sealed(path, RUN).open(RUN, 1, FIVE)
    for run in (OTHER_RUN, THIRD_RUN):
        journal = sealed(path, run)
        for other in (FOUR, [*FIVE, "f"], [*FOUR, "f"], FIVE[::-1], []):
            with refused("for other owners"):
                journal.open(run, 1, other)
        for one in (journal, Journal(path)):
            one.open(run, 1, FIVE)
        with refused("for other owners"):
            journal.open(run, 1, FOUR)


def test_the_first_server_may_hand_in_another_list_and_those_after_it_its_last(path: Path) -> None:
    """A key holder opens one sum for it; where an owner is lost before it has answered, that is the next."""
    journal = sealed(path, RUN)
    journal.open(RUN, 1, FIVE)
    journal.open(RUN, 1, FOUR)
    journal = sealed(path, OTHER_RUN)
    with refused("for other owners"):
        journal.open(OTHER_RUN, 1, FIVE)
    journal.open(OTHER_RUN, 1, FOUR)


def test_a_sum_that_was_never_opened_may_be_opened_for_others_the_second_time(path: Path) -> None:
    sealed(path, RUN, OTHER_RUN).open(OTHER_RUN, 1, FOUR)
    with refused("for other owners"):
        sealed(path, THIRD_RUN).open(THIRD_RUN, 1, FIVE)


def test_a_server_gets_nothing_once_the_owner_has_sealed_for_the_next(path: Path) -> None:
    journal = sealed(path, RUN)
    sealed(path, OTHER_RUN)
    with refused("for this server last"):
        journal.open(RUN, 1, FIVE)
    journal.open(OTHER_RUN, 1, FOUR)


@pytest.mark.parametrize("round", [1, 2])
def test_a_round_that_was_not_sealed_is_not_opened(round: int, path: Path) -> None:
    with refused(f"round {round}, which was not sealed"):
        Journal(path).open(RUN, round, FIVE)
    with refused(f"round {round}, which was not sealed"):
        sealed(path, OTHER_RUN).open(RUN, round, FIVE)


def test_each_round_has_a_list_of_its_own(path: Path) -> None:
    sealed(path, RUN).open(RUN, 1, FIVE)
    sealed(path, RUN, round=2).open(RUN, 2, FOUR)
    sealed(path, OTHER_RUN).open(OTHER_RUN, 1, FIVE)
    sealed(path, OTHER_RUN, round=2).open(OTHER_RUN, 2, FOUR)


# Any sequence


class History:
    """The rules once more, worked out anew each time from all that ever happened; nothing is forgotten."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._seals: list[tuple[bytes, int, int]] = []
        self._opens: list[tuple[bytes, int, str]] = []

    def may_join(self, run: bytes, round: int) -> bool:
        later = {number for _, number, _ in self._seals if number > round}
        is_known = any(number == round for _, number, _ in self._seals)
        is_within = len(later) < self._kept if is_known else not later
        return is_within and not any((one, number) == (run, round) for one, number, _ in self._seals)

    def seal(self, run: bytes, round: int, kind: int) -> bool:
        before = {known for _, number, known in self._seals if number == round}
        is_done = self.may_join(run, round) and before <= {kind}
        self._seals += [(run, round, kind)] if is_done else []
        return is_done

    def open(self, run: bytes, round: int, owners: str) -> bool:
        servers = [one for one, number, _ in self._seals if number == round]
        later = {number for _, number, _ in self._seals if number > round}
        lists = [(one, names) for one, number, names in self._opens if number == round]
        is_same = not lists or lists[-1][1] == owners or lists[0][0] == run
        is_done = servers[-1:] == [run] and len(later) < self._kept and is_same
        self._opens += [(run, round, owners)] if is_done else []
        return is_done


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "seal", "seal", "open", "open"]),
        st.sampled_from([RUN, OTHER_RUN, THIRD_RUN]),
        st.sampled_from([1, 1, 1, 2, 3, 4]),
        st.sampled_from([0, 0, 0, 1]),
        st.booleans(),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(steps=STEPS)
def test_a_journal_allows_what_its_whole_history_does(steps: Sequence[Any], tmp_path_factory: Any) -> None:
    """Over servers that come and go, owners that are restarted, and rounds that are forgotten."""
    path = tmp_path_factory.mktemp("journal") / "journal.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "KEPT", 2)
        journal, history = Journal(path), History(2)
        for what, run, round, kind, is_restarted in steps:
            journal = Journal(path) if is_restarted else journal
            calls: dict[str, tuple[Any, Any]] = {
                "join": (history.may_join, partial(journal.require_open, run, round)),
                "seal": (partial(history.seal, kind=kind), partial(journal.seal, run, round, TERMS, 5 + kind)),
                "open": (partial(history.open, owners="abcd"[kind:]), partial(journal.open, run, round, "abcd"[kind:])),
            }
            expected, asked = calls[what]
            assert _is_allowed(asked) == expected(run, round), (what, run, round, kind)


def _is_allowed(asked: Any) -> bool:
    try:
        asked()
    except ProtocolError:
        return False
    return True


@settings(deadline=None, max_examples=100)
@given(
    lists=st.lists(
        st.tuples(st.lists(st.sampled_from("abcdefg"), min_size=3, unique=True), st.permutations("abcdefg")),
        min_size=2,
        max_size=6,
    )
)
def test_no_sums_that_majorities_open_tell_the_update_of_one_owner(lists: Any, tmp_path_factory: Any) -> None:
    """A server that is started anew for each list, and picks cohorts and signers as it likes, among honest owners."""
    folder = tmp_path_factory.mktemp("journals")
    journals = {name: Journal(folder / f"{name}.json") for name in "abcdefg"}
    opened = []
    for number, (owners, order) in enumerate(lists):
        run, signers = bytes([number] * 16), 0
        for name in (one for one in order if one in owners):
            journals[name].seal(run, 1, TERMS, 5)
            is_needed = signers <= len(owners) // 2
            signers += is_needed and _is_allowed(partial(journals[name].open, run, 1, sorted(owners)))
        if signers > len(owners) // 2:
            opened.append([name in owners for name in "abcdefg"])
    assert opened
    sums = np.array(opened, dtype=float)
    for single in np.eye(7):
        assert np.linalg.matrix_rank(np.vstack([sums, single])) > np.linalg.matrix_rank(sums)


# Crashes


def test_a_round_is_written_down_before_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on knows that it is on the disk; a crash in between leaves the old file."""
    journal = sealed(path, RUN)
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    for asked in (lambda: journal.seal(RUN, 2, TERMS, 5), lambda: journal.open(RUN, 1, FIVE)):
        with pytest.raises(OSError, match="disk full"):
            asked()
    assert path.read_bytes() == before
    monkeypatch.undo()
    journal.open(RUN, 1, FOUR)
    journal.seal(RUN, 2, TERMS, 5)


def test_what_is_written_down_is_on_the_device_before_it_gets_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power after that has the old journal or the new one, and the new one once it counts."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda file: done.append(kinds[_is_folder(file)]) or sync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("name") or replace(*paths))
    journal = sealed(path, RUN)
    assert done == ["file", "name", "folder"]
    journal.open(RUN, 1, FIVE)
    assert done == ["file", "name", "folder"] * 2


def _is_folder(file: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{file}")


KILLED = """
import sys
from pathlib import Path
from fedray.protection.journal import Journal

journal, done, first = Journal(Path(sys.argv[1])), open(sys.argv[2], "a", buffering=1), int(sys.argv[3])
for number in range(first, first + 10_000):
    journal.seal(bytes(16), number, bytes(32), 5)
    done.write(f"sealed {number}\\n")
    journal.open(bytes(16), number, ["a", str(number)])
    done.write(f"opened {number}\\n")
    print(number, flush=True)
"""


def test_an_owner_killed_at_any_moment_has_written_down_all_that_it_did(path: Path, tmp_path: Path) -> None:
    done, first = tmp_path / "done", 1
    for n_rounds in (1, 2, 9, 30):
        command = [sys.executable, "-c", KILLED, str(path), str(done), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            for _ in range(n_rounds):
                assert owner.stdout.readline()
            owner.kill()
        journal, (what, at) = Journal(path), done.read_text().splitlines()[-1].split()
        last = int(at)
        with refused("again"):
            journal.require_open(bytes(16), last)
        journal.seal(OTHER_RUN, last, TERMS, 5)
        if what == "opened":
            with refused("for other owners"):
                journal.open(OTHER_RUN, last, ["a"])
            journal.open(OTHER_RUN, last, ["a", str(last)])
        first = last + 2


RACING = """
import sys
from pathlib import Path
from fedray.errors import ProtocolError
from fedray.protection.journal import Journal

journal, run, owners = Journal(Path(sys.argv[1])), sys.argv[2].encode() * 16, ["a", "b", "c", sys.argv[2]]
for line in sys.stdin:
    number = int(line)
    journal.require_open(run, number)
    journal.seal(run, number, bytes(32), 5)
    try:
        journal.open(run, number, owners)
        print("opened", flush=True)
    except ProtocolError:
        print("refused", flush=True)
"""


@pytest.fixture
def racers(path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """An old server's process of an owner, and a new one's, that hold one journal and act when told a round."""
    command = [sys.executable, "-c", RACING, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    processes: list[subprocess.Popen[str]] = [subprocess.Popen([*command, name], **pipes) for name in "xy"]  # type: ignore[call-overload]
    yield processes
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_two_processes_of_an_owner_never_help_to_open_two_lists(racers: list[subprocess.Popen[str]]) -> None:
    """Whoever sealed last may open, unless the other was done before: one of them in every round, never both."""
    outcomes = defaultdict(int)
    for number in range(1, 61):
        for process in racers:
            assert process.stdin is not None
            process.stdin.write(f"{number}\n")
        answers = [process.stdout.readline().strip() for process in racers if process.stdout]
        outcomes[tuple(answers)] += 1
    assert set(outcomes) <= {("opened", "refused"), ("refused", "opened")}
    assert sum(outcomes.values()) == 60


# Files


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "7", '"x"', "{}", '{"a": 1}', "\xff", '{"last_sealed_round": 1}'),
        *('{"rounds": null}', '{"rounds": [1]}', '{"rounds": {"x": {"terms": "", "n_steps": 1}}}'),
        *('{"rounds": {"1": {}}}', '{"rounds": {"1": {"terms": "", "n_steps": "x"}}}'),
        *('{"rounds": {"1": {"terms": "", "n_steps": 1, "other": 1}}}', '{"rounds": {}, "other": 1}'),
    ],
)
def test_an_unreadable_journal_is_no_empty_one(content: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        Journal(path)


def test_a_journal_that_became_unreadable_is_no_empty_one_either(path: Path) -> None:
    journal = sealed(path, RUN)
    path.write_text("{")
    for asked in (lambda: journal.require_open(RUN, 2), lambda: journal.seal(RUN, 2, TERMS, 5)):
        with pytest.raises(ConfigError, match="cannot be read"):
            asked()


def test_a_journal_that_may_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        Journal(path)


@pytest.mark.parametrize("name", ["journal.json", "a.b.json"])
def test_what_is_left_is_the_journal_and_its_lock(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    sealed(path, RUN).open(RUN, 1, FIVE)
    assert {one.name for one in tmp_path.iterdir()} == {name, path.with_suffix(".lock").name}
