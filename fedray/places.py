"""Where a run's processes live: all in this one, or in Ray."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fedray.build import open_federation, run_id
from fedray.config import Experiment
from fedray.config.privacy import NoPrivacy
from fedray.federation import ServerState
from fedray.pooling import cohort_here
from fedray.privacy.ledger_file import LedgerFile
from fedray.restarting import Federating
from fedray.rounds import After
from fedray.run_directory import OWNERS, TIMELINE
from fedray.scheduling import rounds_of


class InProcessServer:
    """Server and owners in this process."""

    def __init__(
        self, experiment: Experiment, state_dir: Path, state: ServerState | None = None, run: str | None = None
    ) -> None:
        ledger = LedgerFile(state_dir / "ledger.jsonl", "process")
        self.federation = open_federation(experiment, cohort_here(experiment), state_dir, ledgers=ledger, run=run)
        self._rounds = rounds_of(experiment)(self.federation, state)

    def advance(self) -> After | None:
        return next(self._rounds, None)

    def begin(self) -> None:
        """Nothing goes on by itself here."""

    def notes(self) -> Sequence[str]:
        return self.federation.cohort.notes

    def close(self) -> None:
        """Nothing to let go."""


@dataclass(frozen=True)
class Here:
    """Where a run's processes live: all in this one."""

    experiment: Experiment
    directory: Path

    def session(self) -> AbstractContextManager[None]:
        """Nothing to start."""
        return nullcontext()

    def open(self, state: ServerState | None, run: str | None = None) -> Federating:
        """Start the federation; ``run`` names the run in owners' ledgers."""
        return InProcessServer(self.experiment, self.directory / OWNERS, state, run)


@dataclass
class OnRay:
    """Where a run's processes live: in Ray, on a cluster or on this machine.

    Attributes:
        address: of a cluster; None for this machine.
        timeline: whether Ray's timeline is left in the run directory.
        n_opened: how often the federation was started.
    """

    experiment: Experiment
    directory: Path
    address: str | None
    timeline: bool
    n_opened: int = 0

    def session(self) -> AbstractContextManager[None]:
        """Start Ray, or connect to it."""
        from fedray.actors.session import ray_session

        return ray_session(self.address, keeps_events=self.timeline)

    def open(self, state: ServerState | None, run: str | None = None) -> Federating:
        """Start the federation; ``run`` names the run in owners' ledgers.

        Raises:
            FedrayError: see ``RayServer``.
        """
        from fedray.actors.session import RayServer

        state_dir = self.directory.absolute() / OWNERS
        timeline = self.directory / TIMELINE if self.timeline else None
        self.n_opened += 1
        return RayServer(
            self.experiment,
            state_dir,
            state,
            run,
            timeline=timeline,
            label=self.directory.name,
            is_restart=self.n_opened > 1,
        )


def run_of(experiment: Experiment, state_dir: Path) -> str | None:
    """What the run is called in owners' ledgers, now and when it is resumed; None where it spends no privacy."""
    return None if isinstance(experiment.privacy, NoPrivacy) else run_id(state_dir)
