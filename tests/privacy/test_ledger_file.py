"""The ledger's file: every change of it shows, a crash loses nothing that was acted upon, processes share it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedray.errors import DataError, FedrayError, RecordsError
from fedray.privacy import ledger_file
from fedray.privacy.events import Gaussian, SampledGaussian, Skellam
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_entries import Entry, Release, is_torn
from fedray.privacy.ledger_file import LedgerFile, Verified, shared_file, verify

START = "0" * 64


def release(round: int = 1, count: int = 10, run: str = "a") -> Release:
    return Release(run, "trial", round, "train", "example", SampledGaussian(0.25, 1.5), count)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A small ledger with an entry of every kind, of two owners, one of whom is not ASCII."""
    file = LedgerFile(tmp_path / "small")
    ann, zoe = Ledger(file, 'ann",'), Ledger(file, "Zoë")
    ann.set_budget("example", 80.0, 1e-5)
    seq = ann.charge(release())
    ann.settle(seq, 4)
    zoe.participate("a", 3, 1, 9)
    zoe.charge(Release("a", "trial", None, "evaluate", "owner", Skellam(1.5, 1e-3, 1e22), 1))
    return tmp_path / "small"


def counts(path: Path) -> list[int]:
    """All that was charged, as settled; reads as any owner would."""
    file = LedgerFile(path)
    return [found.count for owner in file.owners for found in Ledger(file, owner).releases()]


# The chain ------------------------------------------------------------------------------------------------------------


def test_lines_hang_together_as_the_docstring_says(written: Path) -> None:
    previous = START
    for number, line in enumerate(written.read_bytes().splitlines(), 1):
        found = json.loads(line)
        assert (found["seq"], found["previous"]) == (number, previous)
        content = line[: line.rindex(b',"hash":')] + b"}"
        assert hashlib.sha256(content).hexdigest() == found["hash"]
        previous = found["hash"]
    assert verify(written) == Verified(5, previous, ("Zoë", 'ann",'), is_torn=False)
    assert LedgerFile(written).head == previous


def with_byte(content: bytes, place: int, byte: int) -> bytes:
    return content[:place] + bytes([byte]) + content[place + 1 :]


