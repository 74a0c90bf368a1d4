"""From an experiment to the halves of its owner-level privacy: how much noise, who adds it, and what it costs.

Everyone who opens a half computes the same plan from the same experiment: an owner does not take the server's word for
what a round costs.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

import msgspec
import numpy as np

from fedray import data, seeds
from fedray.config import Experiment
from fedray.config import learning as config
from fedray.config import privacy as privacies
from fedray.errors import BudgetExhausted, ConfigError
from fedray.privacy.account import Account
from fedray.privacy.accounting import calibrate, spent
from fedray.privacy.clipping import Clipping, Constant, QuantileTracking
from fedray.privacy.costs import Cost, EachPart, EachRound, WholeRun
from fedray.privacy.distributed.bounds import draws_error, event
from fedray.privacy.distributed.choose import choose
from fedray.privacy.distributed.noisy_integers import NoisyIntegers
from fedray.privacy.events import Charge, FixedSizeGaussian, Gaussian, SampledGaussian
from fedray.privacy.noise import BandedNoise, Draw, Independent, Noise, TreeNoise
from fedray.privacy.owner_level import BoundedContribution, OwnerLevelMechanism
from fedray.privacy.parts import UNCLIPPED, Parts
from fedray.protocols import Contribution, Mechanism
from fedray.selection import planned_rounds
from fedray.values import Spent

_MOST_BANDS = 32


@dataclass(frozen=True)
class OwnerPlan:
    """The numbers of one run's owner-level privacy.

    Attributes:
        noise_multiplier: deviation of the noise on each coordinate of a sum of vectors of norm 1.
        cost: what taking part costs.
        most_parts: rounds that any owner takes part in, at most.
        n_expected: owners that a round is expected to sum up.
        n_honest: owners whose noise is sure to be in a sum; 0 where the server adds it.
        noise: what the server adds; None where owners do.
    """

    noise_multiplier: float
    cost: Cost
    most_parts: int
    n_expected: float
    n_honest: int = 0
    noise: Noise | None = None

    @property
    def has_secret_cohorts(self) -> bool:
        """Whether being drawn must stay secret."""
        return isinstance(self.cost, EachRound)


def owner_plan(experiment: Experiment, n_values: int) -> OwnerPlan:
    """How the experiment's owner-level privacy is done.

    Args:
        experiment: one whose privacy is at the level of owners.
        n_values: length of an update.

    Raises:
        ConfigError: no noise reaches the budget, delta is too large, or noise does not fit into the ring.
    """
    privacy = _privacy(experiment)
    names = data.owner_names(experiment.data)
    if privacy.delta * len(names) >= 1:
        raise ConfigError(
            f"privacy.delta {privacy.delta:g} with {len(names)} owners",
            f"less than one over the owners, {1 / len(names):.1e}",
            "lower privacy.delta: at this value, publishing all that a random owner has would satisfy it",
        )
    n_honest = _n_honest(experiment, len(names))
    length = n_values + n_statistics(experiment)
    facts = _Facts(privacy, experiment.cohort, experiment.seed, experiment.rounds, names, n_honest, length)
    return _planned(facts)


@dataclass(frozen=True)
class _Facts:
    """All that a plan depends on; hashable, since a simulation opens thousands of owners of one experiment."""

    privacy: privacies.OwnerLevel
    cohort: config.Selection
    seed: int
    n_rounds: int
    names: Sequence[str]
    n_honest: int
    length: int

    @property
    def n_in_a_round(self) -> int:
        size = getattr(self.cohort, "size", None)
        return len(self.names) if size is None else int(size)


@lru_cache(maxsize=16)
def _planned(facts: _Facts) -> OwnerPlan:
    planned = planned_rounds(facts.cohort, facts.names, facts.seed, facts.n_rounds)
    most = max(planned.values(), default=0)
    makers = [partial(make, facts, most) for make in _ways(facts)]
    plans = [make(_noise_multiplier(facts, make)) for make in makers]
    return min(plans, key=lambda plan: (plan.noise_multiplier, _epsilon(facts, plan)))


def _ways(facts: _Facts) -> Sequence[Callable[[_Facts, int, float], OwnerPlan]]:
    """How the run can be accounted for: where there are two ways, the one that needs less noise is taken."""
    match facts.privacy:
        case privacies.DistributedPrivacy() | privacies.LocalPrivacy():
            return [_by_owners]
        case privacies.OwnerPrivacy(noise=privacies.TreeNoise()):
            return [_by_tree]
        case privacies.OwnerPrivacy(noise=privacies.BandedNoise()):
            return [_by_bands]
    match facts.cohort:
        case config.PoissonSampling():
            return [_by_rounds]
        case config.FixedSize():
            return [_by_rounds, _by_parts]
        case _:
            return [_by_parts]


def _noise_multiplier(facts: _Facts, make: Callable[[float], OwnerPlan]) -> float:
    privacy = facts.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.epsilon is not None

    def charges_at(noise_multiplier: float) -> Sequence[Charge]:
        plan = make(noise_multiplier)
        return plan.cost.after(facts.n_rounds, plan.most_parts)

    return calibrate(charges_at, privacy.epsilon, privacy.delta)


def _epsilon(facts: _Facts, plan: OwnerPlan) -> float:
    return spent(plan.cost.after(facts.n_rounds, plan.most_parts), facts.privacy.delta).epsilon


def _by_parts(facts: _Facts, most: int, z: float) -> OwnerPlan:
    """Fresh noise, and cohorts that anyone may know."""
    return OwnerPlan(z, EachPart(Gaussian(z)), most, facts.n_in_a_round, noise=Independent(z, facts.n_rounds, most))


def _by_rounds(facts: _Facts, most: int, z: float) -> OwnerPlan:
    """Fresh noise, and cohorts that are drawn secretly."""
    n_owners = len(facts.names)
    if isinstance(facts.cohort, config.PoissonSampling):
        cost = EachRound(SampledGaussian(facts.cohort.rate, z), facts.n_rounds)
        return OwnerPlan(
            z, cost, facts.n_rounds, n_owners * facts.cohort.rate, noise=Independent(z, facts.n_rounds, facts.n_rounds)
        )
    cost = EachRound(FixedSizeGaussian(n_owners, facts.n_in_a_round, z), facts.n_rounds)
    return OwnerPlan(z, cost, facts.n_rounds, facts.n_in_a_round, noise=Independent(z, facts.n_rounds, most))


def _by_tree(facts: _Facts, most: int, z: float) -> OwnerPlan:
    assert isinstance(facts.privacy, privacies.OwnerPrivacy)
    assert isinstance(facts.privacy.noise, privacies.TreeNoise)
    apart = _separation(facts)
    every = facts.privacy.noise.restart_every or 1 << (min(apart, facts.n_rounds).bit_length() - 1)
    _require_within("privacy.noise.restart_every", every, apart)
    return _of_whole_run(facts, most, apart, TreeNoise(z, facts.n_rounds, every, most))


def _by_bands(facts: _Facts, most: int, z: float) -> OwnerPlan:
    assert isinstance(facts.privacy, privacies.OwnerPrivacy)
    assert isinstance(facts.privacy.noise, privacies.BandedNoise)
    apart = _separation(facts)
    bands = facts.privacy.noise.bands or min(apart, _MOST_BANDS, facts.n_rounds)
    _require_within("privacy.noise.bands", bands, apart)
    return _of_whole_run(facts, most, apart, BandedNoise(z, facts.n_rounds, bands, most))


def _of_whole_run(facts: _Facts, most: int, apart: int, noise: TreeNoise | BandedNoise) -> OwnerPlan:
    cost = WholeRun(noise.charges(), apart, most)
    return OwnerPlan(noise.noise_multiplier, cost, most, facts.n_in_a_round, noise=noise)


def _require_within(setting: str, n_rounds: int, apart: int) -> None:
    """Refuse noise that reaches from one part of an owner to its next."""
    if n_rounds > apart:
        raise ConfigError(
            f"{setting} {n_rounds}, but owners take part again after {apart} rounds",
            f"at most {apart}, so that the noise of an owner's parts does not hang together",
            f"lower {setting}, or take smaller cohorts",
        )


def _by_owners(facts: _Facts, most: int, z: float) -> OwnerPlan:
    encoding = _encoding(facts, z)
    failure = facts.n_honest * draws_error(encoding)
    cost = EachPart(msgspec.structs.replace(event(encoding, facts.n_honest), failure=failure))
    return OwnerPlan(z, cost, most, facts.n_in_a_round, facts.n_honest)


def _separation(facts: _Facts) -> int:
    return max(1, len(facts.names) // facts.n_in_a_round)


def encoding_of(experiment: Experiment, n_values: int) -> NoisyIntegers:
    """How owners encode and noise their vectors where they add the noise.

    Raises:
        ConfigError: see ``owner_plan``.
    """
    plan = owner_plan(experiment, n_values)
    names = data.owner_names(experiment.data)
    length = n_values + n_statistics(experiment)
    facts = _Facts(
        _privacy(experiment), experiment.cohort, experiment.seed, experiment.rounds, names, plan.n_honest, length
    )
    return _encoding(facts, plan.noise_multiplier)


def _encoding(facts: _Facts, z: float) -> NoisyIntegers:
    assert isinstance(facts.privacy, privacies.DistributedPrivacy | privacies.LocalPrivacy)
    return choose(
        n_values=facts.length,
        n_owners=facts.n_in_a_round,
        noise=facts.privacy.noise,
        local_sigma=z / math.sqrt(facts.n_honest),
        rotation_key=seeds.key(facts.seed, "rotation"),
        unsafe_replay_seed=facts.privacy.unsafe_replay_seed,
    )


def fewest_survivors(experiment: Experiment, n_owners: int) -> int:
    """Owners of which a round's sum must consist, so that their noise is enough; 1 where it does not depend on them."""
    section = experiment.protection
    if not isinstance(experiment.privacy, privacies.DistributedPrivacy) or not isinstance(section, config.Masked):
        return 1
    n = experiment.most_in_a_round(n_owners)
    return max(section.min_owners, n - math.floor(section.dropouts * n), _n_corrupt(section, n) + 2)


