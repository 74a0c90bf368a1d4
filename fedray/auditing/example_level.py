"""Audit of example-level privacy: canary rows in a federation that ``fedray.build`` opens, noise and all.

Kept of the experiment: privacy, batch size, epochs or steps, rounds and seed. Replaced: data and model, by canaries
(see ``canaries``); the optimizer by plain SGD and the strategy by the mean, since both only work on what is noised
already; the cohort by all owners, since its choice is not counted for privacy; the protection by plain, since the
account speaks of an owner's own updates and the auditor must see them. The number of rows sets the sampling rate.

The attack is white-box: a canary's score is the inner product of its gradient's direction with the sum of its owner's
updates, as the server received them in all rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedray.auditing.canaries import LOUDNESS, N_ORDINARY_FEATURES, canary_features, canary_loss, canary_module, toss
from fedray.auditing.result import AuditResult, judge
from fedray.build import check, open_federation
from fedray.config import Experiment
from fedray.config import learning as config
from fedray.config.data import Tables
from fedray.config.experiment import Evaluation
from fedray.data import write_shards
from fedray.errors import ConfigError
from fedray.open_owners import OpensOwner
from fedray.pools import InProcessCohort
from fedray.protection.fixed_point import FixedPoint
from fedray.rounds import federate
from fedray.values import Absent, Assignment, Sealed, Subtotal, Vector

MOST_FEATURES = 500
"""Canaries of one owner at most: its per-example gradients take the square of it."""
ORDINARY_SHARE = 20
"""One row in so many is no canary."""
_PLAIN = config.Plain(clip=2.0**16, precision=2.0**-4)
"""Updates are in units of the clip here: noise is larger than this precision by far."""


@dataclass(frozen=True)
class Layout:
    """How canaries are dealt to owners.

    Attributes:
        n_owners: owners.
        per_owner: canaries of each.
        n_rows: rows of each.
    """

    n_owners: int
    per_owner: int
    n_rows: int

    @classmethod
    def of(cls, n_canaries: int, n_rows: int) -> Layout:
        """At least so many canaries, the same number at every owner."""
        most = min(MOST_FEATURES, n_rows - n_rows // ORDINARY_SHARE)
        n_owners = -(-n_canaries // most)
        return cls(n_owners, -(-n_canaries // n_owners), n_rows)

    @property
    def n_canaries(self) -> int:
        return self.n_owners * self.per_owner


def audit_examples(
    experiment: Experiment, n_canaries: int = 20_000, n_rows: int = 500, confidence: float = 0.95
) -> AuditResult:
    """Hold the account's epsilon against a lower bound from canary rows, at the settings of an experiment.

    Args:
        experiment: whose mechanism is audited; its data and model are not touched.
        n_canaries: rows that are in or out by a coin; a few more where owners could not have the same number.
        n_rows: rows of each owner; with ``train.batch_size`` it sets the sampling rate.
        confidence: of the bound.

    Raises:
        ConfigError: privacy is not of examples, or the settings do not fit the rows.
        RunError: updates are refused.
    """
    privacy = experiment.privacy
    if privacy.name != "example":
        raise ConfigError(f"privacy {privacy.name!r}", "example-level privacy", "set privacy: {name: example, ...}")
    layout = Layout.of(n_canaries, n_rows)
    coins = toss(layout.n_canaries, privacy.unsafe_replay_seed)
    with tempfile.TemporaryDirectory() as folder:
        audited = _with_canaries(experiment, layout, coins, Path(folder))
        check(audited)
        claimed, updates = _run(audited, Path(folder) / "state")
    scores = np.concatenate([-updates[name][: layout.per_owner] for name in sorted(updates)])
    is_sampled = experiment.train.batch_size < n_rows
    return judge("example", claimed, privacy.delta, scores, coins, confidence, is_sampled=is_sampled)


def _with_canaries(experiment: Experiment, layout: Layout, coins: NDArray[np.bool_], folder: Path) -> Experiment:
    """The experiment with canaries for its data and model; updates are in units of minus the clip."""
    privacy, train = experiment.privacy, experiment.train
    assert privacy.name == "example"
    names = [f"canaries-{number:04d}" for number in range(layout.n_owners)]
    dealt = coins.reshape(layout.n_owners, layout.per_owner)
    features = [
        canary_features(one, layout.n_rows, LOUDNESS * privacy.clip, number) for number, one in enumerate(dealt)
    ]
    targets = np.zeros(layout.n_owners * layout.n_rows, dtype=np.float32)
    write_shards(folder / "data", (np.concatenate(features), targets), owner=np.repeat(names, layout.n_rows))
    rate = min(train.batch_size, layout.n_rows) / privacy.clip
    return Experiment(
        name="audit",
        seed=experiment.seed,
        rounds=experiment.rounds,
        data=Tables(path=folder / "data", holdout=0.0),
        model=config.CustomModel(factory=canary_module, args={"n_features": layout.per_owner + N_ORDINARY_FEATURES}),
        loss=canary_loss,
        metrics=(),
        train=train.model_copy(update={"optimizer": config.Sgd(lr=rate)}),
        strategy=config.FedAvg(weighting="uniform"),
        privacy=privacy,
        protection=_PLAIN,
        evaluation=Evaluation(every=experiment.rounds),
    )


def _run(experiment: Experiment, state_dir: Path) -> tuple[float, Mapping[str, NDArray[np.float64]]]:
    """The epsilon on record after the run, and each owner's updates, summed over rounds."""
    cohort: _Listening | None = None

    def listen(openers: Mapping[str, OpensOwner]) -> _Listening:
        nonlocal cohort
        cohort = _Listening(openers)
        return cohort

    *_, (_, last) = federate(open_federation(experiment, listen, state_dir))
    assert cohort is not None
    assert last.epsilon is not None, "privacy is on"
    return last.epsilon, cohort.heard


class _Listening(InProcessCohort):
    """A cohort whose plain updates are added up for the auditor as they pass."""

    def __init__(self, openers: Mapping[str, OpensOwner]) -> None:
        super().__init__(openers)
        self.heard: dict[str, NDArray[np.float64]] = {}

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Subtotal | Absent]:
        fixed_point = FixedPoint(len(vector), len(self.population), _PLAIN.clip, _PLAIN.precision)
        for answer in super().train(vector, assignments, patience_s):
            if isinstance(answer, Sealed):
                update = fixed_point.decode(fixed_point.signed(answer.payload), weight_bound=1).mean
                self.heard[answer.owner] = self.heard.get(answer.owner, 0.0) + update
            yield answer
