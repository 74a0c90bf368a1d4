"""From an experiment to its parts. Each function runs where its part will live.

``check`` runs at the caller, before anything starts; ``open_owner`` inside the owner's process, the only place where
its rows are read; ``open_federation`` at the server.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
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
from fedray.errors import ConfigError, DataError, FedrayError, ModelError, ProtocolError
from fedray.owners import Owner
from fedray.protection.fixed_point import WEIGHT_BOUND, FixedPoint, power_of_two_from
from fedray.protection.identity import Identity, Trust, key_file
from fedray.protection.journal import Journal
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.owner import MaskedSealer
from fedray.protection.masked.server import MaskedProtection
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.protocols import Account, Cohort, KeyHolder, Protection, Sealer, Strategy, Task
from fedray.rounds import Federation
from fedray.selection import planned_rounds
from fedray.strategies import FedAvg, FedProx
from fedray.tasks.descent import Descent, ShuffledDescent, count_steps
from fedray.tasks.losses import LOSSES, METRICS, SINGLE_OUTPUT, Loss, Metric
from fedray.tasks.modules import build_module
from fedray.tasks.torch_task import TorchTask
from fedray.values import Schema, Shard, Spent, Vector
from fedray.vectors import Layout

if TYPE_CHECKING:
    from fedray.privacy.account import PrivacyAccount
    from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent

OpensOwner = Callable[[], Owner]
OpensCohort = Callable[[Mapping[str, OpensOwner]], Cohort]
OpensKeyHolder = Callable[[Callable[[], KeyHolder]], KeyHolder]


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
    _check_owners(experiment, names)
    _check_sums(experiment, len(names))
    schema = data.schema_of(experiment.data)
    if experiment.task is not None:
        return
    task = make_task(experiment, schema, ShuffledDescent(experiment.train.batch_size))
    task.check(schema)
    if isinstance(experiment.privacy, config.ExamplePrivacy):
        from fedray.privacy.dp_sgd import check_private

        check_private(_module(experiment, schema), _loss(experiment), schema)


def open_owner(experiment: Experiment, name: str, n_rounds: int, state_dir: Path) -> Owner:
    """Open one owner where it lives: read its shard, calibrate its noise, build its task.

    Args:
        experiment: the experiment.
        name: the owner's name.
        n_rounds: rounds that it is planned to take part in.
        state_dir: where it keeps what must outlive its process.

    Raises:
        ConfigError, DataError, ModelError: see ``fedray.errors``.
    """
    schema = data.schema_of(experiment.data)
    shard = data.open_shard(experiment.data, name)
    _require_schema(name, shard, schema)
    device = "cuda" if experiment.gpus_of(name) and torch.cuda.is_available() else "cpu"
    descent: Descent = ShuffledDescent(experiment.train.batch_size)
    account: Account | None = None
    if isinstance(experiment.privacy, config.ExamplePrivacy):
        descent, account = _private(experiment, experiment.privacy, name, shard, n_rounds, state_dir)
    elif experiment.task is None:
        _require_whole_batches(experiment, name, shard, schema)
    task = _any_task(experiment, schema, descent, device)
    return Owner(name, shard, task, make_sealer(experiment, name, task, state_dir), experiment.seed, account)


def open_here(open_key_holder: Callable[[], KeyHolder]) -> KeyHolder:
    """A key holder in this process: for a debugger, and for tests."""
    return open_key_holder()


def open_federation(
    experiment: Experiment,
    open_cohort: OpensCohort,
    state_dir: Path,
    open_key_holder: OpensKeyHolder = open_here,
) -> Federation:
    """All parts of a run, at the server.

    Args:
        experiment: the experiment.
        open_cohort: opens owners where they live.
        state_dir: where owners and key holder keep what must outlive them.
        open_key_holder: has a key holder opened where it lives.

    Raises:
        ConfigError, DataError, ModelError, ResourcesError: see ``fedray.errors``.
    """
    names = data.owner_names(experiment.data)
    planned = planned_rounds(experiment.cohort, names, experiment.seed, experiment.rounds)
    openers = {name: partial(open_owner, experiment, name, planned[name], state_dir / _folder(name)) for name in names}
    descent = ShuffledDescent(experiment.train.batch_size)
    task = _any_task(experiment, data.schema_of(experiment.data), descent)
    cohort = open_cohort(openers)
    n_rows = {info.name: info.n_train for info in cohort.owners}
    try:
        weight_bound = _weight_bound(experiment, n_rows)
        protection = make_protection(experiment, task, weight_bound, open_key_holder, state_dir)
    except FedrayError:
        cohort.close()
        raise
    return Federation(
        experiment=experiment,
        task=task,
        strategy=make_strategy(experiment),
        protection=protection,
        cohort=cohort,
        central_test=data.central_test(experiment.data),
        weight_bound=weight_bound,
        worst_spent=_worst_spent(experiment, n_rows, planned),
    )


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


def make_protection(
    experiment: Experiment, task: Task, weight_bound: int, open_key_holder: OpensKeyHolder, state_dir: Path
) -> Protection:
    """The server's half of the protection that the experiment names, for one run.

    Raises:
        ConfigError: sums of this cohort do not fit.
        ResourcesError: the key holder did not start.
    """
    section, fixed_point = experiment.protection, _fixed_point(experiment, task)
    run = secrets.token_bytes(16)
    match section:
        case config.Masked():
            return MaskedProtection(_rules(section), fixed_point, weight_bound, run, _enrolled(section))
        case config.Ckks() | config.Bfv():
            from fedray.protection.homomorphic.parameters import choose
            from fedray.protection.homomorphic.server import HomomorphicProtection

            key_holder = open_key_holder(partial(_key_holder, section, fixed_point, state_dir))
            parameters, trust = choose(section.name, fixed_point), Trust(_enrolled(section))
            return HomomorphicProtection(
                parameters, fixed_point, weight_bound, run, section.min_owners, key_holder, trust
            )
        case config.Plain():
            return PlainProtection(fixed_point, weight_bound)


def make_sealer(experiment: Experiment, name: str, task: Task, state_dir: Path) -> Sealer:
    """One owner's half of the protection that the experiment names.

    Raises:
        ConfigError: sums do not fit, or the owner's signing key or journal cannot be read.
    """
    section, fixed_point = experiment.protection, _fixed_point(experiment, task)
    if isinstance(section, config.Plain):
        return PlainSealer(fixed_point, experiment.seed)
    trust = Trust(_enrolled(section))
    identity = _identity(trust, name, state_dir)
    journal = Journal(state_dir / "sealed_rounds.json")
    if isinstance(section, config.Masked):
        return MaskedSealer(name, identity, trust, _rules(section), fixed_point, experiment.seed, journal)
    from fedray.protection.homomorphic.owner import HomomorphicSealer
    from fedray.protection.homomorphic.parameters import choose

    parameters = choose(section.name, fixed_point)
    return HomomorphicSealer(
        name, identity, trust, parameters, fixed_point, experiment.seed, section.min_owners, journal
    )


def _check_owners(experiment: Experiment, names: Sequence[str]) -> None:
    """Find out whether the data has enough owners for the protection, and whether all are enrolled.

    Raises:
        ConfigError: it has not, or they are not.
    """
    section = experiment.protection
    if isinstance(section, config.Plain):
        return
    if config.KEY_HOLDER in names:
        raise ConfigError(f"an owner named {config.KEY_HOLDER!r}", "another name", "rename its file or column value")
    fewest = _rules(section).min_owners if isinstance(section, config.Masked) else section.min_owners
    most = experiment.most_in_a_round(len(names))
    if isinstance(experiment.strategy, config.FedAvg):
        most = round(most * (1 - experiment.stragglers.fraction))
    if most < fewest:
        raise ConfigError(
            f"{most} owners under protection {section.name!r} in a round, those left out that are too slow",
            f"at least {fewest}, so that a sum hides each of them",
            "take more owners, or fewer slow ones, or let the server read updates with protection: plain",
        )
    parties = {*names, config.KEY_HOLDER} if isinstance(section, config.Ckks | config.Bfv) else set(names)
    if section.identities and (missing := sorted(parties - set(section.identities))):
        raise ConfigError(
            f"protection.identities without {', '.join(missing[:5])}",
            "a public key for every party, or for none",
            "run fedray enrol NAME at each, and list what it prints",
        )


def _check_sums(experiment: Experiment, n_owners: int) -> None:
    """Find out whether sums of the largest cohort fit the ring or the ciphertexts.

    Raises:
        ConfigError: they do not.
    """
    section = experiment.protection
    fixed_point = FixedPoint(1, experiment.most_in_a_round(n_owners), section.clip, section.precision)
    if isinstance(section, config.Ckks | config.Bfv):
        from fedray.protection.homomorphic.parameters import choose

        choose(section.name, fixed_point)


def _key_holder(section: config.Ckks | config.Bfv, fixed_point: FixedPoint, state_dir: Path) -> KeyHolder:
    """The key holder's role, made where it will stay."""
    from fedray.protection.homomorphic.key_holder import KeyHolderRole
    from fedray.protection.homomorphic.parameters import choose

    trust = Trust(_enrolled(section))
    identity = _identity(trust, config.KEY_HOLDER, state_dir / "%key-holder")  # no owner's folder has such a name
    parameters = choose(section.name, fixed_point)
    return KeyHolderRole(identity, trust, parameters, fixed_point, section.min_owners, section.key_rounds)


