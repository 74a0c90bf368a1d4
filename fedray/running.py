"""Run one federation: ``for record in fedray.run(experiment)``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedray.build import check
from fedray.checkpoints import Checkpoint, CheckpointStore
from fedray.config import Experiment, load, validated
from fedray.errors import ConfigError, RecordsError, RunDirectoryError, ServerLost
from fedray.federation import ServerState
from fedray.making import make_module, state_dict
from fedray.mirror import restored
from fedray.places import Here, OnRay, run_of
from fedray.records import PARQUET, STREAM, Status, read_run
from fedray.restarting import Restarting
from fedray.rounds import After, goes_on
from fedray.run_directory import EXPERIMENT, MODEL, OWNERS, held, new_directory
from fedray.values import RoundRecord
from fedray.writing import RunWriter

_MAY_CHANGE = frozenset({"resources", "placement", "faults"})
"""Sections that a run may go on with otherwise than it began."""


class Run:
    """One federation, run as its records are asked for.

    Iterating starts it; leaving the loop early ends it, and ``resume`` goes on with it. A round's checkpoint and record
    are on disk before the record is yielded.

    Attributes:
        experiment: what is run.
        directory: where records, checkpoints and model are written.
        notes: lines that tell the user how owners are run, and what happened to the run; the first are there once the
            first record is.
        before: records of the rounds that an earlier process ran; empty unless the run is resumed.
        rounds_s: for each record so far, seconds from the one before until it was written, the caller's included.
        records_s: of these, how many it took to be written.

    Args:
        experiment: what to run.
        directory: where.
        place: where its processes live.
        is_resumed: whether the directory holds the run's beginning.
    """

    def __init__(self, experiment: Experiment, directory: Path, place: Here | OnRay, *, is_resumed: bool) -> None:
        self.experiment = experiment
        self.directory = directory
        self.notes: list[str] = []
        self.before: Sequence[RoundRecord] = ()
        self.rounds_s: list[float] = []
        self.records_s: list[float] = []
        self._place = place
        self._is_resumed = is_resumed

    def __iter__(self) -> Iterator[RoundRecord]:
        """Yield a record a round.

        Raises:
            FedrayError: see ``fedray.errors``; what was recorded until then is kept.
        """
        with ExitStack() as stack:
            store, newest = self._begun(stack)
            if newest is not None and not goes_on(self.experiment, newest.state):
                self._end(newest.state)
                RunWriter(self.experiment, self.directory, store, self.before, None).close(_ended(newest.state))
                return
            stack.enter_context(self._place.session())
            yield from self._rounds(store, newest.state if newest else None, stack)

    def _begun(self, stack: ExitStack) -> tuple[CheckpointStore, Checkpoint | None]:
        """The run's directory, held by this process alone, and where it goes on."""
        if not self._is_resumed:
            new_directory(self.directory, self.experiment.name)
        stack.enter_context(held(self.directory))
        store = CheckpointStore(self.experiment, self.directory)
        if not self._is_resumed:
            store.require_empty()
            return store, None
        newest = store.newest()
        self.before = rounds_until(self.experiment, self.directory, newest, store)
        return store, newest

    def _rounds(self, store: CheckpointStore, state: ServerState | None, stack: ExitStack) -> Iterator[RoundRecord]:
        status: Status = "failed"
        restarts = self.experiment.faults.server_restarts
        run = run_of(self.experiment, self.directory / OWNERS)
        server = Restarting(
            partial(self._place.open, run=run), state, restarts, lambda lost: self._note_loss(writer, lost)
        )
        stack.enter_context(closing(server))
        before = self.before if self._is_resumed else None
        writer = RunWriter(self.experiment, self.directory, store, before, run)
        stack.callback(lambda: writer.close(status))
        try:
            self.notes += [f"goes on after round {state.round}"] if state else []
            self.notes += server.notes()
            ended = time.perf_counter()
            while (after := server.advance()) is not None:
                state = after[0]
                server.begin()
                ended = self._write(writer, after, ended)
                yield after[1]
            assert state is not None, "an experiment has a round"
            self._end(state)
            status = _ended(state)
        except (KeyboardInterrupt, GeneratorExit):
            status = "interrupted"
            raise

    def _note_loss(self, writer: RunWriter, lost: ServerLost) -> None:
        writer.events.write("server lost", round=writer.round, reason=lost.found)
        self.notes.append(f"{lost.found}; it is started again after round {writer.round}")

    def _end(self, state: ServerState) -> None:
        save_file(state_dict(self.experiment, state.vector), self.directory / MODEL)

    def _write(self, writer: RunWriter, after: After, before: float) -> float:
        """Write a round, and how long that took since the one before; when it was done."""
        started = time.perf_counter()
        writer.write(after)
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
    return Run(experiment, target, _place(experiment, target, in_process, address, timeline), is_resumed=False)


