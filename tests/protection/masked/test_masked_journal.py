"""A round number is used once, whatever happens to the owner in between."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_toys import refused

from fedray.errors import ConfigError
from fedray.protection.journal import Journal


def test_a_round_is_used_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "journal.json")
    journal.require_unused(1)
    journal.require_unused(1)
    journal.use(1)
    for number in (1, 0, -1):
        with refused("again"):
            journal.use(number)
        with refused("again"):
            journal.require_unused(number)
    journal.use(5)
    for number in (1, 2, 4, 5):
        with refused("again"):
            journal.use(number)
    journal.use(6)


def test_a_round_is_used_once_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    Journal(path).use(3)
    for _ in range(2):
        with refused("again"):
            Journal(path).use(3)
    Journal(path).use(4)
    assert [one.name for one in tmp_path.iterdir()] == ["journal.json"]


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12))
def test_rounds_only_ever_grow(steps: list[tuple[int, bool]], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.json"
    journal, last = Journal(path), 0
    for number, is_restarted in steps:
        journal = Journal(path) if is_restarted else journal
        if number > last:
            journal.use(number)
            last = number
        else:
            with refused("again"):
                journal.use(number)


def test_a_round_is_written_down_before_it_counts_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on after ``use`` knows that the number is on the disk; a crash in between leaves the old file."""
    path = tmp_path / "journal.json"
    journal = Journal(path)
    journal.use(1)

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        journal.use(2)
    assert json.loads(path.read_text()) == {"last_sealed_round": 1}
    monkeypatch.undo()
    with refused("again"):
        journal.use(2)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "7", '"x"', "{}", '{"a": 1}', "\xff"),
        *('{"last_sealed_round": "x"}', '{"last_sealed_round": null}', '{"last_sealed_round": [1]}'),
    ],
)
def test_an_unreadable_journal_is_no_empty_one(content: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        Journal(path)


def test_a_journal_that_may_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        Journal(path)


@pytest.mark.parametrize("name", ["journal.json", "a.b.json"])
def test_the_file_that_is_written_first_is_the_journals_own(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Journal(path).use(1)
    assert [one.name for one in tmp_path.iterdir()] == [name]