def _n_honest(experiment: Experiment, n_owners: int) -> int:
    """Owners whose noise is sure to be in a sum and unknown to the server."""
    section = experiment.protection
    if isinstance(experiment.privacy, privacies.LocalPrivacy):
        return 1
    if not isinstance(experiment.privacy, privacies.DistributedPrivacy) or not isinstance(section, config.Masked):
        return 0
    n_corrupt = _n_corrupt(section, experiment.most_in_a_round(n_owners))
    return fewest_survivors(experiment, n_owners) - n_corrupt


def _n_corrupt(section: config.Masked, n_in_a_round: int) -> int:
    """Owners of one cohort that may tell the server their noise; one that lies can put all of them into it."""
    return math.ceil(section.corrupt * (len(section.identities) if section.server == "may_lie" else n_in_a_round))


def parts_of(experiment: Experiment, n_values: int) -> Parts:
    """What an owner's vector is made of.

    Raises:
        ConfigError: statistics would take too much of it, or see ``owner_plan``.
    """
    plan = owner_plan(experiment, n_values)
    noise = dict.fromkeys(_statistic_names(experiment), experiment.evaluation.noise_multiplier)
    clipping = _privacy(experiment).clipping
    if isinstance(clipping, privacies.AdaptiveClip):
        z = plan.noise_multiplier
        noise[UNCLIPPED] = clipping.count_noise or max(plan.n_expected / 20, z * math.sqrt(len(noise)))
    statistics = tuple((name, float(sigma)) for name, sigma in noise.items() if sigma is not None)
    return Parts(n_values, plan.noise_multiplier, statistics)


