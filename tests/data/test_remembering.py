"""What was read of a path is read again when, and only when, the path may have changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedray.data.remembering import remembered

LONG_AGO_S = 10.0**9


def _write(path: Path, text: str, changed_s: float = LONG_AGO_S) -> None:
    path.write_text(text)
    os.utime(path, (changed_s, changed_s))


class Reader:
    """Counts how often it reads."""

    def __init__(self) -> None:
        self.n_reads = 0

    def read(self, path: Path, suffix: str) -> str:
        self.n_reads += 1
        return path.read_text() + suffix


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.txt"


def test_an_unchanged_path_is_read_once_for_each_question(path: Path) -> None:
    reader = Reader()
    read = remembered(4)(reader.read)
    _write(path, "one")
    assert [read(path, "!"), read(path, "!"), read(path, "?"), read(path, "?")] == ["one!", "one!", "one?", "one?"]
    assert reader.n_reads == 2


def test_another_time_or_size_is_another_version(path: Path) -> None:
    reader = Reader()
    read = remembered(4)(reader.read)
    _write(path, "one")
    assert read(path, "") == "one"
    _write(path, "two", LONG_AGO_S + 1)
    assert read(path, "") == "two"
    _write(path, "three", LONG_AGO_S + 1)
    assert read(path, "") == "three"
    assert reader.n_reads == 3


def test_a_path_that_has_just_changed_is_read_every_time(path: Path) -> None:
    reader = Reader()
    read = remembered(4)(reader.read)
    for number in range(3):
        _write(path, f"{number}", time.time() + 60)
        assert read(path, "") == f"{number}"
    assert reader.n_reads == 3


def test_errors_are_not_remembered(path: Path) -> None:
    reader = Reader()
    read = remembered(4)(reader.read)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            read(path, "")
    _write(path, "one")
    assert read(path, "") == "one"


def test_the_oldest_answer_goes_first(tmp_path: Path) -> None:
    reader = Reader()
    read = remembered(2)(reader.read)
    for name in "abc":
        _write(tmp_path / name, name)
    for name in "abcbca":
        assert read(tmp_path / name, "") == name
    assert reader.n_reads == 4
