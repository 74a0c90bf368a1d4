"""The last round that an owner has sealed an update for, on its own disk, so that a round number is used once.

Two sums of the same round over different owners differ by single updates. So an owner that was restarted, or whose
server was, does not help to make a second one, whatever the server calls the run: where a server was lost in the
middle of a round, that round is abandoned.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedray.errors import ConfigError, ProtocolError


class Journal:
    """The number of the last round sealed.

    Args:
        path: where it is kept, in a folder that one owner has for one run; made when first used.

    Raises:
        ConfigError: what is there cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = _read(path)

    def require_unused(self, round: int) -> None:
        """Refuse a round that was sealed already, or that a later one was sealed after.

        Raises:
            ProtocolError: it was.
        """
        if round <= self._last:
            raise ProtocolError(
                f"round {round} again",
                f"a round after {self._last}, the last sealed",
                "go on with the next round where a server was lost; suspect a replay where none was",
            )

    def use(self, round: int) -> None:
        """Write down that a round is being sealed, before it is.

        Raises:
            ProtocolError: it was sealed before.
        """
        self.require_unused(round)
        self._last = round
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"last_sealed_round": round}))
        os.replace(partial, self._path)


def _read(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["last_sealed_round"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__})",
            "the journal of rounds that this owner has sealed",
            "restore it from a copy; without it a round could be replayed",
        ) from error
