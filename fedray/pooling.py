"""From an experiment to pools of its simulated owners, made in whatever process they live in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch

from fedray import data
from fedray.config import Experiment
from fedray.config.experiment import Pooled
from fedray.making import any_task
from fedray.open_owners import OpensOwner
from fedray.pools import Choice, InProcessCohort, InProcessPool, OneByOne, Place, Pool
from fedray.protecting import make_adder
from fedray.protocols import Cohort, Task, Trainer
from fedray.tasks.descent import ShuffledDescent
from fedray.values import Population

_BUDGET_BYTES = 2**27
"""Rows that a pool keeps in memory."""


class PoolMaker:
    """Makes pools of one experiment's owners.

    Args:
        experiment: the experiment.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def open(self, openers: Mapping[str, OpensOwner], place: Place | None = None) -> Pool:
        """A pool of these owners, which trains them one by one until it is told otherwise."""
        adder = make_adder(self._experiment, len(self._task.initial(0)))
        return Pool(openers, OneByOne(), adder, place, _BUDGET_BYTES)

    def choose(self, sizes: Sequence[int]) -> Choice:
        """How many owners are best trained at once here; ``sizes`` are training rows of some of them."""
        return Choice(1, "")

    def trainer(self, at_once: int) -> Trainer:
        """What trains so many owners at once."""
        return OneByOne()

    @cached_property
    def _task(self) -> Task:
        experiment = self._experiment
        assert isinstance(experiment.simulation, Pooled)
        device = "cuda" if experiment.simulation.pool_gpus and torch.cuda.is_available() else "cpu"
        descent = ShuffledDescent(experiment.train.batch_size)
        return any_task(experiment, data.schema_of(experiment.data), descent, device)


def known_population(experiment: Experiment) -> Population | None:
    """All owners, where their rows can be counted without opening any."""
    sizes = data.sizes_of(experiment.data)
    return None if sizes is None else Population(data.owner_names(experiment.data), sizes.n_train, sizes.n_holdout)


def cohort_here(experiment: Experiment) -> Callable[[Mapping[str, OpensOwner]], Cohort]:
    """Opens all owners in this process."""
    if not isinstance(experiment.simulation, Pooled):
        return InProcessCohort
    at_once = None if experiment.simulation.at_once == "auto" else experiment.simulation.at_once
    return partial(InProcessPool, makes=PoolMaker(experiment), at_once=at_once, population=known_population(experiment))
