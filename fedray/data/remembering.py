"""What was read of a file or folder is remembered in this process for as long as it stays as it is.

A simulation asks the same of a path once an owner: thousands of times for thousands of owners.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import NamedTuple, TypeVar, TypeVarTuple

Rest = TypeVarTuple("Rest")
Found = TypeVar("Found")

_SETTLED_NS = 2 * 10**9
"""A path that has not changed for so long has not changed unseen: time stamps are coarse."""


class _Version(NamedTuple):
    path: Path
    changed_ns: int
    n_bytes: int


def remembered(n_answers: int) -> Callable[[Callable[[Path, *Rest], Found]], Callable[[Path, *Rest], Found]]:
    """Let a function of a path, and of more that is hashable, answer from memory.

    Answers are shared: nobody may change them. Errors are not remembered, nor is what was read of a path that
    changed in the last two seconds.

    Args:
        n_answers: how many answers are kept; the one not asked for the longest goes first.
    """

    def decorate(read: Callable[[Path, *Rest], Found]) -> Callable[[Path, *Rest], Found]:
        @lru_cache(maxsize=n_answers)
        def kept(version: _Version, rest: tuple[*Rest]) -> Found:
            return read(version.path, *rest)

        def answer(path: Path, /, *rest: *Rest) -> Found:
            version = _settled(path)
            return read(path, *rest) if version is None else kept(version, rest)

        update_wrapper(answer, read)
        return answer

    return decorate


def _settled(path: Path) -> _Version | None:
    """The version that lies there; None where nothing does, or where it is too new to be told from the next."""
    try:
        found = path.stat()
    except OSError:
        return None
    is_settled = time.time_ns() - found.st_mtime_ns > _SETTLED_NS
    return _Version(path, found.st_mtime_ns, found.st_size) if is_settled else None
