"""From an experiment to its parts. Each function runs where its part will live.

``check`` runs at the caller, before anything starts; ``open_owner`` inside the owner's process, the only place where
its rows are read; ``open_federation`` at the server.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedray import data
from fedray.config import Experiment
from fedray.config.privacy import ExamplePrivacy, NoPrivacy, OwnerLevel
from fedray.errors import ConfigError, DataError, FedrayError, ModelError
from fedray.federation import Federation
from fedray.files import put
from fedray.guarding import (
    Guard,
    account_of,
    check_example_level,
    check_owner_level,
    folder_of,
    guard_of,
    server_half,
    worst_spent,
)
from fedray.making import any_task, make_strategy, make_task, module_of
from fedray.open_owners import OpensOwner, Registry
from fedray.owners import Owner
from fedray.protecting import OpensKeyHolder, check_protection, make_protection, make_sealer, open_here, weight_bound_of
from fedray.protocols import Cohort, Task
from fedray.selection import planned_rounds
from fedray.tasks.descent import ShuffledDescent
from fedray.tasks.torch_task import TorchTask
from fedray.values import Population, Schema, Shard

if TYPE_CHECKING:
    from fedray.privacy.ledger_file import LedgerFile

_RUN = "run"
"""File with the name of the run in owners' ledgers."""

OpensCohort = Callable[[Mapping[str, OpensOwner]], Cohort]


def check(experiment: Experiment) -> None:
    """Find what can be found before any actor starts: owners' names, the model on the data's schema, and privacy.

    Raises:
        ConfigError, DataError, ModelError: see ``fedray.errors``.
    """
    names = data.owner_names(experiment.data)
    if unknown := sorted(name for name in experiment.placement if name not in names):
        raise ConfigError(
            f"placement names {', '.join(unknown)}",
            f"owners of the data: {', '.join(names)}",
            "correct the name",
        )
    if (n_asked := experiment.most_in_a_round(len(names))) > len(names):
        raise ConfigError(
            f"{n_asked} owners in a round",
            f"at most {len(names)}, the number of owners",
            "lower cohort.size or cohort.over_select, or schedule.size where rounds are buffered",
        )
    check_protection(experiment, names)
    schema = data.schema_of(experiment.data)
    if isinstance(experiment.privacy, OwnerLevel):
        check_owner_level(experiment, schema)
    if experiment.task is not None:
        return
    task = make_task(experiment, schema, ShuffledDescent(experiment.train.batch_size))
    task.check(schema)
    if isinstance(experiment.privacy, ExamplePrivacy):
        check_example_level(experiment, experiment.privacy, schema)


class OwnerOpener:
    """Opens owners of one experiment; those of one process share schema and model.

    Args:
        experiment: the experiment.
        planned: rounds that each owner is planned to take part in, where its noise is calibrated for that.
        state_dir: owners keep what must outlive their process in a folder of their own in it.
        run: names the run in owners' ledgers.
        ledgers: see ``open_federation``.
    """

    def __init__(
        self,
        experiment: Experiment,
        planned: Counter[str],
        state_dir: Path,
        run: str,
        ledgers: LedgerFile | Path | None = None,
    ) -> None:
        self._experiment = experiment
        self._planned = planned
        self._state_dir = state_dir
        self._run = run
        self._ledgers = ledgers

    def __call__(self, name: str) -> Owner:
        """Open one owner.

        Raises:
            ConfigError, DataError, ModelError: see ``fedray.errors``.
        """
        folder = self._state_dir / folder_of(name)
        return self._shared.open(name, self._planned[name], folder, self._run, self._ledgers)

    @cached_property
    def _shared(self) -> _Shared:
        return _Shared(self._experiment)


def open_owner(
    experiment: Experiment,
    name: str,
    n_rounds: int,
    state_dir: Path,
    run: str,
    ledgers: LedgerFile | Path | None = None,
) -> Owner:
    """Open one owner where it lives: read its shard and its ledger, calibrate its noise, build its task.

    Args:
        experiment: the experiment.
        name: the owner's name.
        n_rounds: rounds that it is planned to take part in.
        state_dir: where it keeps what must outlive its process.
        run: names the run in the owner's ledger.
        ledgers: see ``open_federation``.

    Raises:
        ConfigError, DataError, ModelError: see ``fedray.errors``.
    """
    return _Shared(experiment).open(name, n_rounds, state_dir, run, ledgers)


