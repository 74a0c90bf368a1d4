"""From an experiment to its parts. Each function runs where its part will live.

``check`` runs at the caller, before anything starts; ``open_owner`` inside the owner's process, the only place where
its rows are read; ``open_federation`` at the server.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch import nn

from fedray import data
from fedray.config import Experiment
from fedray.config import learning as config
from fedray.config.fields import reference_name, resolve
from fedray.config.privacy import ExamplePrivacy, NoPrivacy, OwnerLevel
from fedray.errors import ConfigError, DataError, FedrayError, ModelError
from fedray.owners import NoisyTally, Owner
from fedray.privacy.plain_mean import PlainMean
from fedray.protecting import (
    OpensKeyHolder,
    check_protection,
    make_protection,
    make_sealer,
    open_here,
    rounding_of,
    weight_bound_of,
)
from fedray.protocols import Cohort, Contribution, Mechanism, Strategy, Task
from fedray.rounds import Federation
from fedray.selection import planned_rounds
from fedray.spending import WorstSpent
from fedray.strategies import FedAvg, FedProx
from fedray.tasks.descent import Descent, ShuffledDescent, count_steps
from fedray.tasks.losses import LOSSES, METRICS, SINGLE_OUTPUT, Loss, Metric
from fedray.tasks.modules import build_module
from fedray.tasks.torch_task import TorchTask
from fedray.values import Schema, Shard, Spent, Vector
from fedray.vectors import Layout

if TYPE_CHECKING:
    from fedray.privacy.account import Account
    from fedray.privacy.dp_sgd import DpSgdPlan
    from fedray.privacy.events import Charge, Unit
    from fedray.privacy.ledger_file import LedgerFile

_RUN = "run"
"""File with the name of the run in owners' ledgers."""

OpensOwner = Callable[[], Owner]
OpensCohort = Callable[[Mapping[str, OpensOwner]], Cohort]


def check(experiment: Experiment) -> None:
    """Find what can be found before any actor starts: owners' names, the model on the data's schema, and privacy.

    Raises:
        ConfigError, DataError, ModelError: see ``fedray.errors``.
    """
    names = data.owner_names(experiment.data)
    if unknown := sorted(set(experiment.placement) - set(names)):
        raise ConfigError(
            f"placement names {', '.join(unknown)}",
            f"owners of the data: {', '.join(names)}",
            "correct the name",
        )
    if isinstance(experiment.cohort, config.FixedSize) and experiment.cohort.size > len(names):
        raise ConfigError(
            f"cohort.size {experiment.cohort.size}",
            f"at most {len(names)}, the number of owners",
            "lower cohort.size",
        )
    check_protection(experiment, names)
    schema = data.schema_of(experiment.data)
    if isinstance(experiment.privacy, OwnerLevel):
        _check_owner_level(experiment, schema)
    if experiment.task is not None:
        return
    task = make_task(experiment, schema, ShuffledDescent(experiment.train.batch_size))
    task.check(schema)
    if isinstance(experiment.privacy, ExamplePrivacy):
        _check_example_level(experiment, experiment.privacy, schema)


def _check_example_level(experiment: Experiment, privacy: ExamplePrivacy, schema: Schema) -> None:
    """Find out whether every example's gradient can be clipped.

    Raises:
        ModelError: it cannot.
    """
    from fedray.privacy.private_modules import check_private

    check_private(_module(experiment, schema), _loss(experiment), schema)
    if privacy.gradients == "ghost":
        from fedray.privacy.ghost_clipping import check_ghost

        check_ghost(_module(experiment, schema), _loss(experiment), schema)


