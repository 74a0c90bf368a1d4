"""Which rounds an owner has sealed an update for, on its own disk, so that a round number is used once.

Two sums of the same round over different owners would differ by single updates; an owner that was restarted in between
must not help to make them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedray.errors import ConfigError, ProtocolError


class Journal:
    """The last round sealed of each run, or of all.

    Args:
        path: where it is kept; made when first used.
        believes_runs: whether the server is believed when it says that a run is another one. Where it is, a run that
            goes on after its server was lost may seal its last round again.

    Raises:
        ConfigError: what is there cannot be read.
    """

    def __init__(self, path: Path, believes_runs: bool) -> None:
        self._path = path
        self._believes_runs = believes_runs
        self._last = _read(path)

    def require_unused(self, run: bytes, round: int) -> None:
        """Refuse a round that was sealed already, or that a later one was sealed after.

        Raises:
            ProtocolError: it was.
        """
        if round <= (last := self._last.get(self._name(run), 0)):
            raise ProtocolError(f"round {round} again", f"a round after {last}, the last sealed", "suspect a replay")

    def use(self, run: bytes, round: int) -> None:
        """Write down that a round is being sealed, before it is.

        Raises:
            ProtocolError: it was sealed before.
        """
        self.require_unused(run, round)
        self._last[self._name(run)] = round
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._last))
        os.replace(partial, self._path)

    def _name(self, run: bytes) -> str:
        return run.hex() if self._believes_runs else "any run"


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(run): int(round) for run, round in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__})",
            "the journal of rounds that this owner has sealed",
            "restore it from a copy; without it a round could be replayed",
        ) from error
