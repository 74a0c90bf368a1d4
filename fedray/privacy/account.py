"""One owner's durable account of what it has spent: written before the work, settled after.

An append-only file of JSON lines, flushed to disk before the noise is drawn, so that a crash can make the account say
too much, never too little. It lives where the owner's data lives and outlives the owner's process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedray.errors import BudgetExhausted, DataError
from fedray.privacy.accounting import Release, spent
from fedray.values import Spent


class PrivacyAccount:
    """Charges and settles releases against an optional budget.

    Args:
        path: the owner's own file; read if it exists, so that a restarted owner goes on where it was.
        delta: failure probability at which epsilon is computed.
        budget: largest epsilon; None only counts.

    Raises:
        DataError: the file is corrupt.
    """

    def __init__(self, path: Path, delta: float, budget: float | None) -> None:
        self._path = path
        self._delta = delta
        self._budget = budget
        self._releases = _read(path)

    @property
    def releases(self) -> tuple[Release, ...]:
        """All charges, as settled."""
        return tuple(self._releases)

    @property
    def spent(self) -> Spent:
        return spent(self._releases, self._delta)

    def charge(self, round: int, release: Release) -> None:
        """Record a release before it happens.

        Raises:
            BudgetExhausted: it would take epsilon beyond the budget; nothing is recorded.
        """
        after = spent([*self._releases, release], self._delta).epsilon
        if self._budget is not None and after > self._budget:
            raise BudgetExhausted(
                f"round {round} would take epsilon to {after:.4g}",
                f"at most {self._budget:.4g}",
                "this owner sits the rest of the run out; plan fewer rounds or a larger budget",
            )
        self._releases.append(release)
        self._append({"charge": round, "q": release.sample_rate, "z": release.noise_multiplier, "n": release.n_steps})

    def settle(self, round: int, n_steps: int) -> None:
        """Lower the last charge to the steps that were really taken."""
        last = self._releases[-1]
        if n_steps < last.n_steps:
            self._releases[-1] = Release(last.sample_rate, last.noise_multiplier, n_steps)
            self._append({"settle": round, "n": n_steps})

    def _append(self, entry: dict[str, float]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> list[Release]:
    """Replay the file. A last line without its end was never acted upon: its charge had not returned."""
    releases: list[Release] = []
    if not path.exists():
        return releases
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    try:
        for line in whole.splitlines():
            entry = json.loads(line)
            if "charge" in entry:
                releases.append(_release(entry["q"], entry["z"], entry["n"]))
            else:
                last = releases[-1]
                releases[-1] = _release(last.sample_rate, last.noise_multiplier, entry["n"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"the privacy account {path} is corrupt ({type(error).__name__})",
            "one JSON object a line, as fedray wrote it",
            "restore it from a copy; without it nobody can say what this owner has spent",
        ) from error
    if torn:
        _cut(path, len(whole) + 1 if whole else 0)
    return releases


def _release(sample_rate: float, noise_multiplier: float, n_steps: int) -> Release:
    release = Release(float(sample_rate), float(noise_multiplier), int(n_steps))
    if not (0 < release.sample_rate <= 1 and release.noise_multiplier > 0 and release.n_steps >= 0):
        raise ValueError("out of range")
    return release


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