def resume(
    directory: str | Path, *, in_process: bool = False, address: str | None = None, timeline: bool = False
) -> Run:
    """Prepare to go on with a run that was cut off; iterate over it to go on. It yields the rounds that are left.

    Without differential privacy it ends with the bits of a run that was never cut off. With it, noise is drawn anew: a
    round that is done again is charged again.

    Args:
        directory: of the run; or the place of its checkpoints, where they are kept elsewhere: the run directory is then
            made again where it was, if it is gone.
        in_process, address, timeline: as for ``run``; they need not be the same as before.

    Raises:
        RunDirectoryError: no run is there, or it is complete.
        ConfigError, DataError, ModelError: its experiment cannot be read, or no longer fits.
    """
    target = Path(directory)
    if not (target / EXPERIMENT).is_file():
        target = restored(str(directory) if "://" in str(directory) else str(target.absolute()))
    if (target / MODEL).is_file() and (target / PARQUET).is_file():
        raise RunDirectoryError(f"the run in {target} is complete", "one that was cut off", "begin a new run")
    experiment = load(target / EXPERIMENT)
    check(experiment)
    return Run(experiment, target, _place(experiment, target, in_process, address, timeline), is_resumed=True)


def _place(
    experiment: Experiment, directory: Path, in_process: bool, address: str | None, timeline: bool
) -> Here | OnRay:
    return Here(experiment, directory) if in_process else OnRay(experiment, directory, address, timeline)


def _ended(state: ServerState) -> Status:
    return "exhausted" if state.is_exhausted else "complete"


def rounds_until(
    experiment: Experiment, directory: Path, newest: Checkpoint | None, store: CheckpointStore
) -> Sequence[RoundRecord]:
    """Records up to the newest checkpoint, whose own record it brings itself.

    Raises:
        ConfigError: the experiment is not the one on record.
        RecordsError: records were given out of rounds after it, and the run's privacy does not allow to do them again;
            or records of rounds before it are gone.
    """
    found = read_run(directory) if any((directory / name).is_file() for name in (PARQUET, STREAM)) else None
    recorded = found.rounds if found else ()
    if found:
        _require_same(experiment, validated(found.experiment))
    done = newest.state.round if newest else 0
    if recorded and recorded[-1].round > done:
        store.require_repeatable(recorded[-1].round, done)
    kept = [record for record in recorded if record.round < done]
    if len(kept) < done - 1:
        raise RecordsError(
            f"records of {len(kept)} rounds, but a checkpoint of round {done}",
            "the records of all rounds before it",
            f"restore {PARQUET} or {STREAM} from a copy",
        )
    return [*kept, newest.record] if newest else []


def _require_same(experiment: Experiment, before: Experiment) -> None:
    """Refuse to go on with another experiment in an old one's directory; where it runs may change.

    Raises:
        ConfigError: it is another.
    """
    names = Experiment.model_fields.keys() - _MAY_CHANGE
    if changed := sorted(name for name in names if getattr(experiment, name) != getattr(before, name)):
        raise ConfigError(
            f"{EXPERIMENT} is not what the run's records say: {', '.join(changed)}",
            "the experiment that the run began with",
            "undo the change, or begin a new run",
        )


def load_model(experiment: Experiment, directory: str | Path, *, round: int | None = None) -> nn.Module:
    """The trained module of a finished run, or what it was after a round whose checkpoint was kept.

    Raises:
        ConfigError: the experiment has a task of its own instead of a model.
        RunDirectoryError: the directory holds no model.
        RecordsError: the round has no checkpoint that can be read.
    """
    if experiment.task is not None:
        raise ConfigError(
            "a run with a task of its own", "a run with a model", f"read the array 'vector' in {MODEL} yourself"
        )
    module = make_module(experiment)
    with torch.no_grad():
        module.load_state_dict(_tensors(experiment, Path(directory), round))
    return module.eval()


def _tensors(experiment: Experiment, directory: Path, round: int | None) -> Mapping[str, torch.Tensor]:
    if round is not None:
        return state_dict(experiment, CheckpointStore(experiment, directory).read(round).state.vector)
    path = directory / MODEL
    if not path.is_file():
        raise RunDirectoryError(f"no {MODEL} in {directory}", "the directory of a completed run", "check the path")
    tensors: Mapping[str, torch.Tensor] = load_file(path)
    return tensors
