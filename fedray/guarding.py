"""From an experiment to its privacy: what guards one owner, and what the server does of it.

What needs an accountant is imported where it is used: a run without privacy loads none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fedray import data
from fedray.config import Experiment
from fedray.config.cluster import Pooled
from fedray.config.privacy import ExamplePrivacy, NoPrivacy, OwnerLevel
from fedray.errors import ConfigError
from fedray.making import any_task, loss_of, module_of
from fedray.owners import NoisyTally
from fedray.privacy.plain_mean import PlainMean
from fedray.protecting import rounding_of
from fedray.protocols import Contribution, Mechanism
from fedray.spending import WorstSpent
from fedray.tasks.descent import Descent, ShuffledDescent, count_steps
from fedray.values import Population, Schema, Spent

if TYPE_CHECKING:
    from fedray.privacy.account import Account
    from fedray.privacy.dp_sgd import Charges, DpSgdPlan
    from fedray.privacy.events import Charge, Unit
    from fedray.privacy.ledger_file import LedgerFile


def check_example_level(experiment: Experiment, privacy: ExamplePrivacy, schema: Schema) -> None:
    """Find out whether every example's gradient can be clipped.

    Raises:
        ModelError: it cannot.
    """
    from fedray.privacy.private_modules import check_private

    check_private(module_of(experiment, schema), loss_of(experiment), schema)
    if privacy.gradients == "ghost":
        from fedray.privacy.ghost_clipping import check_ghost

        check_ghost(module_of(experiment, schema), loss_of(experiment), schema)


def check_owner_level(experiment: Experiment, schema: Schema) -> None:
    """Find out whether the noise can be had, and whether anything would tell how good the model is.

    Raises:
        ConfigError: it cannot, or nothing would.
    """
    from fedray import bounding

    task = any_task(experiment, schema, ShuffledDescent(experiment.train.batch_size))
    bounding.parts_of(experiment, len(task.initial(0)))
    if experiment.evaluation.noise_multiplier is None and data.central_test(experiment.data) is None:
        raise ConfigError(
            f"privacy {experiment.privacy.name!r} with nothing to evaluate on: owners' own figures would be released "
            "without noise",
            "noised figures of owners, or rows of the server's own",
            "give evaluation.noise_multiplier, e.g. a tenth of the owners a round, or data.central_test",
        )


@dataclass(frozen=True)
class Guard:
    """What makes one owner private, before its model is there."""

    descent: Descent
    account: Account | None = None
    contribution: Callable[[int], Contribution] | None = None
    noisy: NoisyTally | None = None


def account_of(
    experiment: Experiment, name: str, state_dir: Path, run: str, ledgers: LedgerFile | Path | None
) -> Account:
    """One run's account on the ledger that the owner has opened on its machine, or else on one of the run's."""
    from fedray.privacy.account import Account
    from fedray.privacy.accounting import spent, spent_by_renyi
    from fedray.privacy.ledger import Ledger, own_ledger
    from fedray.privacy.ledger_file import LedgerFile, shared_file

    privacy = experiment.privacy
    assert not isinstance(privacy, NoPrivacy)
    if isinstance(ledgers, LedgerFile):
        file = ledgers
    elif isinstance(experiment.simulation, Pooled):
        file = shared_file((ledgers or state_dir.parent) / "ledger.jsonl", "process")
    else:
        path = ledgers / f"{folder_of(name)}.jsonl" if ledgers else state_dir / "ledger.jsonl"
        file = LedgerFile(path, "power")
    ledger = own_ledger(name) or Ledger(file, name)
    unit: Unit = "example" if isinstance(privacy, ExamplePrivacy) else "owner"
    accounts = spent_by_renyi if isinstance(experiment.simulation, Pooled) else spent
    return Account(ledger, run, experiment.name, unit, privacy.delta, privacy.epsilon, accounts)


def guard_of(experiment: Experiment, name: str, n_rows: int, n_rounds: int, account: Account) -> Guard:
    """What makes one owner private, with its noise calibrated for the rounds that it is planned to take part in.

    Raises:
        ConfigError: no noise keeps to the budget, or delta is too large for so few rows.
    """
    privacy = experiment.privacy
    if not isinstance(privacy, ExamplePrivacy):
        from fedray import bounding

        contribution = partial(bounding.make_contribution, experiment, account=account)
        return Guard(ShuffledDescent(experiment.train.batch_size), contribution=contribution)
    if privacy.delta * n_rows >= 1:
        raise ConfigError(
            f"privacy.delta {privacy.delta} for owner {name!r} with {n_rows} training rows",
            f"less than one over the rows, {1 / n_rows:.1e}",
            "lower privacy.delta: at this value, publishing a random row would satisfy it",
        )
    plan = _dp_plan(experiment, privacy, n_rows, n_rounds)
    descent = _descent(privacy, plan, account)
    return Guard(descent, account, noisy=_noisy(experiment, privacy, name, account))


def descent_like(experiment: Experiment) -> Descent:
    """A descent that does what owners' own do, on nobody's account: to try and to measure training with."""
    privacy, batch_size = experiment.privacy, experiment.train.batch_size
    if not isinstance(privacy, ExamplePrivacy):
        return ShuffledDescent(batch_size)
    from fedray.privacy.dp_sgd import DpSgdPlan, NoCharges

    plan = DpSgdPlan(batch_size, batch_size, privacy.clip, privacy.noise_multiplier or 1.0)
    return _descent(privacy, plan, NoCharges()).rehearsal(batch_size)


def _descent(privacy: ExamplePrivacy, plan: DpSgdPlan, account: Charges) -> Descent:
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


def worst_spent(
    experiment: Experiment, n_values: int, population: Population, planned: Counter[str]
) -> WorstSpent | None:
    """What an owner has spent that did all the work that it was asked."""
    privacy = experiment.privacy
    if isinstance(privacy, OwnerLevel):
        from fedray import bounding

        of_owners = lru_cache(maxsize=1024)(bounding.worst_spent(experiment, n_values))
        return lambda _, n_rounds, n_parts: of_owners(n_rounds, n_parts)
    if not isinstance(privacy, ExamplePrivacy):
        return None

    def worst(name: str, n_rounds: int, n_parts: int) -> Spent:
        from fedray.privacy.accounting import spent

        charges = _evaluations(experiment, n_rounds)
        if n_parts:
            plan = _dp_plan(experiment, privacy, population.n_train_of(name), planned[name])
            charges = (*charges, plan.charge(n_parts * count_steps(experiment.work, plan.n_rows, plan.batch_size)))
        return spent(charges, privacy.delta)

    return worst


def server_half(experiment: Experiment, n_values: int, population: Population) -> tuple[Mechanism, int]:
    """The server's half of privacy, and what cohorts are drawn from."""
    if not isinstance(experiment.privacy, OwnerLevel):
        return PlainMean(), experiment.seed
    from fedray import bounding

    mechanism = bounding.make_mechanism(
        experiment, n_values, population.n_train.tolist(), rounding_of(experiment, n_values)
    )
    return mechanism, bounding.cohort_seed(experiment, n_values)


def folder_of(name: str) -> str:
    """An owner's name as the name of a folder, whatever it holds."""
    return quote(name, safe="").replace(".", "%2E")
