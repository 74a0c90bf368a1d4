"""fedray as a loop among others: a federation on Ray whose records go to disk, as ``fedray run`` has them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from contest import Turn

from fedray.actors.session import RayServer, ray_session
from fedray.checkpoints import CheckpointStore
from fedray.config import Experiment
from fedray.records import RecordWriter
from fedray.values import Vector


class Federation:
    """Rounds of an experiment, with a Ray of their own.

    Args:
        experiment: what is run.
        directory: a new directory for records and what owners keep.
    """

    def __init__(self, experiment: Experiment, directory: Path) -> None:
        with ExitStack() as stack:
            stack.enter_context(ray_session())
            self._server = RayServer(experiment, directory / "owners")
            stack.callback(self._server.close)
            self._writer = RecordWriter(directory, experiment)
            self._store = CheckpointStore(experiment, directory)
            stack.callback(self._writer.close, "interrupted")
            self._stack = stack.pop_all()

    def advance(self, rounds: int) -> list[Turn]:
        """Run so many rounds and write their records; each but the last begins the next before it is written.

        Raises:
            RunError: no owner answers any more.
        """
        return [self._advance(is_last=left == 1) for left in range(rounds, 0, -1)]

    def _advance(self, *, is_last: bool) -> Turn:
        started = time.perf_counter()
        after = self._server.advance()
        assert after is not None, "a round of an experiment that is over"
        self._state, record = after
        if not is_last:
            self._server.begin()
        self._store.write(self._state, record)
        self._writer.write(record)
        seconds = time.perf_counter() - started
        assert record.n_updates == len(record.cohort), "every owner of the cohort gives an update"
        return Turn(seconds, record.at_once, record.evaluation, record.seconds, record.work)

    def vector(self) -> Vector:
        """The global model, shape ``(n_values,)``."""
        return self._state.vector

    def notes(self) -> tuple[str, ...]:
        """How owners are run."""
        return tuple(self._server.notes())

    def close(self) -> None:
        """End the federation and its Ray."""
        self._stack.close()