def _check_owner_level(experiment: Experiment, schema: Schema) -> None:
    """Find out whether the noise can be had, and whether anything would tell how good the model is.

    Raises:
        ConfigError: it cannot, or nothing would.
    """
    from fedray import bounding

    task = _any_task(experiment, schema, ShuffledDescent(experiment.train.batch_size))
    bounding.parts_of(experiment, len(task.initial(0)))
    if experiment.evaluation.noise_multiplier is None and data.central_test(experiment.data) is None:
        raise ConfigError(
            f"privacy {experiment.privacy.name!r} with nothing to evaluate on: owners' own figures would be released "
            "without noise",
            "noised figures of owners, or rows of the server's own",
            "give evaluation.noise_multiplier, e.g. a tenth of the owners a round, or data.central_test",
        )


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
    schema = data.schema_of(experiment.data)
    shard = data.open_shard(experiment.data, name)
    _require_schema(name, shard, schema)
    device = "cuda" if experiment.gpus_of(name) and torch.cuda.is_available() else "cpu"
    private = _Private(ShuffledDescent(experiment.train.batch_size))
    if not isinstance(experiment.privacy, NoPrivacy):
        account = _account(experiment, name, state_dir, run, ledgers)
        private = _private(experiment, name, len(shard.train), n_rounds, account)
    if experiment.task is None and not isinstance(experiment.privacy, ExamplePrivacy):
        _require_whole_batches(experiment, name, shard, schema)
    task = _any_task(experiment, schema, private.descent, device)
    n_values = len(task.initial(0))
    contribution = private.contribution(n_values) if private.contribution else None
    sealer = make_sealer(experiment, name, n_values, state_dir)
    return Owner(name, shard, task, sealer, experiment.seed, private.account, contribution, private.noisy)


def open_federation(
    experiment: Experiment,
    open_cohort: OpensCohort,
    state_dir: Path,
    open_key_holder: OpensKeyHolder = open_here,
    ledgers: LedgerFile | Path | None = None,
) -> Federation:
    """All parts of a run, at the server.

    Args:
        experiment: the experiment.
        open_cohort: opens owners where they live.
        state_dir: where owners and key holder keep what must outlive them.
        open_key_holder: has a key holder opened where it lives.
        ledgers: where owners that have opened no ledger on their machine keep one: one file for all (simulations), a
            folder of a file an owner (over several runs), or with what else they keep of this run when left out.

    Raises:
        ConfigError, DataError, ModelError, ResourcesError: see ``fedray.errors``.
    """
    names = data.owner_names(experiment.data)
    planned = planned_rounds(experiment.cohort, names, experiment.seed, experiment.rounds)
    run = "" if isinstance(experiment.privacy, NoPrivacy) else _run_id(state_dir)
    openers = {
        name: partial(open_owner, experiment, name, planned[name], state_dir / _folder(name), run, ledgers)
        for name in names
    }
    descent = ShuffledDescent(experiment.train.batch_size)
    task = _any_task(experiment, data.schema_of(experiment.data), descent)
    cohort = open_cohort(openers)
    n_rows = {info.name: info.n_train for info in cohort.owners}
    try:
        if run:
            state_dir.mkdir(parents=True, exist_ok=True)
            (state_dir / _RUN).write_text(run)
        weight_bound = weight_bound_of(experiment, n_rows)
        n_values = len(task.initial(0))
        protection = make_protection(experiment, n_values, weight_bound, open_key_holder, state_dir)
        mechanism, cohort_seed = _server_half(experiment, n_values, n_rows)
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
        worst_spent=_worst_spent(experiment, n_values, n_rows, planned),
    )


def _server_half(experiment: Experiment, n_values: int, n_rows: Mapping[str, int]) -> tuple[Mechanism, int]:
    """The server's half of privacy, and what cohorts are drawn from."""
    if not isinstance(experiment.privacy, OwnerLevel):
        return PlainMean(), experiment.seed
    from fedray import bounding

    mechanism = bounding.make_mechanism(experiment, n_values, n_rows, rounding_of(experiment, n_values))
    return mechanism, bounding.cohort_seed(experiment, n_values)


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that the experiment names."""
    section = experiment.strategy
    shared: dict[str, Any] = {
        "work": experiment.work,
        "weighting": section.weighting,
        "server_lr": section.server_lr,
        "server_momentum": section.server_momentum,
    }
    return FedProx(mu=section.mu, **shared) if isinstance(section, config.FedProx) else FedAvg(**shared)


def _require_schema(name: str, shard: Shard, schema: Schema) -> None:
    found = (str(shard.train.features.dtype), shard.train.features.shape[1:])
    expected = (schema.feature_dtype, schema.feature_shape)
    if found != expected:
        raise DataError(
            f"owner {name!r} holds {found[0]} features of shape {found[1]}",
            f"{expected[0]} of shape {expected[1]}, as the other owners",
            "give its file the same columns in the same order, or name them in data.features",
        )


def make_task(experiment: Experiment, schema: Schema, descent: Descent, device: str = "cpu") -> TorchTask:
    """The task that model, loss, metrics and train describe."""
    return TorchTask(
        make_module=partial(_module, experiment, schema),
        loss=_loss(experiment),
        metrics=_metrics(experiment),
        make_optimizer=_optimizer(experiment.train.optimizer),
        descent=descent,
        device=device,
    )


def make_module(experiment: Experiment) -> nn.Module:
    """The model, with random initial parameters."""
    return _module(experiment, data.schema_of(experiment.data))


def state_dict(experiment: Experiment, vector: Vector) -> dict[str, torch.Tensor]:
    """The model's named tensors, as ``torch.nn.Module.load_state_dict`` takes them; ``vector`` for a custom task.

    Tied parameters are written once a name: a file of tensors cannot share memory.
    """
    if experiment.task is not None:
        return {"vector": torch.from_numpy(vector.copy())}
    module = make_module(experiment)
    Layout(module).write(vector)
    return {name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}


def _any_task(experiment: Experiment, schema: Schema, descent: Descent, device: str = "cpu") -> Task:
    """The user's own task where there is one."""
    if experiment.task is not None:
        task: Task = resolve(experiment.task)(schema)
        return task
    return make_task(experiment, schema, descent, device)