def n_statistics(experiment: Experiment) -> int:
    """Values that ride beside an update."""
    return len(_statistic_names(experiment))


def _statistic_names(experiment: Experiment) -> tuple[str, ...]:
    clip = (UNCLIPPED,) if isinstance(_privacy(experiment).clipping, privacies.AdaptiveClip) else ()
    metrics = experiment.metric_names if experiment.evaluation.noise_multiplier is not None else ()
    return (*clip, *metrics)


def make_contribution(experiment: Experiment, n_values: int, account: Account) -> Contribution:
    """The owner's half, made where the owner lives; what joining costs is charged here.

    An owner whose budget does not allow it joins all the same, and says so when it is asked to train.

    Raises:
        ConfigError: see ``owner_plan``.
    """
    plan = owner_plan(experiment, n_values)
    bound = weight_bound(experiment)
    with suppress(BudgetExhausted):
        plan.cost.join(account)
    return BoundedContribution(parts_of(experiment, n_values), plan.cost, account, bound)


def make_mechanism(experiment: Experiment, n_values: int, n_rows: Sequence[int], rounding: float) -> Mechanism:
    """The server's half.

    Args:
        experiment: the experiment.
        n_values: length of an update.
        n_rows: training rows of each owner.
        rounding: how much encoding can lengthen a vector of norm 1.

    Raises:
        ConfigError: see ``owner_plan``.
    """
    privacy, plan = _privacy(experiment), owner_plan(experiment, n_values)
    bound = weight_bound(experiment)
    weights = [min(rows, bound) for rows in n_rows]
    return OwnerLevelMechanism(
        parts=parts_of(experiment, n_values),
        first_clip=privacy.clip,
        clipping=_clipping(privacy.clipping),
        noise=plan.noise,
        draw=secret_normals(privacy.unsafe_replay_seed, "server"),
        rounding=rounding,
        weight_bound=bound,
        expected_weight=plan.n_expected * sum(weights) / len(weights),
    )


