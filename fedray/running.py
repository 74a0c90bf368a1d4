"""Run one federation: ``for record in fedray.run(experiment)``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedray.build import check, open_federation
from fedray.config import Experiment, as_yaml
from fedray.errors import ConfigError, RunDirectoryError
from fedray.making import make_module, state_dict
from fedray.pooling import cohort_here
from fedray.privacy.ledger_file import LedgerFile
from fedray.records import RecordWriter, Status
from fedray.rounds import Server
from fedray.values import RoundRecord, Vector

MODEL = "model.safetensors"
TIMELINE = "timeline.json"


class Federating(Protocol):
    """A federation that has started, wherever it runs."""

    def advance(self) -> RoundRecord | None:
        """Run one round; None when the experiment is over."""

    def begin(self) -> None:
        """Begin the round that will be asked for next, where that goes on by itself and costs nobody privacy."""

    def vector(self) -> Vector:
        """The global model after the last round that was begun."""

    def is_exhausted(self) -> bool:
        """Whether the run ended early, since too few owners have a budget left."""

    def notes(self) -> Sequence[str]:
        """Lines that tell the user how owners are run, where that was not fixed before."""

    def close(self) -> None:
        """Let everything go."""


class InProcessServer:
    """Server and owners in this process."""

    def __init__(self, experiment: Experiment, state_dir: Path) -> None:
        ledger = LedgerFile(state_dir / "ledger.jsonl", "process")
        self._server = Server(open_federation(experiment, cohort_here(experiment), state_dir, ledgers=ledger))

    def advance(self) -> RoundRecord | None:
        return self._server.advance()

    def begin(self) -> None:
        """Nothing goes on by itself here."""

    def vector(self) -> Vector:
        return self._server.vector

    def is_exhausted(self) -> bool:
        return self._server.is_exhausted

    def notes(self) -> Sequence[str]:
        return self._server.federation.cohort.notes

    def close(self) -> None:
        """Nothing to let go."""


class Run:
    """One federation, run as its records are asked for.

    Iterating starts it; leaving the loop early ends it. Records are on disk before they are yielded.

    Attributes:
        experiment: what is run.
        directory: where records and model are written.
        notes: lines that tell the user how owners are run; there once the first record is.
        rounds_s: for each record so far, seconds from the one before until it was written, the caller's included.
        records_s: of these, how many it took to be written.
    """

    def __init__(self, experiment: Experiment, directory: Path, open_server: Callable[[ExitStack], Federating]) -> None:
        self.experiment = experiment
        self.directory = directory
        self.notes: Sequence[str] = ()
        self.rounds_s: list[float] = []
        self.records_s: list[float] = []
        self._open_server = open_server

    def __iter__(self) -> Iterator[RoundRecord]:
        """Yield a record a round.

        Raises:
            FedrayError: see ``fedray.errors``; what was recorded until then is kept.
        """
        status: Status = "failed"
        new_directory(self.directory, self.experiment.name)
        with ExitStack() as stack:
            server = self._open_server(stack)
            writer = RecordWriter(self.directory, self.experiment)
            stack.callback(lambda: writer.close(status))
            (self.directory / "experiment.yaml").write_text(as_yaml(self.experiment))
            try:
                self.notes = server.notes()
                ended = time.perf_counter()
                while (record := server.advance()) is not None:
                    server.begin()
                    ended = self._write(writer, record, ended)
                    yield record
                save_file(state_dict(self.experiment, server.vector()), self.directory / MODEL)
                status = "exhausted" if server.is_exhausted() else "complete"
            except (KeyboardInterrupt, GeneratorExit):
                status = "interrupted"
                raise

    def _write(self, writer: RecordWriter, record: RoundRecord, before: float) -> float:
        """Write a record, and how long that took since the one before; when it was done."""
        started = time.perf_counter()
        writer.write(record)
        ended = time.perf_counter()
        self.rounds_s.append(ended - before)
        self.records_s.append(ended - started)
        return ended


def run(
    experiment: Experiment,
    directory: str | Path | None = None,
    *,
    in_process: bool = False,
    address: str | None = None,
    timeline: bool = False,
) -> Run:
    """Prepare a run; iterate over it to run.

    Args:
        experiment: what to run.
        directory: a new directory for the records; ``runs/NAME-TIME`` when left out.
        in_process: all owners in this process instead of a Ray actor each. The results are the same bits.
        address: address of a Ray cluster; this machine when left out.
        timeline: leave Ray's timeline in ``timeline.json``; in this process there is none.

    Raises:
        ConfigError, DataError, ModelError: found before anything starts.
        RunDirectoryError: the directory exists.
    """
    check(experiment)
    target = new_directory(directory, experiment.name)

    def open_server(stack: ExitStack) -> Federating:
        if in_process:
            return stack.enter_context(closing(InProcessServer(experiment, target / "owners")))
        from fedray.actors.session import RayServer, ray_session, write_timeline

        stack.enter_context(ray_session(address, keeps_events=timeline))
        server = stack.enter_context(closing(RayServer(experiment, target.absolute() / "owners")))
        if timeline:
            stack.callback(write_timeline, target / TIMELINE)
        return server

    return Run(experiment, target, open_server)


def new_directory(directory: str | Path | None, name: str) -> Path:
    """The directory asked for, or ``runs/NAME-TIME``.

    Raises:
        RunDirectoryError: it exists and is not empty.
    """
    target = Path(directory) if directory else Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunDirectoryError(
            f"{target} exists already", "a new or empty directory", "name another, or move the old one away"
        )
    return target


def load_model(experiment: Experiment, directory: str | Path) -> nn.Module:
    """The trained module of a finished run.

    Raises:
        ConfigError: the experiment has a task of its own instead of a model.
        RunDirectoryError: the directory holds no model.
    """
    if experiment.task is not None:
        raise ConfigError(
            "a run with a task of its own", "a run with a model", f"read the array 'vector' in {MODEL} yourself"
        )
    path = Path(directory) / MODEL
    if not path.is_file():
        raise RunDirectoryError(f"no {MODEL} in {directory}", "the directory of a completed run", "check the path")
    module = make_module(experiment)
    with torch.no_grad():
        module.load_state_dict(load_file(path))
    return module.eval()