def _folder(name: str) -> str:
    """An owner's name as the name of a folder, whatever it holds."""
    return quote(name, safe="").replace(".", "%2E")


def _require_whole_batches(experiment: Experiment, name: str, shard: Shard, schema: Schema) -> None:
    n_rows, batch_size = len(shard.train), experiment.train.batch_size
    if n_rows % batch_size != 1 and batch_size != 1:
        return
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in _module(experiment, schema).modules()):
        raise ModelError(
            f"BatchNorm, and owner {name!r} whose {n_rows} training rows leave a batch of one",
            "batches of at least two rows",
            "take another train.batch_size, or GroupNorm",
        )


def _module(experiment: Experiment, schema: Schema) -> nn.Module:
    module = build_module(experiment.model, schema, _n_outputs(experiment, schema))
    if isinstance(experiment.privacy, ExamplePrivacy):
        from fedray.privacy.private_modules import make_private

        return make_private(module)
    return module


def _n_outputs(experiment: Experiment, schema: Schema) -> int:
    if experiment.loss == "binary_cross_entropy" and schema.n_classes not in (None, 2):
        raise ModelError(
            f"loss binary_cross_entropy on {schema.n_classes} classes", "2 classes", "use loss: cross_entropy"
        )
    if experiment.loss in SINGLE_OUTPUT or schema.n_classes is None:
        return max(1, math.prod(schema.target_shape))
    return schema.n_classes


def _loss(experiment: Experiment) -> Loss:
    if isinstance(experiment.loss, str) and experiment.loss in LOSSES:
        return LOSSES[experiment.loss]
    found = resolve(experiment.loss)
    loss: Loss = found() if isinstance(found, type) else found
    return loss


def _metrics(experiment: Experiment) -> dict[str, Metric]:
    return {
        name: METRICS[reference_name(metric)] if reference_name(metric) in METRICS else resolve(metric)
        for name, metric in zip(experiment.metric_names, experiment.metrics, strict=True)
    }


def _optimizer(section: config.Optimizer) -> Callable[..., torch.optim.Optimizer]:
    if isinstance(section, config.Adam):
        return partial(torch.optim.Adam, lr=section.lr, weight_decay=section.weight_decay)
    return partial(torch.optim.SGD, lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay)


@dataclass(frozen=True)
class _Private:
    """What makes one owner private, before its model is there."""

    descent: Descent
    account: Account | None = None
    contribution: Callable[[int], Contribution] | None = None
    noisy: NoisyTally | None = None


def _account(
    experiment: Experiment, name: str, state_dir: Path, run: str, ledgers: LedgerFile | Path | None
) -> Account:
    """One run's account on the ledger that the owner has opened on its machine, or else on one of the run's."""
    from fedray.privacy.account import Account
    from fedray.privacy.ledger import Ledger, own_ledger
    from fedray.privacy.ledger_file import LedgerFile

    privacy = experiment.privacy
    assert not isinstance(privacy, NoPrivacy)
    path = ledgers / f"{_folder(name)}.jsonl" if isinstance(ledgers, Path) else state_dir / "ledger.jsonl"
    file = ledgers if isinstance(ledgers, LedgerFile) else LedgerFile(path, "power")
    ledger = own_ledger(name) or Ledger(file, name)
    unit: Unit = "example" if isinstance(privacy, ExamplePrivacy) else "owner"
    return Account(ledger, run, experiment.name, unit, privacy.delta, privacy.epsilon)