def is_refused(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except DataError as error:
        return "corrupt at line" in error.found
    return False


def test_every_change_of_a_byte_is_an_error_and_never_a_smaller_figure(written: Path) -> None:
    """At every place some values, at every 10th and the last ones all 255."""
    content = written.read_bytes()
    with written.open("r+b", buffering=0) as file:
        for place, byte in enumerate(content):
            thorough = place % 10 == 0 or place >= len(content) - 3
            for other in (set(range(256)) if thorough else {0, 10, 34, byte ^ 1}) - {byte}:
                os.pwrite(file.fileno(), bytes([other]), place)
                assert is_refused(verify, written), (place, other)
                if other in (10, byte ^ 1):
                    assert is_refused(LedgerFile, written), (place, other)
                    assert written.read_bytes() == with_byte(content, place, other)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert verify(written).n_entries == 5


@pytest.mark.parametrize("line", [0, 1, 2, 3])
def test_a_line_taken_out_or_doubled_or_moved_is_an_error(line: int, written: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    removed = lines[:line] + lines[line + 1 :]
    doubled = lines[: line + 1] + lines[line:]
    swapped = [*lines[:line], lines[line + 1], lines[line], *lines[line + 2 :]]
    for version in (removed, doubled, swapped, [*lines[: line + 1], b"\n", *lines[line + 1 :]]):
        written.write_bytes(b"".join(version))
        with pytest.raises(DataError, match=rf"at line {line + 1}|at line {line + 2}"):
            verify(written)
        with pytest.raises(DataError):
            LedgerFile(written)


def forged(*entries: object, owner: str = "ann", first: int = 1, previous: str = START) -> bytes:
    """Lines that hang together, whatever they say."""
    lines = b""
    for seq, entry in enumerate(entries, first):
        line = {"seq": seq, "previous": previous, "owner": owner, "time": 0, "entry": entry}
        content = json.dumps(line, separators=(",", ":")).encode()
        previous = hashlib.sha256(content).hexdigest()
        lines += content[:-1] + f',"hash":"{previous}"}}\n'.encode()
    return lines


CHARGE = {
    "kind": "charge",
    "run": "a",
    "experiment": "trial",
    "round": 1,
    "purpose": "train",
    "unit": "example",
    "event": {"name": "gaussian", "noise_multiplier": 2.0},
    "count": 3,
}
SETTLE = {"kind": "settle", "seq": 1, "count": 2}


def test_a_line_that_was_written_anew_with_its_hash_does_not_fit_the_next(tmp_path: Path) -> None:
    lines = forged(CHARGE, SETTLE).splitlines(keepends=True)
    smaller = forged({**CHARGE, "count": 2}, {"kind": "participation", "run": "a", "round": 1})
    (tmp_path / "a").write_bytes(smaller.splitlines(keepends=True)[0] + lines[1])
    misnumbered = forged(SETTLE, first=3, previous=json.loads(lines[0])["hash"])
    (tmp_path / "b").write_bytes(lines[0] + misnumbered)
    for name in "ab":
        for read in (verify, LedgerFile):
            with pytest.raises(DataError, match="line 2: it does not follow the entry before it"):
                read(tmp_path / name)


def test_the_beginning_of_a_line_that_would_not_come_next_is_an_error(tmp_path: Path) -> None:
    line, head = forged(CHARGE), json.loads(forged(CHARGE))["hash"]
    for start in (forged(SETTLE, first=3, previous=head), forged(SETTLE, first=2), forged(CHARGE)):
        (tmp_path / "a").write_bytes(line + start[:150])
        with pytest.raises(DataError, match="corrupt at line 2"):
            LedgerFile(tmp_path / "a")
    (tmp_path / "a").write_bytes(line + forged(SETTLE, first=2, previous=head)[:150])
    assert counts(tmp_path / "a") == [3]


def test_lines_written_by_other_hands_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(forged(CHARGE, SETTLE))
    assert counts(tmp_path / "a") == [2]


@pytest.mark.parametrize(
    "entries",
    [
        [CHARGE, {**SETTLE, "count": 3}],
        [CHARGE, {**SETTLE, "count": -1}],
        [CHARGE, {**SETTLE, "seq": 2}],
        [CHARGE, SETTLE, {**SETTLE, "count": 2}],
        [SETTLE],
        [{"kind": "settle", "seq": 1, "count": 0}],
        [{**CHARGE, "count": -1}],
        [{**CHARGE, "count": 1.5}],
        [{**CHARGE, "round": 0}],
        [{**CHARGE, "unit": "row"}],
        [{**CHARGE, "purpose": "fun"}],
        [{**CHARGE, "event": {"name": "gaussian", "noise_multiplier": 0.0}}],
        [{**CHARGE, "event": {"name": "laplace", "scale": 1.0}}],
        [{**CHARGE, "more": 1}],
        [{"kind": "refund", "seq": 1}],
        [{"kind": "budget", "unit": "example", "epsilon": 0.0, "delta": 1e-5}],
        [{"kind": "budget", "unit": "example", "epsilon": 1.0, "delta": 1.0}],
        [None],
        [[]],
        ["charge"],
    ],
)
def test_an_entry_that_makes_no_sense_is_an_error_though_its_hash_fits(entries: list, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(forged(*entries))
    for read in (verify, LedgerFile):
        with pytest.raises(DataError, match=f"corrupt at line {len(entries)}"):
            read(tmp_path / "a")


@pytest.mark.parametrize("line", [b"", b"nonsense", b"3", b"{}", b"[]", b"null", b"\xff\xfe", b"\0" * 40])
def test_a_line_of_something_else_is_an_error(line: bytes, written: Path) -> None:
    content = written.read_bytes()
    for version in (line + b"\n" + content, content + line + b"\n", content + line + b"\n" + content):
        written.write_bytes(version)
        for read in (verify, LedgerFile):
            with pytest.raises(DataError, match="corrupt at line"):
                read(written)


def test_a_head_that_was_noted_shows_that_entries_were_taken_away(written: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    heads = [START, *(json.loads(line)["hash"] for line in lines)]
    for head in heads:
        assert verify(written, head).head == heads[-1]
    for n_left in range(len(lines)):
        written.write_bytes(b"".join(lines[:n_left]))
        assert verify(written).n_entries == n_left
        assert verify(written, heads[n_left]).head == heads[n_left]
        with pytest.raises(DataError, match="no entry of"):
            verify(written, heads[n_left + 1])


def test_verifying_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="no ledger at"):
        verify(tmp_path / "missing")
    with pytest.raises(DataError, match="cannot be used"):
        verify(tmp_path)


# Crashes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [b"", b"\0" * 600])
def test_a_crash_at_any_byte_loses_only_what_was_not_acted_upon(zeros: bytes, written: Path, tmp_path: Path) -> None:
    """Up to the newline of an entry, its call had not returned; a device may leave zeros for what was not written."""
    cut, content = tmp_path / "cut", written.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == 10]
    for size in range(len(content) + 1):
        is_whole = size in ends or size + 1 in ends
        if is_whole and zeros:
            continue
        n_whole = sum(end <= size or end == size + 1 for end in ends)
        cut.write_bytes(content[:size] + zeros)
        found = verify(cut)
        assert (found.n_entries, found.is_torn) == (
            n_whole,
            ((bool(zeros) or not is_whole) and size > 0) or bool(zeros),
        )
        assert cut.read_bytes() == content[:size] + zeros
        file = LedgerFile(cut, "process")
        assert cut.read_bytes() == content[: ([0, *ends])[n_whole]]
        Ledger(file, "bob").charge(release())
        assert verify(cut).n_entries == n_whole + 1


def test_a_last_line_without_its_newline_is_not_cut_for_a_changed_byte(written: Path, tmp_path: Path) -> None:
    """Two faults at once: a crash that took the newline only, and a changed byte.

    But for a zero at the very end, which is what a device leaves that did not write so far.
    """
    changed, content = tmp_path / "changed", written.read_bytes()[:-1]
    start, previous = content.rindex(b"\n") + 1, json.loads(content.splitlines()[-2])["hash"]
    for place in range(start, len(content)):
        for other in set(range(256)) - {content[place]}:
            torn = is_torn(with_byte(content, place, other)[start:], 5, previous)
            assert torn == (place == len(content) - 1 and other == 0), (place, other)
        changed.write_bytes(with_byte(content, place, content[place] ^ 1))
        assert is_refused(LedgerFile, changed)
        assert is_refused(verify, changed)


def test_another_process_mends_what_a_crash_left_while_this_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a"
    here, there = Ledger(LedgerFile(path), "ann"), Ledger(LedgerFile(path), "ann")
    here.charge(release(1))
    with path.open("ab") as file:
        file.write(b'{"seq":2,"previous":"')
    there.charge(release(2))
    here.charge(release(3))
    assert [found.round for found in here.releases()] == [1, 2, 3]
    assert verify(path).n_entries == 3


def test_an_entry_that_cannot_be_written_whole_is_taken_back(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written.read_bytes()

    def full(file: int, content: bytes) -> None:
        os.write(file, content[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger_file, "_write_all", full)
    ledger = Ledger(LedgerFile(written), "ann")
    with pytest.raises(DataError, match="No space left on device"):
        ledger.charge(release())
    assert written.read_bytes() == before
    monkeypatch.undo()
    ledger.charge(release())
    assert verify(written).n_entries == 6


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_ledger_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "ledger"
    Ledger(LedgerFile(path), "ann").charge(release())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_only_power_durability_flushes_and_it_does_so_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, int]] = []

    def noted(file: int) -> None:
        found = os.fstat(file)
        flushed.append((stat.S_ISDIR(found.st_mode), found.st_size))

    monkeypatch.setattr(os, "fsync", noted)
    Ledger(LedgerFile(tmp_path / "process", "process"), "ann").charge(release())
    assert flushed == []
    ledger = Ledger(LedgerFile(tmp_path / "deep" / "power", "power"), "ann")
    ledger.charge(release())
    first = (tmp_path / "deep" / "power").stat().st_size
    assert [is_folder for is_folder, _ in flushed] == [True, False, True]
    assert flushed[1] == (False, first)
    ledger.charge(release())
    assert flushed[3:] == [(False, (tmp_path / "deep" / "power").stat().st_size)]


@pytest.mark.parametrize("fate", ["gone", "shorter", "another", "emptied"])
def test_a_file_that_is_replaced_while_it_is_used_is_an_error(fate: str, written: Path, tmp_path: Path) -> None:
    ledger = Ledger(LedgerFile(written), "Zoë")
    content = written.read_bytes()
    if fate == "gone":
        written.unlink()
    else:
        other = forged(CHARGE) * 20
        written.write_bytes({"shorter": content[:-400], "another": other, "emptied": b""}[fate])
    with pytest.raises(DataError):
        ledger.releases()
    with pytest.raises(DataError):
        ledger.charge(release())


def test_a_copy_put_back_in_time_is_used_on(written: Path, tmp_path: Path) -> None:
    ledger = Ledger(LedgerFile(written), "Zoë")
    shutil.copy(written, tmp_path / "copy")
    os.replace(tmp_path / "copy", written)
    ledger.charge(release())
    assert verify(written).n_entries == 6


def test_owners_in_one_process_read_a_shared_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ann, bob = (Ledger(shared_file(Path("a"), "process"), name) for name in ("ann", "bob"))
    seq = ann.charge(release())
    bob.charge(release())
    assert shared_file(tmp_path / "a", "process").owners == ("ann", "bob")
    assert ann._file is bob._file
    assert shared_file(tmp_path / "a", "power") is not ann._file
    ann.settle(seq, 3)
    del ann, bob
    (tmp_path / "a").unlink()
    assert shared_file(tmp_path / "a", "process").owners == ()


def test_what_decides_is_alone_and_sees_all_entries(tmp_path: Path) -> None:
    path = tmp_path / "a"
    here, there = LedgerFile(path, "process"), LedgerFile(path, "process")
    Ledger(there, "ann").charge(release())

    def decide() -> list[Entry]:
        assert list(here.book("ann").releases) == [1]
        raise DataError("found", "expected", "remedy")

    with pytest.raises(FedrayError, match="found"):
        here.append("ann", decide)
    assert verify(path).n_entries == 1
    Ledger(there, "ann").charge(Release("b", "trial", 1, "train", "owner", Gaussian(3.0), 1))
    assert here.append("ann", list) == ()
    assert here.head == there.head
