"""From an experiment to pools of its simulated owners, made in whatever process they live in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch

from fedray import data
from fedray.config import Experiment
from fedray.config.cluster import Pooled
from fedray.errors import ConfigError
from fedray.guarding import descent_like
from fedray.making import any_task, make_strategy
from fedray.measured import remembered
from fedray.open_owners import OpensOwner
from fedray.pools import InProcessCohort, InProcessPool, OneByOne, Place, Pool
from fedray.protecting import make_adder
from fedray.protocols import Cohort, Task, Trainer
from fedray.tasks.choosing import choose
from fedray.tasks.device import take_share
from fedray.tasks.many import ManyOwners
from fedray.tasks.torch_task import TorchTask
from fedray.tasks.treatable import is_evaluated_alike, treatable
from fedray.values import Assignment, Choice, Population, Schema

_BUDGET_BYTES = 2**28
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
        """How many owners are trained at once here: as configured, or what is best for owners of these ``sizes``."""
        found = self._chosen(sizes)
        if not self._lacks_gpu:
            return found
        return replace(found, line="; ".join(filter(None, ["no GPU that PyTorch can use: on the CPU", found.line])))

    def _chosen(self, sizes: Sequence[int]) -> Choice:
        if self._simulation.at_once != "auto":
            return Choice(self._simulation.at_once, "")
        if not isinstance(self._task, TorchTask):
            return Choice(1, "one owner at a time: the task is your own")
        found = remembered(
            self._experiment, self._task.device, partial(choose, self._task, self._schema, sizes, self._asked)
        )
        if found.at_once > 1 and (reason := treatable(self._task, self._schema)):
            return Choice(1, f"one owner at a time: {reason}")
        return found

    def trainer(self, at_once: int) -> Trainer:
        """What trains so many owners at once.

        Raises:
            ConfigError: owners cannot be trained together.
        """
        if self._simulation.at_once == 1 or not isinstance(self._task, TorchTask):
            return OneByOne()
        if at_once > 1 and (reason := treatable(self._task, self._schema)):
            raise ConfigError(
                f"simulation.at_once {at_once}, but owners cannot be trained together: {reason}",
                "at_once: 1, or a model that can be trained so",
                "set simulation.at_once to 1 or auto",
            )
        together = at_once > 1 or is_evaluated_alike(self._task, self._schema)
        return ManyOwners(self._task, at_once) if together else OneByOne()

    @property
    def _simulation(self) -> Pooled:
        assert isinstance(self._experiment.simulation, Pooled)
        return self._experiment.simulation

    @property
    def _lacks_gpu(self) -> bool:
        return bool(self._simulation.pool_gpus) and not torch.cuda.is_available()

    @property
    def _asked(self) -> Assignment:
        """What any owner is asked in a round."""
        plan = make_strategy(self._experiment).plan({}, 1)
        return Assignment("", plan, plan.work, self._experiment.deadline_s)

    @cached_property
    def _schema(self) -> Schema:
        return data.schema_of(self._experiment.data)

    @cached_property
    def _task(self) -> Task:
        experiment, gpus = self._experiment, self._simulation.pool_gpus
        device = "cuda" if gpus and not self._lacks_gpu else "cpu"
        take_share(torch.device(device), min(1.0, gpus))
        return any_task(experiment, self._schema, descent_like(experiment), device)


def known_population(experiment: Experiment) -> Population | None:
    """All owners, where their rows can be counted without opening any."""
    sizes = data.sizes_of(experiment.data)
    return None if sizes is None else Population(data.owner_names(experiment.data), sizes.n_train, sizes.n_holdout)


def cohort_here(experiment: Experiment) -> Callable[[Mapping[str, OpensOwner]], Cohort]:
    """Opens all owners in this process."""
    if not isinstance(experiment.simulation, Pooled):
        return InProcessCohort
    return partial(InProcessPool, makes=PoolMaker(experiment), population=known_population(experiment))
