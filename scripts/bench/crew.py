"""The floors' rounds: owners dealt to processes, the mean of what they give, and the new model sent out again.

One process a core; the first of them also deals and adds up. The model and every process's sum lie in memory that all
share; pipes carry the numbers of owners, and a word when they are trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from ctypes import Array, c_float
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from contest import Turn
from floors import Floor, Rows
from numpy.typing import NDArray

from fedray import data
from fedray.config import Experiment
from fedray.making import make_module
from fedray.selection import cohort_of_round
from fedray.tasks.randomness import own_randomness
from fedray.vectors import Layout

LADDER = (4, 8, 16, 32, 64, 128)
"""Numbers of owners at once that are tried."""
NOT_WORSE = 1.2
"""The next number is tried for as long as this one takes at most so many times the shortest time."""


class Crew:
    """Processes that each train a part of a round's owners, on one thread each.

    Args:
        experiment: what is learned.
        folder: where ``write_rows`` wrote the owners' rows.
        processes: how many, this one among them.
        device: where they compute.

    Attributes:
        vector: the model that owners start from, shape ``(n_values,)``; in shared memory.
    """

    def __init__(self, experiment: Experiment, folder: Path, processes: int, device: str) -> None:
        opens = _Opens(experiment, folder, device)
        context = get_context("spawn")
        self._floor = opens()
        shared, *sums = [context.RawArray(c_float, self._floor.n_values) for _ in range(processes)]
        self.vector, self._sums = _array(shared), [_array(one) for one in sums]
        pairs = [context.Pipe() for _ in sums]
        self._pipes = [ours for ours, _ in pairs]
        self._workers = [
            context.Process(target=_work, args=(opens, theirs, shared, one))
            for (_, theirs), one in zip(pairs, sums, strict=True)
        ]
        for worker, (_, theirs) in zip(self._workers, pairs, strict=True):
            worker.start()
            theirs.close()
        for pipe in self._pipes:
            pipe.recv()

    def train(self, round: int, owners: Sequence[int], at_once: int) -> NDArray[np.float32]:
        """Mean of the owners' deltas, weighted by rows; see ``Floor.train``."""
        first, *others = dealt(owners, self._floor.steps, 1 + len(self._workers))
        for pipe, part in zip(self._pipes, others, strict=True):
            pipe.send((round, part, at_once))
        total = self._floor.train(self.vector, round, first, at_once).numpy()
        for pipe, summed in zip(self._pipes, self._sums, strict=True):
            pipe.recv()
            total += summed
        return total / np.float32(self._floor.n_rows(owners))

    def close(self) -> None:
        """End the other processes."""
        for pipe, worker in zip(self._pipes, self._workers, strict=True):
            pipe.close()
            worker.join()


class _Opens:
    """``Floor`` over the rows of a folder, in whatever process it is sent to."""

    def __init__(self, experiment: Experiment, folder: Path, device: str) -> None:
        self._arguments = experiment, folder, device

    def __call__(self) -> Floor:
        experiment, folder, device = self._arguments
        torch.set_num_threads(1)
        return Floor(experiment, Rows.read(folder, device), device)


def _work(opens: _Opens, pipe: Connection, shared: Array[c_float], summed: Array[c_float]) -> None:
    floor, vector, out = opens(), _array(shared), _array(summed)
    pipe.send("ready")
    while True:
        try:
            round, owners, at_once = pipe.recv()
        except EOFError:
            return
        out[:] = floor.train(vector, round, owners, at_once).numpy()
        pipe.send("done")


def _array(shared: Array[c_float]) -> NDArray[np.float32]:
    return np.frombuffer(shared, dtype=np.float32)


def dealt(owners: Iterable[int], cost: Callable[[int], int], n_parts: int) -> list[list[int]]:
    """Owners in so many parts: the costliest first, each to the part that has least."""
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    loads = [0] * n_parts
    for owner in sorted(owners, key=cost, reverse=True):
        place = loads.index(min(loads))
        parts[place].append(owner)
        loads[place] += cost(owner)
    return parts


class BareLoop:
    """Rounds of federated averaging over the cohorts that fedray draws.

    Args:
        experiment: what is learned; its rounds may go on beyond what it says.
        folder: where ``write_rows`` wrote the owners' rows.
        processes: processes that train.
        device: where they compute.
        is_vectorised: many owners in one computation, as many as is fastest; else one after the other.
    """

    def __init__(self, experiment: Experiment, folder: Path, processes: int, device: str, is_vectorised: bool) -> None:
        self._experiment = experiment
        self._names = data.owner_names(experiment.data)
        self._crew = Crew(experiment, folder, processes, device)
        with own_randomness(experiment.seed, torch.device("cpu")):
            self._crew.vector[:] = Layout(make_module(experiment)).read()
        self._round = 0
        self._at_once = self._fastest() if is_vectorised else 1

    def advance(self, rounds: int) -> list[Turn]:
        """Do so many rounds."""
        return [self._advance() for _ in range(rounds)]

    def vector(self) -> NDArray[np.float32]:
        """The model, shape ``(n_values,)``."""
        return self._crew.vector.copy()

    def close(self) -> None:
        """End the processes."""
        self._crew.close()

    def _advance(self) -> Turn:
        started = time.perf_counter()
        self._round += 1
        self._crew.vector += self._crew.train(self._round, self._cohort(self._round), self._at_once)
        return Turn(time.perf_counter() - started, self._at_once)

    def _cohort(self, round: int) -> list[int]:
        experiment = self._experiment
        names = cohort_of_round(experiment.cohort, self._names, experiment.seed, round)
        return [self._names.index(name) for name in names]

    def _fastest(self) -> int:
        """The number of owners at once at which the first cohort is trained fastest; nothing is learned meanwhile."""
        owners, found = self._cohort(1), dict[int, float]()
        for at_once in LADDER:
            found[at_once] = min(self._timed(owners, at_once) for _ in range(2))
            if found[at_once] > NOT_WORSE * min(found.values()) or at_once >= len(owners):
                break
        return min(found, key=lambda at_once: found[at_once])

    def _timed(self, owners: Sequence[int], at_once: int) -> float:
        started = time.perf_counter()
        self._crew.train(1, owners, at_once)
        return time.perf_counter() - started
