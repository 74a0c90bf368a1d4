"""Audit of owner-level privacy: owners that are canaries, and an auditor who sees the global models.

After G. Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", 2023, whose canary owners push
the model along directions of their own; here half of them are in by a coin and a bound is taken after Steinke et al.
(see ``one_run``). Kept of the experiment: privacy, protection, strategy, cohort, rounds and seed. Replaced: data and
task, by as many owners as there are canaries; signing keys are not enrolled, since those owners have none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fedray.auditing.canaries import LOUDNESS, CanaryTask, toss
from fedray.auditing.result import AuditResult, judge
from fedray.build import open_federation
from fedray.config import Experiment
from fedray.config import learning as config
from fedray.config.data import Tables
from fedray.config.experiment import Evaluation
from fedray.data import write_shards
from fedray.errors import ConfigError
from fedray.pools import InProcessCohort
from fedray.rounds import federate, initial_state
from fedray.values import Vector

Directions: TypeAlias = NDArray[np.float64] | sparse.sparray


def audit_models(
    models: Sequence[Vector],
    directions: Directions,
    coins: NDArray[np.bool_],
    claimed_epsilon: float,
    delta: float,
    confidence: float = 0.95,
    *,
    is_sampled: bool = False,
) -> AuditResult:
    """Hold a claim against the models that a federation with canary owners released.

    A canary's score is the inner product of its direction with the sum of all model differences.

    Args:
        models: the global model before the first round and after each, each of shape ``(n_values,)``.
        directions: shape ``(n_canaries, n_values)``, dense or sparse; unit rows.
        coins: which canaries pushed, shape ``(n_canaries,)``.
        claimed_epsilon: what the account says after the last round.
        delta: at which it says so.
        confidence: of the bound.
        is_sampled: whether owners take part by chance only.
    """
    moved = np.sum(np.diff(np.asarray(models, dtype=np.float64), axis=0), axis=0)
    return judge("owner", claimed_epsilon, delta, directions @ moved, coins, confidence, is_sampled=is_sampled)


def audit_owners(experiment: Experiment, n_canaries: int = 1_000, confidence: float = 0.95) -> AuditResult:
    """Hold the account's epsilon against a lower bound from canary owners, at the settings of an experiment.

    Args:
        experiment: whose mechanism is audited; its data and model are not touched.
        n_canaries: owners that push or give zeros by a coin.
        confidence: of the bound.

    Raises:
        ConfigError: privacy is not of owners, or the settings do not fit so many of them.
        RunError: there are no sums.
    """
    privacy = experiment.privacy
    if privacy.name == "none" or privacy.name == "example":
        raise ConfigError(f"privacy {privacy.name!r}", "owner-level privacy", "see docs/privacy.md")
    _require_enough(experiment, n_canaries)
    coins = toss(n_canaries, privacy.unsafe_replay_seed)
    with tempfile.TemporaryDirectory() as folder:
        audited = with_canary_owners(experiment, coins, LOUDNESS * privacy.clip, Path(folder) / "data")
        claimed, models = run_models(audited, Path(folder) / "state")
    assert claimed is not None, "privacy is on"
    is_sampled = experiment.cohort.name in ("fixed", "poisson")
    directions = sparse.eye_array(n_canaries)
    return audit_models(models, directions, coins, claimed, privacy.delta, confidence, is_sampled=is_sampled)


def with_canary_owners(experiment: Experiment, coins: NDArray[np.bool_], norm: float, folder: Path) -> Experiment:
    """The experiment with an owner a coin, of one empty row each, and a task that pushes or does not.

    Args:
        experiment: what is kept of it is named above.
        coins: shape ``(n_canaries,)``; the canary's direction is the parameter of the same number.
        norm: of the update of an owner that is in, before anything clips it.
        folder: where the rows are written.
    """
    names = [f"canary-{number:06d}" for number in range(len(coins))]
    nothing = np.zeros((len(coins), 1), dtype=np.float32)
    write_shards(folder, (nothing, nothing[:, 0]), owner=names)
    task = CanaryTask(dict(zip(names, coins.tolist(), strict=True)), norm)
    return Experiment(
        name="audit",
        seed=experiment.seed,
        rounds=experiment.rounds,
        data=Tables(path=folder, owners=tuple(names), features=("features",), holdout=0.0),
        task=lambda _: task,
        train=config.Train(steps=1),
        strategy=experiment.strategy,
        cohort=experiment.cohort,
        privacy=experiment.privacy,
        protection=_unenrolled(experiment.protection),
        evaluation=Evaluation(every=experiment.rounds),
    )


def run_models(experiment: Experiment, state_dir: Path) -> tuple[float | None, list[Vector]]:
    """The epsilon on record after a run in this process, and the model before the first round and after each."""
    federation = open_federation(experiment, InProcessCohort, state_dir)
    state = initial_state(federation)
    epsilon, models = None, [state.vector]
    for after, record in federate(federation, state):
        epsilon = record.epsilon
        models.append(after.vector)
    return epsilon, models


def _require_enough(experiment: Experiment, n_canaries: int) -> None:
    if (size := experiment.most_in_a_round(n_canaries)) > n_canaries:
        raise ConfigError(
            f"cohorts of {size} owners and {n_canaries} canaries", f"at least {size} canaries", "give more canaries"
        )


def _unenrolled(protection: config.Protection) -> config.Protection:
    match protection:
        case config.Plain():
            return protection
        case config.Masked():
            return protection.model_copy(update={"identities": {}, "server": "honest"})
        case _:
            return protection.model_copy(update={"identities": {}})