def _fixed_point(experiment: Experiment, task: Task) -> FixedPoint:
    section = experiment.protection
    n_owners = experiment.most_in_a_round(len(data.owner_names(experiment.data)))
    return FixedPoint(len(task.initial(0)), n_owners, section.clip, section.precision)


def _rules(section: config.Masked) -> Rules:
    """A server that lies picks the cohort: it must not pick one that all but one of are corrupt."""
    n_corrupt = math.ceil(section.corrupt * len(section.identities)) if section.server == "may_lie" else 0
    return Rules(max(section.min_owners, n_corrupt + 2), section.server, section.corrupt, section.dropouts)


def _enrolled(section: config.Masked | config.Ckks | config.Bfv) -> dict[str, bytes]:
    return {name: bytes.fromhex(public) for name, public in section.identities.items()}


def _identity(trust: Trust, name: str, state_dir: Path) -> Identity:
    """The enrolled signing key, or one that lasts for the run."""
    if not trust.is_enrolled:
        return Identity.kept(state_dir / "identity.pem")
    identity = Identity.read(key_file(name))
    try:
        trust.require(name, identity.public)
    except ProtocolError:
        raise ConfigError(
            f"owner {name!r} signs with a key that is not the one under protection.identities",
            "the enrolled key",
            f"list {identity.public.hex()}, which fedray enrol {name} prints",
        ) from None
    return identity


