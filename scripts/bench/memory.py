"""Memory of a process and of all that it started, from /proc (Linux only).

PSS shares every page out among the processes that map it, so that a sum over processes counts each page once; RSS
counts it once a process. Pages of libraries are shared out among all processes of the machine that loaded them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What /proc raises of a process that has ended, or that is another user's."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process holds, in bytes.

    Attributes:
        pid: the process.
        name: what it does, as far as its command line tells.
        pss: proportional set size.
        rss: resident set size.
    """

    pid: int
    name: str
    pss: int
    rss: int


def of_tree(root: int) -> list[Memory]:
    """Memory of a process and its descendants; those that end meanwhile are left out."""
    found = []
    for pid in tree(root):
        with suppress(*_GONE):
            found.append(_of(pid))
    return found


def tree(root: int) -> list[int]:
    """A process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(*_GONE):
                children.setdefault(_parent(entry), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def total(found: Iterable[Memory]) -> dict[str, float]:
    """Sums in MiB."""
    found = list(found)
    return {"PSS": sum(one.pss for one in found) / MIB, "RSS": sum(one.rss for one in found) / MIB}


def by_name(found: Iterable[Memory]) -> Mapping[str, list[float]]:
    """PSS in MiB of the processes of each name, largest first."""
    names: dict[str, list[float]] = {}
    for one in sorted(found, key=lambda one: -one.pss):
        names.setdefault(one.name, []).append(round(one.pss / MIB, 1))
    return names


def _of(pid: int) -> Memory:
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, value = line.partition(":")
        kib[key] = int(value.split()[0])
    return Memory(pid, _name(Path(f"/proc/{pid}/cmdline").read_bytes()), 1024 * kib["Pss"], 1024 * kib["Rss"])


def _parent(entry: Path) -> int:
    """The second field after the command's name, which may hold anything but ends with the last parenthesis."""
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


def _name(command: bytes) -> str:
    """The program, what an interpreter runs, or Ray's name of an actor without what it is just doing."""
    words = [word for word in command.decode(errors="replace").replace("\0", " ").split() if word]
    if not words:
        return "?"
    program = Path(words[0]).name
    if program.startswith("python"):
        scripts = [word for word in words[1:] if word.endswith(".py")]
        return "/".join(Path(scripts[0]).parts[-2:]) if scripts else "python"
    return words[0].partition(".")[0] if words[0].startswith("ray::") else program
