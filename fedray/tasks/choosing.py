"""How many owners to train at once in this process: measured on made-up rows, on this process's device.

One computation for many owners saves what a step costs beyond its arithmetic, and for small models that is nearly all.
For larger ones it saves nothing, and the stacked parameters leave the caches. So a short ladder is climbed for as long
as it gets faster, and what is found is used only where it is clearly faster than one owner after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import torch

from fedray.protocols import Job
from fedray.tasks import made_up
from fedray.tasks.device import ROWS_SHARE, memory_of
from fedray.tasks.many import ManyOwners
from fedray.tasks.torch_task import TorchTask
from fedray.tasks.treatable import treatable
from fedray.values import Assignment, Choice, Schema, Work

LADDER = (4, 8, 16, 32, 64, 128)
WORTH_IT = 0.85
"""Owners are trained together where that takes at most this part of the time."""
AS_GOOD = 1.05
"""A lower rung is as good as the best if it takes at most so many times as long."""
MEMORY = 256 * 2**20
"""Bytes that a group's rows, parameters and gradients may take on the CPU."""
N_STEPS = 8
"""Steps of the longest owner in a measurement; those of the others in proportion."""
ALLOWANCE_S = 0.12
"""Seconds that repetitions of one measurement may take."""
PATIENCE_S = 1.5
"""Seconds after which no further rung is tried."""


def choose(task: TorchTask, schema: Schema, sizes: Sequence[int], assignment: Assignment) -> Choice:
    """Measure, and choose what is fastest.

    Args:
        task: what owners learn; nobody's account is charged.
        schema: what their rows look like.
        sizes: rows of the owners that this process trains in a round, or of a sample of them.
        assignment: what they are asked in a round.
    """
    crew = _Crew(task, schema, sizes, assignment)
    alone = crew.seconds(1)
    if reason := _reason(task, schema, sizes, assignment):
        return Choice(1, f"one owner at a time: {reason}", alone)
    climbed = _climb(crew)
    if not climbed:
        return Choice(1, f"one owner at a time: {LADDER[0]} take too much memory", alone)
    best = min(rung for rung in climbed if climbed[rung] <= AS_GOOD * min(climbed.values()))
    if climbed[best] > WORTH_IT * alone:
        tried = f"{_ms(alone)} ms an owner, and {best} at a time {_ms(climbed[best])}"
        return Choice(1, f"one owner at a time: {tried}", alone)
    line = f"{best} owners at a time: {_ms(climbed[best])} ms an owner instead of {_ms(alone)}"
    return Choice(best, line, climbed[best])


def _climb(crew: _Crew) -> dict[int, float]:
    """Seconds an owner by rung, until the fastest is two rungs below, or time or memory are at their end."""
    started, climbed = time.perf_counter(), dict[int, float]()
    for rung in takewhile(crew.has_room, LADDER):
        climbed[rung] = crew.seconds(rung)
        fastest = min(climbed, key=lambda one: climbed[one])
        if fastest not in list(climbed)[-2:] or time.perf_counter() - started > PATIENCE_S:
            break
    return climbed


def _reason(task: TorchTask, schema: Schema, sizes: Sequence[int], assignment: Assignment) -> str | None:
    """Why owners are not even tried together."""
    if len(sizes) < LADDER[0]:
        return f"there are {len(sizes)}"
    if assignment.deadline_s is not None:
        return "their work has a deadline"
    return treatable(task, schema)


class _Crew:
    """Made-up owners of the sizes in question; the middle ones stand for all."""

    def __init__(self, task: TorchTask, schema: Schema, sizes: Sequence[int], assignment: Assignment) -> None:
        places = np.linspace(0, 1, min(len(sizes), LADDER[-1]))
        sizes = [max(1, int(size)) for size in np.quantile(sizes, places, method="nearest")]
        counts = [task.descent.rehearsal(size).count(assignment, size) for size in sizes]
        share = min(1.0, N_STEPS / max(counts))
        works = [Work(max(1, round(share * count)), "steps") for count in counts]
        self._task = task
        self._jobs = made_up.jobs(task, schema, sizes, works, assignment)
        self._whole = float(np.mean(counts))
        self._vector = task.initial(0)

    def seconds(self, at_once: int) -> float:
        """Time that one owner's round takes, so many at a time."""
        jobs = self._middle(max(at_once, 2))
        many = ManyOwners(self._task, at_once)
        many.train(self._vector, jobs[:1])  # what is done once a process, PyTorch's and ours
        n_steps = sum(job.assignment.work.amount for job in jobs)
        return _best(lambda: many.train(self._vector, jobs)) / n_steps * self._whole

    def has_room(self, at_once: int) -> bool:
        """Whether there are so many owners, and the memory for them."""
        if at_once > len(self._jobs):
            return False
        if self._task.device.type != "cuda":
            return sum(map(self._bytes, self._middle(at_once))) <= MEMORY
        room = (1 - ROWS_SHARE) * memory_of(self._task.device)
        return 2 * torch.cuda.max_memory_allocated(self._task.device) <= room

    def _bytes(self, job: Job) -> int:
        """Rows, and what training holds a parameter: value, gradient, two moments, one more for what is in between.

        With privacy it is a gradient a row, twice: as they come and clipped.
        """
        train, values = job.shard.train, 4 * self._vector.size
        draws = self._task.descent.rehearsal(len(train)).draw(job.assignment, len(train), job.seed)
        n_rows = draws.clipping.expected_batch_size if draws.clipping else 0
        return train.features.nbytes + train.targets.nbytes + values * (5 + 2 * int(n_rows))

    def _middle(self, n: int) -> list[Job]:
        start = (len(self._jobs) - n) // 2
        return self._jobs[max(0, start) : max(0, start) + n]


def _best(run: Callable[[], object]) -> float:
    """Shortest time of a few runs, in seconds; of one, if it is long."""
    found = [_timed(run)]
    while len(found) < 5 and sum(found) < ALLOWANCE_S:
        found.append(_timed(run))
    return min(found)


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