class _Shared:
    """What owners of one process share."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._schema = data.schema_of(experiment.data)
        self._descent = ShuffledDescent(experiment.train.batch_size)
        self._tasks: dict[str, tuple[Task, int]] = {}

    def open(self, name: str, n_rounds: int, state_dir: Path, run: str, ledgers: LedgerFile | Path | None) -> Owner:
        """See ``open_owner``."""
        experiment = self._experiment
        shard = data.open_shard(experiment.data, name)
        _require_schema(name, shard, self._schema)
        guard = Guard(self._descent)
        if not isinstance(experiment.privacy, NoPrivacy):
            account = account_of(experiment, name, state_dir, run, ledgers)
            guard = guard_of(experiment, name, len(shard.train), n_rounds, account)
        task, n_values = self._task(device_of(experiment, name))
        if isinstance(task, TorchTask):
            task = task.sharing(guard.descent)
        contribution = guard.contribution(n_values) if guard.contribution else None
        sealer = make_sealer(experiment, name, n_values, state_dir)
        return Owner(name, shard, task, sealer, experiment.seed, guard.account, contribution, guard.noisy)

    def _task(self, device: str) -> tuple[Task, int]:
        if device not in self._tasks:
            task = any_task(self._experiment, self._schema, self._descent, device)
            self._tasks[device] = task, len(task.initial(0))
        return self._tasks[device]


def open_federation(
    experiment: Experiment,
    open_cohort: OpensCohort,
    state_dir: Path,
    open_key_holder: OpensKeyHolder = open_here,
    ledgers: LedgerFile | Path | None = None,
    run: str | None = None,
) -> Federation:
    """All parts of a run, at the server.

    Args:
        experiment: the experiment.
        open_cohort: opens owners where they live.
        state_dir: where owners and key holder keep what must outlive them.
        open_key_holder: has a key holder opened where it lives.
        ledgers: where owners that have opened no ledger on their machine keep one: one file for all (simulations), a
            folder of a file an owner (over several runs), or with what else they keep of this run when left out.
        run: names the run in owners' ledgers; kept in ``state_dir`` when left out.

    Raises:
        ConfigError, DataError, ModelError, ResourcesError: see ``fedray.errors``.
    """
    names = data.owner_names(experiment.data)
    run = "" if isinstance(experiment.privacy, NoPrivacy) else run or run_id(state_dir)
    planned = Counter[str]()
    if isinstance(experiment.privacy, ExamplePrivacy):
        planned = planned_rounds(experiment.cohort, names, experiment.seed, experiment.rounds)
    descent = ShuffledDescent(experiment.train.batch_size)
    task = any_task(experiment, data.schema_of(experiment.data), descent)
    cohort = open_cohort(Registry(names, OwnerOpener(experiment, planned, state_dir, run, ledgers)))
    population = cohort.population
    try:
        _require_whole_batches(experiment, population)
        if run:
            keep_run_id(state_dir, run)
        weight_bound = weight_bound_of(experiment, population)
        n_values = len(task.initial(0))
        protection = make_protection(experiment, n_values, weight_bound, open_key_holder, state_dir)
        mechanism, cohort_seed = server_half(experiment, n_values, population)
    except FedrayError:
        cohort.close()
        raise
    return Federation(
        experiment=experiment,
        task=task,
        strategy=make_strategy(experiment),
        protection=protection,
        mechanism=mechanism,
        cohort=cohort,
        central_test=data.central_test(experiment.data),
        weight_bound=weight_bound,
        cohort_seed=cohort_seed,
        evaluates_owners=not isinstance(experiment.privacy, OwnerLevel),
        worst_spent=worst_spent(experiment, n_values, population, planned),
    )


def device_of(experiment: Experiment, name: str) -> str:
    """Where an owner computes, on the node that this runs on."""
    return "cuda" if experiment.gpus_of(name) and torch.cuda.is_available() else "cpu"


def _require_schema(name: str, shard: Shard, schema: Schema) -> None:
    found = (str(shard.train.features.dtype), shard.train.features.shape[1:])
    expected = (schema.feature_dtype, schema.feature_shape)
    if found != expected:
        raise DataError(
            f"owner {name!r} holds {found[0]} features of shape {found[1]}",
            f"{expected[0]} of shape {expected[1]}, as the other owners",
            "give its file the same columns in the same order, or name them in data.features",
        )


def _require_whole_batches(experiment: Experiment, population: Population) -> None:
    """BatchNorm cannot train on a batch of one row.

    Raises:
        ModelError: an owner's rows leave one.
    """
    if experiment.task is not None or isinstance(experiment.privacy, ExamplePrivacy):
        return
    batch_size = experiment.train.batch_size
    alone = np.flatnonzero(population.n_train % batch_size == 1 if batch_size > 1 else population.n_train > 0)
    parts = module_of(experiment, data.schema_of(experiment.data)).modules() if len(alone) else ()
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts):
        name, n_rows = population.names[alone[0]], population.n_train[alone[0]]
        raise ModelError(
            f"BatchNorm, and owner {name!r} whose {n_rows} training rows leave a batch of one",
            "batches of at least two rows",
            "take another train.batch_size, or GroupNorm",
        )


def run_id(state_dir: Path) -> str:
    """What the run is called in owners' ledgers: as it was kept, or a new random name."""
    path = state_dir / _RUN
    return path.read_text() if path.is_file() else secrets.token_hex(8)


def keep_run_id(state_dir: Path, run: str) -> None:
    """Keep what a run is called in owners' ledgers."""
    state_dir.mkdir(parents=True, exist_ok=True)
    put(state_dir / _RUN, run.encode())