def _weight_bound(experiment: Experiment, n_rows: Mapping[str, int]) -> int:
    """The power of two that no owner's weight passes; one where all weigh alike.

    Raises:
        ConfigError: a sum of weights would not fit.
    """
    if experiment.strategy.weighting == "uniform":
        return 1
    if (n_all := sum(n_rows.values())) > WEIGHT_BOUND:
        raise ConfigError(
            f"{n_all} training rows as weights", f"at most {WEIGHT_BOUND}", "use strategy.weighting: uniform"
        )
    return power_of_two_from(max(n_rows.values(), default=1))


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
    if isinstance(experiment.privacy, config.ExamplePrivacy):
        from fedray.privacy.dp_sgd import make_private

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


def _private(
    experiment: Experiment,
    privacy: config.ExamplePrivacy,
    name: str,
    shard: Shard,
    n_rounds: int,
    state_dir: Path,
) -> tuple[PrivateDescent, PrivacyAccount]:
    """The owner's private descent and its account."""
    from fedray.privacy.account import PrivacyAccount
    from fedray.privacy.dp_sgd import PrivateDescent

    n_rows = len(shard.train)
    if privacy.delta * n_rows >= 1:
        raise ConfigError(
            f"privacy.delta {privacy.delta} for owner {name!r} with {n_rows} training rows",
            f"less than one over the rows, {1 / n_rows:.1e}",
            "lower privacy.delta: at this value, publishing a random row would satisfy it",
        )
    plan = _dp_plan(experiment, privacy, n_rows, n_rounds)
    account = PrivacyAccount(state_dir / "account.jsonl", privacy.delta, privacy.epsilon)
    return PrivateDescent(plan, account, privacy.unsafe_replay_seed), account


def _dp_plan(experiment: Experiment, privacy: config.ExamplePrivacy, n_rows: int, n_rounds: int) -> DpSgdPlan:
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
        )
    assert privacy.noise_multiplier is not None
    return DpSgdPlan(n_rows, experiment.train.batch_size, privacy.clip, privacy.noise_multiplier)


def _worst_spent(
    experiment: Experiment, n_rows: Mapping[str, int], planned: Mapping[str, int]
) -> Callable[[str, int], Spent] | None:
    """What an owner has spent that did all the work of so many rounds; nothing for none."""
    privacy = experiment.privacy
    if not isinstance(privacy, config.ExamplePrivacy):
        return None

    def worst(name: str, n_rounds: int) -> Spent:
        if n_rounds == 0:
            return Spent(0.0, 0.0, privacy.delta)
        from fedray.privacy.accounting import Release, spent

        plan = _dp_plan(experiment, privacy, n_rows[name], planned[name])
        n_steps = n_rounds * count_steps(experiment.work, plan.n_rows, plan.batch_size)
        return spent([Release(plan.sample_rate, plan.noise_multiplier, n_steps)], privacy.delta)

    return worst