def cohort_seed(experiment: Experiment, n_values: int) -> int:
    """What cohorts are drawn from: the experiment's seed, or a secret where being drawn must stay secret."""
    privacy = _privacy(experiment)
    if not owner_plan(experiment, n_values).has_secret_cohorts:
        return experiment.seed
    return secrets.randbits(128) if privacy.unsafe_replay_seed is None else privacy.unsafe_replay_seed


def worst_spent(experiment: Experiment, n_values: int) -> Callable[[int, int], Spent]:
    """What an owner has spent at most after so many rounds, of which it was asked to take part in so many."""
    plan, delta = owner_plan(experiment, n_values), _privacy(experiment).delta
    return lambda n_rounds, n_parts: spent(plan.cost.after(n_rounds, n_parts), delta)


def _privacy(experiment: Experiment) -> privacies.OwnerLevel:
    assert isinstance(experiment.privacy, privacies.OwnerLevel)
    return experiment.privacy


def weight_bound(experiment: Experiment) -> int:
    """Largest weight of an owner's part under owner-level privacy."""
    return getattr(experiment.privacy, "weight_bound", None) or 1


def _clipping(section: privacies.Clipping) -> Clipping:
    if isinstance(section, privacies.AdaptiveClip):
        return QuantileTracking(section.quantile, section.rate)
    return Constant()


def secret_normals(unsafe_replay_seed: int | None, *purpose: str) -> Draw:
    """Standard normal values from a Philox generator with a 128-bit key of the operating system's."""
    if unsafe_replay_seed is not None:
        return seeds.generator(unsafe_replay_seed, *purpose).standard_normal
    return np.random.Generator(np.random.Philox(key=secrets.randbits(128))).standard_normal
