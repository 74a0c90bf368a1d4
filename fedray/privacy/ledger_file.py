"""The file that ledgers are kept in: append-only, hash-chained, shared by processes, and whole again after a crash.

Who appends locks the file, reads what others appended since, decides, writes, and flushes before it lets go. Lines that
are complete never change. A crash can leave a last line without its end: see ``LedgerFile``.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote
from weakref import WeakValueDictionary

import msgspec
from platformdirs import user_data_path

from fedray.errors import DataError, RecordsError
from fedray.privacy.ledger_entries import START, Book, Entry, Line, is_torn, seal, unseal

Durability = Literal["power", "process"]
"""What an entry survives once it was appended: the loss of power, or only that of the process (for simulations)."""


def ledger_folder() -> Path:
    """Where this machine keeps the ledgers of its owners; ``$FEDRAY_LEDGERS`` names another folder."""
    return Path(os.environ.get("FEDRAY_LEDGERS") or user_data_path("fedray") / "ledgers")


def ledger_path(owner: str) -> Path:
    """Where this machine keeps the ledger of an owner, if the owner has opened one."""
    return ledger_folder() / f"{quote(owner, safe='').replace('.', '%2E')}.jsonl"


class LedgerFile:
    """One file, of one owner or of thousands.

    A last line that lacks only its newline is kept, since it may have been acted upon; one that is cut off before is
    removed, since it was not. Anything else is an error.

    Args:
        path: where it is; made when first appended to, readable by its user alone.
        durability: ``power`` flushes to the device before an entry counts, ``process`` leaves that to the system.

    Raises:
        DataError: it is corrupt or cannot be read.
    """

    def __init__(self, path: Path, durability: Durability = "power") -> None:
        self.path = path
        self._durability = durability
        self._chain = _Chain(path)
        if path.exists():
            with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
                found = _read(file, 0)
            self._chain.take(found[: found.rfind(b"\n") + 1])
            self.refresh()

    @property
    def head(self) -> str:
        """Hash of the last entry, in hex; whoever keeps it can tell later that nothing up to it was changed."""
        return self._chain.head

    @property
    def owners(self) -> tuple[str, ...]:
        """Who has entries here, by name."""
        return tuple(sorted(self._chain.books))

    def book(self, owner: str) -> Book:
        """One owner's entries as far as they were read."""
        return self._chain.books.get(owner, Book())

    def refresh(self) -> None:
        """Read what other processes appended.

        Raises:
            DataError: it is corrupt, or what was read before is no longer there.
        """
        if self.path.exists() or self._chain.size:
            with _locked(self.path, os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as file:
                self._catch_up(file)

    def append(self, owner: str, decide: Callable[[], Sequence[Entry]]) -> tuple[int, ...]:
        """Append what ``decide`` returns, which sees all entries of all processes and is alone while it decides.

        Returns:
            The numbers of the entries. What ``decide`` raises passes through, and nothing is appended.

        Raises:
            DataError: the file is corrupt or cannot be written.
        """
        self._make_folder()
        with _locked(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX) as file:
            self._catch_up(file)
            before = self._chain.n_entries
            if lines := self._chain.lines(owner, decide()):
                self._write(file, lines)
                self._chain.take(lines)
        return tuple(range(before + 1, self._chain.n_entries + 1))

    def _catch_up(self, file: int) -> None:
        mark = self._chain.mark
        found = _read(file, self._chain.size - len(mark))
        if not found.startswith(mark):
            raise _corrupt(self.path, self._chain.n_entries, "it is no longer what it was a moment ago")
        whole, newline, tail = found[len(mark) :].rpartition(b"\n")
        self._chain.take(whole + newline)
        if tail:
            self._mend(file, tail)

    def _mend(self, file: int, tail: bytes) -> None:
        if is_torn(tail, self._chain.n_entries + 1, self._chain.head):
            os.ftruncate(file, self._chain.size)
            self._flush(file)
        else:
            self._chain.take(tail + b"\n")
            self._write(file, b"\n")

    def _write(self, file: int, lines: bytes) -> None:
        size = os.fstat(file).st_size
        try:
            _write_all(file, lines)
        except OSError:
            os.ftruncate(file, size)
            raise
        self._flush(file)
        if size == 0 and self._durability == "power":
            _flush_folder(self.path.parent)

    def _flush(self, file: int) -> None:
        if self._durability == "power":
            os.fsync(file)

    def _make_folder(self) -> None:
        folder = self.path.parent
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._durability == "power":
                _flush_folder(folder.parent)


_OPEN: WeakValueDictionary[tuple[Path, Durability], LedgerFile] = WeakValueDictionary()


def shared_file(path: Path, durability: Durability) -> LedgerFile:
    """The same ``LedgerFile`` for all who ask in one process, as long as one of them keeps it.

    A simulation's owners share one: each by itself would have to read what all the others wrote.

    Raises:
        DataError: it is corrupt or cannot be read.
    """
    key = (path.absolute(), durability)
    file = _OPEN.get(key)
    if file is None:
        _OPEN[key] = file = LedgerFile(path, durability)
    return file


@dataclass(frozen=True)
class Verified:
    """What an intact ledger holds.

    Attributes:
        n_entries: number of entries.
        head: hash of the last one, in hex.
        owners: whose they are, by name.
        is_torn: whether a crash has left the beginning of one more, which counts for nothing.
    """

    n_entries: int
    head: str
    owners: tuple[str, ...]
    is_torn: bool


def verify(path: Path, head: str | None = None) -> Verified:
    """Check every entry of a ledger, changing nothing.

    A chain cannot show that its last entries were taken away. A hash that was noted before can: give it as ``head``.

    Args:
        path: the ledger's file.
        head: hash of an entry that must be there.

    Raises:
        DataError: an entry was changed, removed or added to, or none has the hash ``head``; says which line.
        RecordsError: there is no such file.
    """
    if not path.exists():
        raise RecordsError(f"no ledger at {path}", "a ledger's file", "check the name, or open one: fedray ledger open")
    with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
        whole, newline, tail = _read(file, 0).rpartition(b"\n")
    chain = _Chain(path)
    chain.take(whole + newline)
    torn = bool(tail) and is_torn(tail, chain.n_entries + 1, chain.head)
    if tail and not torn:
        chain.take(tail + b"\n")
    if head not in (None, START, chain.head) and f'"hash":"{head}"}}\n'.encode() not in whole + newline:
        raise DataError(
            f"no entry of {path} has the hash {head}",
            "the hash that the ledger had when it was noted",
            "entries were taken away or written anew: restore the ledger from a copy",
        )
    return Verified(chain.n_entries, chain.head, tuple(sorted(chain.books)), torn)


class _Chain:
    """The lines of a file as far as they were read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.n_entries = 0
        self.size = 0
        self.head = START
        self.books: dict[str, Book] = {}

    @property
    def mark(self) -> bytes:
        """The last bytes that were read."""
        return f'{self.head}"}}\n'.encode() if self.n_entries else b""

    def lines(self, owner: str, entries: Sequence[Entry]) -> bytes:
        """The lines that entries become, as they come next."""
        sealed, head = b"", self.head
        for seq, entry in enumerate(entries, self.n_entries + 1):
            raw, head = seal(Line(seq, head, owner, int(time.time()), entry))
            sealed += raw + b"\n"
        return sealed

    def take(self, lines: bytes) -> None:
        for raw in lines.split(b"\n")[:-1]:
            try:
                self._take(raw)
            except (ValueError, msgspec.MsgspecError) as error:
                raise _corrupt(self._path, self.n_entries + 1, str(error)) from error

    def _take(self, raw: bytes) -> None:
        line = unseal(raw)
        if (line.seq, line.previous) != (self.n_entries + 1, self.head):
            raise ValueError("it does not follow the entry before it")
        self.books.setdefault(line.owner, Book()).enter(line.seq, line.entry)
        self.n_entries, self.head = line.seq, line.hash
        self.size += len(raw) + 1


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """The file, opened anew, so that neither threads nor forked processes share a lock."""
    try:
        file = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, lock)
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)
    except OSError as error:
        raise DataError(
            f"the ledger {path} cannot be used ({error.strerror})",
            "a file that its owner may read and write, on a device with room",
            "mend permissions or the device; nothing is released that is not on record",
        ) from error


def _read(file: int, start: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(file, 1 << 24), b""))


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _flush_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _corrupt(path: Path, line: int, reason: str) -> DataError:
    return DataError(
        f"the ledger {path} is corrupt at line {line}: {reason}",
        "entries that hang together, as fedray wrote them",
        "restore it from a copy; without it nobody can say what was spent",
    )
