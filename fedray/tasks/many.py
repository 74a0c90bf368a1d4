"""Many owners' training as one computation, and their evaluation in common batches.

The result is what each owner's own training gives, up to the rounding of sums in another order; draws, charges and
noise are each owner's own and the same. For small models this is several times as fast, for large ones it is not: see
``fedray.tasks.choosing``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedray.errors import FedrayError, ModelError, OwnerError, ProtocolError
from fedray.protocols import Job, Task
from fedray.tasks.descent import Clipping, Descent, Draws, steps_of
from fedray.tasks.device import Pair
from fedray.tasks.losses import Metric, per_row
from fedray.tasks.padded import Steps
from fedray.tasks.proximal import pull_to
from fedray.tasks.randomness import own_randomness
from fedray.tasks.stacked import ClippedGradients, Gradients, MeanGradients, keep_leading
from fedray.tasks.torch_task import Bench, TorchTask, update_of
from fedray.values import Examples, Tally, Update, Vector

CPU_ROWS = 128
"""Rows evaluated at a time on the CPU, at most: what a convolution makes of more leaves the caches."""

REFUSALS = (OwnerError, ProtocolError)
"""What an owner answers instead of an update, while the others go on."""


class ManyOwners:
    """Trains owners together.

    Args:
        task: any of the owners' tasks; all are made from one by ``TorchTask.sharing``.
        at_once: owners in one computation; 1 trains one after the other.
    """

    rows_at_once = 4096

    def __init__(self, task: TorchTask, at_once: int) -> None:
        self._task = task
        self.at_once = at_once

    def train(self, vector: Vector, jobs: Sequence[Job]) -> list[Update | FedrayError]:
        """Every job's update, in the order of jobs; in its place an error where an owner refused.

        Owners are charged as their group begins. One whose work has a deadline is trained by itself: in a group,
        nobody could say whose time it was.

        Raises:
            ModelError: the vector has another length, or the loss is the user's own, of which only the mean is known.
            RuntimeError: from PyTorch, where ``treatable`` says why owners cannot be trained together.
        """
        found: dict[int, Update | FedrayError] = {}
        together = []
        for number, job in enumerate(jobs):
            if self.at_once == 1 or job.assignment.deadline_s is not None:
                found[number] = _alone(vector, job)
            else:
                together.append(number)
        for group in self._groups(jobs, together):
            found |= zip(group, self._train_group(vector, [jobs[number] for number in group]), strict=True)
        return [found[number] for number in range(len(jobs))]

    def _groups(self, jobs: Sequence[Job], numbers: Iterable[int]) -> Iterator[list[int]]:
        """Numbers of jobs that go together: under one proximal term, and as alike in steps and rows as can be."""

        def proximal_mu(number: int) -> float:
            return jobs[number].assignment.plan.proximal_mu

        def place(number: int) -> tuple[float, int, int]:
            return (
                proximal_mu(number),
                -_descent_of(jobs[number]).count(jobs[number].assignment, len(jobs[number].shard.train)),
                -len(jobs[number].shard.train),
            )

        for _, alike in groupby(sorted(numbers, key=place), proximal_mu):
            some = list(alike)
            yield from (some[start : start + self.at_once] for start in range(0, len(some), self.at_once))

    def _train_group(self, vector: Vector, jobs: Sequence[Job]) -> list[Update | FedrayError]:
        self._bench.layout.write(vector)
        drawn = [_draws(job) for job in jobs]
        going = [(job, draws) for job, draws in zip(jobs, drawn, strict=True) if isinstance(draws, Draws)]
        with own_randomness(0, self._task.device):
            updates = iter(self._descend(vector, going) if going else [])
        return [next(updates) if isinstance(draws, Draws) else draws for draws in drawn]

    def _descend(self, vector: Vector, going: Sequence[tuple[Job, Draws]]) -> list[Update]:
        """Updates of owners that come with most steps first."""
        layout = self._bench.layout
        self._bench.module.train()
        start = torch.tensor(vector, device=self._task.device).unsqueeze(0)
        values = start.repeat(len(going), 1)
        parameters = {name: nn.Parameter(one) for name, one in layout.stacked(values).items()}
        optimizer = self._task.make_optimizer(iter(parameters.values()))
        steps = steps_of(self._bench.module, optimizer)
        mu = going[0][0].assignment.plan.proximal_mu
        pull_to(optimizer, list(parameters.values()), list(layout.stacked(start).values()), mu)
        pairs = [self._task.rows.of(job.shard.train) for job, _ in going]
        gradients = self._gradients([draws.clipping for _, draws in going])
        for batch in Steps(pairs, [list(draws.batches) for _, draws in going]).batches():
            keep_leading(optimizer, parameters, len(batch))
            steps.clear()
            gradients.leave(parameters, batch)
            steps.step()
        deltas: Vector = values.sub_(start).cpu().numpy()
        return [_ended(job, draws, delta) for (job, draws), delta in zip(going, deltas, strict=True)]

    def _gradients(self, clippings: Sequence[Clipping | None]) -> Gradients:
        module, loss = self._bench.module, self._task.loss
        private = [clipping for clipping in clippings if clipping is not None]
        return ClippedGradients(module, loss, private) if private else MeanGradients(module, loss)

    @cached_property
    def _bench(self) -> Bench:
        """A module without anybody's hooks."""
        return Bench(self._task.make_module, self._task.device, lambda module: module)

    def evaluate(self, vector: Vector, task: Task, examples: Sequence[Examples]) -> list[Tally]:
        """Every owner's sums, in order, as ``task.evaluate`` gives them.

        Rows of many owners share batches; under a loss of the user's own, of which only the mean is known, they do not.
        """
        try:
            loss = per_row(self._task.loss)
        except ModelError:
            return [task.evaluate(vector, one) for one in examples]
        named = {"loss": loss, **self._task.metrics}
        rows = self._values(vector, examples, named)
        ends = np.cumsum([len(one) for one in examples])
        sums = [rows[:, end - len(one) : end].sum(1).tolist() for end, one in zip(ends, examples, strict=True)]
        return [Tally(dict(zip(named, own, strict=True)), len(one)) for own, one in zip(sums, examples, strict=True)]

    @torch.no_grad()
    def _values(self, vector: Vector, examples: Sequence[Examples], named: Mapping[str, Metric]) -> NDArray[np.float64]:
        """Every row's figures, of shape ``(figures, rows)``."""
        self._bench.layout.write(vector)
        module = self._bench.module.eval()
        found = [np.zeros((len(named), 0))]
        with own_randomness(0, self._task.device):
            for features, targets in self._batches(examples):
                outputs = module(features)
                values = torch.stack([value(outputs, targets).double() for value in named.values()])
                found.append(values.cpu().numpy())
        return np.concatenate(found, axis=1)

    @property
    def _n_rows(self) -> int:
        """Rows that are evaluated at a time."""
        most = self._task.evaluation_batch_size
        return most if self._task.device.type == "cuda" else min(most, CPU_ROWS)

    def _batches(self, examples: Sequence[Examples]) -> Iterator[Pair]:
        """Rows of all owners one after the other, as many at a time as are evaluated at once."""
        size, waiting, n_rows = self._n_rows, list[Pair](), 0
        for number, one in enumerate(examples, 1):
            waiting.append(self._task.rows.of(one))
            n_rows += len(one)
            if n_rows and (n_rows >= size or number == len(examples)):
                features, targets = (torch.cat(parts) for parts in zip(*waiting, strict=True))
                yield from zip(features.split(size), targets.split(size), strict=True)
                waiting, n_rows = [], 0


def _alone(vector: Vector, job: Job) -> Update | FedrayError:
    try:
        return job.task.train(vector, job.assignment, job.shard, job.seed)
    except REFUSALS as error:
        return error


def _draws(job: Job) -> Draws | FedrayError:
    try:
        return _descent_of(job).draw(job.assignment, len(job.shard.train), job.seed)
    except REFUSALS as error:
        return error


def _descent_of(job: Job) -> Descent:
    assert isinstance(job.task, TorchTask), "a task that ManyOwners was not made for"
    return job.task.descent


def _ended(job: Job, draws: Draws, delta: Vector) -> Update:
    _descent_of(job).end(job.assignment, draws.n_steps)
    return update_of(delta, job.assignment, job.shard, draws.n_steps, draws.n_steps)
