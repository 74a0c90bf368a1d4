"""Runs in child processes that die by SIGKILL where they are told to; imported as ``killing``.

Children come from multiprocessing's fork server, which has imported fedray already: each costs milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedray import run, running
from fedray.config import validated
from fedray.records import PARQUET, RecordWriter, RunRecords, read_run
from fedray.run_directory import EXPERIMENT, MODEL
from fedray.values import RoundRecord

_CHILDREN = multiprocessing.get_context("forkserver")
_CHILDREN.set_forkserver_preload(
    [
        "fedray.running",
        "fedray.bounding",
        "fedray.privacy.dp_sgd",
        "fedray.protection.homomorphic.owner",
        "fedray.protection.homomorphic.key_holder",
        "fedray.protection.homomorphic.server",
        "fedray.protection.masked.owner",
        "fedray.protection.masked.server",
        "pandas",
    ]
)
_STEPS = {"open", "os.rename", "os.remove", "os.mkdir"}
"""Audit events before which a process may die: whatever is done to files."""


@dataclass(frozen=True)
class Before:
    """A place in a run: before something is done to a file for the n-th time.

    Attributes:
        text: part of the file's path.
        times: which time, from 1.
        event: what is done; ``record`` stands for before and after a record is written. Anything when left out.
    """

    text: str = ""
    times: int = 1
    event: str = ""


class _Steps:
    """Counts what is done in a run directory, and kills this process before one of them."""

    def __init__(self, directory: Path, place: Before | None) -> None:
        self._directory, self._place = str(directory), place
        self.n_done = self._n_found = 0

    def watch(self) -> None:
        sys.addaudithook(self._hear)
        write = RecordWriter.write

        def watched(writer: RecordWriter, record: RoundRecord) -> None:
            self._step("record", "")
            write(writer, record)
            self._step("record", "")

        RecordWriter.write = watched  # type: ignore[method-assign]  # in this child alone

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        paths = " ".join(str(one) for one in arguments)
        if event in _STEPS and self._directory in paths:
            self._step(event, paths)

    def _step(self, event: str, paths: str) -> None:
        self.n_done += 1
        place = self._place
        if place and place.text in paths and place.event in event:
            self._n_found += 1
            if self._n_found == place.times:
                os.kill(os.getpid(), signal.SIGKILL)


def _child(settings: Mapping[str, Any], directory: Path, place: Before | None, counted: Any) -> None:
    torch.set_num_threads(1)
    steps = _Steps(directory, place)
    steps.watch()
    is_begun = (directory / EXPERIMENT).is_file()
    for _ in running.resume(directory, in_process=True) if is_begun else _new(settings, directory):
        pass
    counted.value = steps.n_done


def _new(settings: Mapping[str, Any], directory: Path) -> running.Run:
    """Begin; what a process left that was killed before it had begun is no run."""
    shutil.rmtree(directory, ignore_errors=True)
    return run(validated(settings), directory, in_process=True)


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        is_killed: whether by SIGKILL; else all went well.
        n_steps: how often it did something to a file; 0 where it was killed.
    """

    is_killed: bool
    n_steps: int


def run_until(
    settings: Mapping[str, Any], directory: Path, place: Before | None = None, seconds: float | None = None
) -> Ended:
    """Begin a run in a child, or go on with it, until it ends or is killed at a place or after some seconds."""
    counted = _CHILDREN.Value("i", 0)
    child = _CHILDREN.Process(target=_child, args=(settings, directory, place, counted))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"a child ended with {child.exitcode}"
    return Ended(child.exitcode != 0, counted.value)


def killed_again_and_again(settings: Mapping[str, Any], directory: Path, n_steps: int, seed: str) -> None:
    """Kill a run at random places and moments, some times, and go on with it until it ends by itself.

    Args:
        settings: of the experiment.
        directory: of the run.
        n_steps: how often it does something to a file if it is left alone; the first kill comes before half of that.
        seed: of the places and moments.
    """
    draw = random.Random(seed)
    assert run_until(settings, directory, Before(times=draw.randint(1, n_steps // 2))).is_killed
    for number in range(4):
        place = Before(times=draw.randint(1, n_steps))
        run_until(settings, directory, *((None, draw.uniform(0.02, 0.5)) if number % 2 else (place, None)))
        if is_complete(directory):
            return
    assert not run_until(settings, directory).is_killed


def is_complete(directory: Path) -> bool:
    """Whether nothing is left to do."""
    return all((directory / name).is_file() for name in (MODEL, PARQUET))


def figures(found: RunRecords) -> list[RoundRecord]:
    """All that is on record but times."""
    return [
        replace(
            record,
            seconds={},
            work={},
            owners=tuple(replace(owner, seconds=0.0) for owner in record.owners),
        )
        for record in found.rounds
    ]


def figures_in(directory: Path, change: Callable[[RoundRecord], RoundRecord] = lambda record: record) -> Any:
    """What a run has left on record but times, and the bytes of its model."""
    model = (directory / "model.safetensors").read_bytes()
    return model, [change(record) for record in figures(read_run(directory))]