def _private(experiment: Experiment, name: str, n_rows: int, n_rounds: int, account: Account) -> _Private:
    privacy = experiment.privacy
    if not isinstance(privacy, ExamplePrivacy):
        from fedray import bounding

        contribution = partial(bounding.make_contribution, experiment, account=account)
        return _Private(ShuffledDescent(experiment.train.batch_size), contribution=contribution)
    if privacy.delta * n_rows >= 1:
        raise ConfigError(
            f"privacy.delta {privacy.delta} for owner {name!r} with {n_rows} training rows",
            f"less than one over the rows, {1 / n_rows:.1e}",
            "lower privacy.delta: at this value, publishing a random row would satisfy it",
        )
    plan = _dp_plan(experiment, privacy, n_rows, n_rounds)
    descent = _descent(privacy, plan, account)
    return _Private(descent, account, noisy=_noisy(experiment, privacy, name, account))


def _descent(privacy: ExamplePrivacy, plan: DpSgdPlan, account: Account) -> Descent:
    if privacy.gradients == "ghost":
        from fedray.privacy.ghost_clipping import GhostDescent

        return GhostDescent(plan, account, privacy.unsafe_replay_seed)
    from fedray.privacy.dp_sgd import PrivateDescent

    return PrivateDescent(plan, account, privacy.unsafe_replay_seed)


def _noisy(experiment: Experiment, privacy: ExamplePrivacy, name: str, account: Account) -> NoisyTally | None:
    noise = experiment.evaluation.noise_multiplier
    if noise is None:
        return None
    from fedray import bounding
    from fedray.privacy import noisy_tally

    draw = bounding.secret_normals(privacy.unsafe_replay_seed, "evaluate", name)
    return noisy_tally.NoisyTally(experiment.metric_names, noise, account, draw)


def _dp_plan(experiment: Experiment, privacy: ExamplePrivacy, n_rows: int, n_rounds: int) -> DpSgdPlan:
    from fedray.privacy.dp_sgd import DpSgdPlan

    if privacy.epsilon is not None:
        return DpSgdPlan.within(
            privacy.epsilon,
            privacy.delta,
            n_rows=n_rows,
            batch_size=experiment.train.batch_size,
            clip=privacy.clip,
            work=experiment.work,
            n_rounds=n_rounds,
            besides=_evaluations(experiment, experiment.rounds),
        )
    assert privacy.noise_multiplier is not None
    return DpSgdPlan(n_rows, experiment.train.batch_size, privacy.clip, privacy.noise_multiplier)


def _evaluations(experiment: Experiment, n_rounds: int) -> tuple[Charge, ...]:
    """What the noised evaluations of so many rounds cost each owner."""
    noise = experiment.evaluation.noise_multiplier
    if noise is None:
        return ()
    from fedray.privacy.events import Charge
    from fedray.privacy.noisy_tally import event

    is_last = n_rounds == experiment.rounds and n_rounds % experiment.evaluation.every > 0
    n_taken = n_rounds // experiment.evaluation.every + is_last
    return (Charge(event(noise, len(experiment.metric_names)), n_taken),)


def _worst_spent(
    experiment: Experiment, n_values: int, n_rows: Mapping[str, int], planned: Mapping[str, int]
) -> WorstSpent | None:
    """What an owner has spent that did all the work that it was asked."""
    privacy = experiment.privacy
    if isinstance(privacy, OwnerLevel):
        from fedray import bounding

        of_owners = bounding.worst_spent(experiment, n_values)
        return lambda _, n_rounds, n_parts: of_owners(n_rounds, n_parts)
    if not isinstance(privacy, ExamplePrivacy):
        return None

    def worst(name: str, n_rounds: int, n_parts: int) -> Spent:
        from fedray.privacy.accounting import spent

        charges = _evaluations(experiment, n_rounds)
        if n_parts:
            plan = _dp_plan(experiment, privacy, n_rows[name], planned[name])
            charges = (*charges, plan.charge(n_parts * count_steps(experiment.work, plan.n_rows, plan.batch_size)))
        return spent(charges, privacy.delta)

    return worst


def _run_id(state_dir: Path) -> str:
    """Names a run in owners' ledgers: random, and kept for when the run is resumed."""
    path = state_dir / _RUN
    return path.read_text() if path.is_file() else secrets.token_hex(8)
