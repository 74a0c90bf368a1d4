"""Owners that are not waited for any longer: not asked again before they are done, and started anew if they never are.

``ray.cancel`` does not stop a method that runs, so that whoever hangs can only be ended with its process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import ray

from fedray.actors.crew import Crew

TIMES = 10
"""How many times as long as it was waited for an owner may take until it counts as hung."""
HUNG_S = 60.0
"""How long it may take at least."""


class Late:
    """Calls whose answers nobody reads any more. Safe to use from several threads.

    Args:
        crew: the owners' actors.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._calls: dict[str, tuple[Any, float]] = {}

    def add(self, owner: str, call: Any, waited_s: float) -> None:
        """Note a call that was waited for so many seconds."""
        self._calls[owner] = (call, time.monotonic() + max(HUNG_S, (TIMES - 1) * waited_s))

    def is_busy(self, owner: str) -> bool:
        """Whether an owner is not done yet. One that hangs has its process ended, and is done once another is there."""
        call, hangs_at = self._calls.get(owner, (None, 0.0))
        if call is None:
            return False
        if ray.wait([call], timeout=0, fetch_local=False)[0]:
            self._calls.pop(owner, None)
            return False
        if time.monotonic() >= hangs_at:
            self._crew.restart(owner)
            self._calls[owner] = (call, time.monotonic() + HUNG_S)
        return True

    def wait(self, owners: Iterable[str], patience_s: float) -> None:
        """Wait until one of these owners is done."""
        calls = [self._calls[owner][0] for owner in owners if owner in self._calls]
        if calls:
            ray.wait(calls, timeout=patience_s, fetch_local=False)
