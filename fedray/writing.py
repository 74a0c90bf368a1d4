"""What a run writes of each round, and in which order: the checkpoint, then the record, then the event."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedray.build import keep_run_id
from fedray.checkpoints import CheckpointStore
from fedray.config import Experiment, as_yaml
from fedray.events import EVENTS, EventLog
from fedray.files import put
from fedray.mirror import Mirror
from fedray.records import RecordWriter, Status
from fedray.rounds import After
from fedray.run_directory import EXPERIMENT, OWNERS
from fedray.values import RoundRecord


class RunWriter:
    """Writes into one run directory, and beside checkpoints that are kept elsewhere.

    Attributes:
        events: what happened in the run.
        round: the last round written.

    Args:
        experiment: what is run.
        directory: the run directory.
        store: takes the checkpoints.
        before: records of rounds that the run has done already; None for a run that begins.
        run: what it is called in owners' ledgers; None where it spends no privacy.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path,
        store: CheckpointStore,
        before: Sequence[RoundRecord] | None,
        run: str | None,
    ) -> None:
        if run:
            keep_run_id(directory / OWNERS, run)
        put(directory / EXPERIMENT, as_yaml(experiment).encode())
        self._store = store
        self._records = RecordWriter(directory, experiment, before)
        self._mirror = Mirror(experiment, directory) if experiment.checkpoints.path else None
        self.events = EventLog(directory / EVENTS, directory.name)
        self.round = before[-1].round if before else 0
        self.events.write("run started" if before is None else "resumed", round=self.round)

    def write(self, after: After) -> None:
        """Write one round; its checkpoint is there before anything else tells of it.

        Raises:
            RunError: the checkpoint cannot be written.
        """
        state, record = after
        self._store.write(state, record)
        if self._mirror:
            self._mirror.write(record)
        self._records.write(record)
        self.events.round_ended(record)
        self.round = record.round

    def close(self, status: Status) -> None:
        """End the records."""
        self._records.close(status)
        self.events.write("run ended", round=self.round, reason=status)
        self.events.close()
