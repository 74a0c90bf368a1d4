"""From an experiment to the halves of its protection. Each function runs where its half will live.

The homomorphic roles bring TenSEAL and owner-level privacy an accountant, so they are imported where they are needed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fedray import data
from fedray.config import Experiment
from fedray.config import learning as config
from fedray.config.cluster import Pooled
from fedray.config.privacy import DistributedPrivacy, LocalPrivacy, OwnerLevel
from fedray.errors import ConfigError, ProtocolError
from fedray.protection.encoding import Encoding
from fedray.protection.fixed_point import WEIGHT_BOUND, FixedPoint, power_of_two_from
from fedray.protection.homomorphic.parameters import choose
from fedray.protection.identity import Identity, Trust, key_file
from fedray.protection.journal import Journal
from fedray.protection.masked.graph import FULL_UP_TO, Rules
from fedray.protection.masked.owner import MaskedSealer
from fedray.protection.masked.server import MaskedProtection
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.protection.subtotals import RingAdder
from fedray.protocols import Adder, KeyHolder, Protection, Sealer
from fedray.values import Population

OpensKeyHolder = Callable[[Callable[[], KeyHolder]], KeyHolder]


def open_here(open_key_holder: Callable[[], KeyHolder]) -> KeyHolder:
    """A key holder in this process: for a debugger, and for tests."""
    return open_key_holder()


def make_protection(
    experiment: Experiment, n_values: int, weight_bound: int, open_key_holder: OpensKeyHolder, state_dir: Path
) -> Protection:
    """The server's half of the protection that the experiment names, for one run.

    Raises:
        ConfigError: sums of this cohort do not fit.
        ResourcesError: the key holder did not start.
    """
    section, run = experiment.protection, secrets.token_bytes(16)
    match section:
        case config.Masked():
            encoding, rules = _encoding(experiment, n_values), _rules(experiment, section)
            return MaskedProtection(rules, encoding, weight_bound, run, _enrolled(section))
        case config.Ckks() | config.Bfv():
            from fedray.protection.homomorphic.server import HomomorphicProtection

            fixed_point = fixed_point_of(experiment, n_values)
            key_holder = open_key_holder(partial(_key_holder, section, fixed_point, state_dir))
            parameters, trust = choose(section.name, fixed_point), Trust(_enrolled(section))
            return HomomorphicProtection(
                parameters, fixed_point, weight_bound, run, section.min_owners, key_holder, trust
            )
        case config.Plain():
            return PlainProtection(_encoding(experiment, n_values), weight_bound)


def make_adder(experiment: Experiment, n_values: int) -> Adder | None:
    """What adds up sealed updates of owners that share a process; None where each must travel by itself."""
    match experiment.protection:
        case config.Plain():
            return RingAdder(_encoding(experiment, n_values), readable=True)
        case config.Masked():
            return RingAdder(_encoding(experiment, n_values), readable=False)
        case _:
            return None


def make_sealer(experiment: Experiment, name: str, n_values: int, state_dir: Path) -> Sealer:
    """One owner's half of the protection that the experiment names.

    Raises:
        ConfigError: sums do not fit, or the owner's signing key or journal cannot be read.
    """
    section = experiment.protection
    if isinstance(section, config.Plain):
        return PlainSealer(_encoding(experiment, n_values), experiment.seed)
    trust = Trust(_enrolled(section))
    identity = _identity(trust, name, state_dir)
    is_simulated = isinstance(experiment.simulation, Pooled)
    journal = Journal(state_dir / "sealed_rounds.json", is_durable=not is_simulated)
    if isinstance(section, config.Masked):
        encoding, rules = _encoding(experiment, n_values), _rules(experiment, section)
        return MaskedSealer(name, identity, trust, rules, encoding, experiment.seed, journal)
    from fedray.protection.homomorphic.owner import HomomorphicSealer

    fixed_point = fixed_point_of(experiment, n_values)
    parameters = choose(section.name, fixed_point)
    return HomomorphicSealer(
        name, identity, trust, parameters, fixed_point, experiment.seed, section.min_owners, journal
    )


def check_protection(experiment: Experiment, names: Sequence[str]) -> None:
    """Find what can be found of the protection before any actor starts.

    Raises:
        ConfigError: too few owners, a party that is not enrolled, or sums that do not fit.
    """
    _check_owners(experiment, names)
    if isinstance(experiment.protection, config.Masked):
        _check_over_selection(experiment, experiment.protection, len(names))
    fixed_point = fixed_point_of(experiment, n_values=1)
    if isinstance(experiment.protection, config.Ckks | config.Bfv):
        choose(experiment.protection.name, fixed_point)


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
    fewest = _rules(experiment, section).min_owners if isinstance(section, config.Masked) else section.min_owners
    most = experiment.most_in_a_sum(len(names))
    if isinstance(experiment.strategy, config.FedAvg):  # it has no use for what slow owners manage
        most = round(most * (1 - experiment.stragglers.fraction))
    if most < fewest:
        raise ConfigError(
            f"{most} owners under protection {section.name!r} in a round" + _without_slow(experiment),
            f"at least {fewest}, so that a sum hides each of them",
            "take more owners, or fewer slow ones, or let the server read updates with protection: plain",
        )
    others = (config.KEY_HOLDER,) if isinstance(section, config.Ckks | config.Bfv) else ()
    if section.identities and (missing := sorted({*names, *others} - set(section.identities))):
        raise ConfigError(
            f"protection.identities without {', '.join(missing[:5])}",
            "a public key for every party, or for none",
            "run fedray enrol NAME at each, and list what it prints",
        )


def _check_over_selection(experiment: Experiment, section: config.Masked, n_owners: int) -> None:
    """Find out whether a masked sum can be opened without the owners that over-selection leaves out of every round.

    Raises:
        ConfigError: too few would be left.
    """
    n_asked, n_left = experiment.most_in_a_round(n_owners), experiment.most_in_a_sum(n_owners)
    graph = _rules(experiment, section).graph(b"", 1, [str(number) for number in range(n_asked)])
    is_full = graph.degree >= n_asked - 1
    share = (n_asked - n_left) / n_asked
    if (is_full and n_left < graph.threshold) or (not is_full and share > section.dropouts):
        raise ConfigError(
            f"{n_asked} owners asked and {n_left} in a sum under protection 'masked'",
            f"at least {graph.threshold} of them"
            if is_full
            else f"at most {section.dropouts:.0%} left out, protection.dropouts, above {FULL_UP_TO} owners a round",
            "lower cohort.over_select" + ("" if is_full else f", or raise protection.dropouts to {share:.2f}"),
        )


def _without_slow(experiment: Experiment) -> str:
    return ", without those that are too slow" if experiment.stragglers.fraction else ""


def _key_holder(section: config.Ckks | config.Bfv, fixed_point: FixedPoint, state_dir: Path) -> KeyHolder:
    """The key holder's role, made where it will stay."""
    from fedray.protection.homomorphic.key_holder import KeyHolderRole

    trust = Trust(_enrolled(section))
    identity = _identity(trust, config.KEY_HOLDER, state_dir / "%key-holder")  # no owner's folder has such a name
    parameters = choose(section.name, fixed_point)
    return KeyHolderRole(identity, trust, parameters, fixed_point, section.min_owners, section.key_rounds)


def _encoding(experiment: Experiment, n_values: int) -> Encoding:
    """How what owners put into a sum becomes integers: with their noise, where they add it."""
    if isinstance(experiment.privacy, DistributedPrivacy | LocalPrivacy):
        from fedray import bounding

        return bounding.encoding_of(experiment, n_values)
    return fixed_point_of(experiment, n_values)


def fixed_point_of(experiment: Experiment, n_values: int) -> FixedPoint:
    """The fixed point of updates, or of the vectors of norm 1 that owner-level privacy makes of them.

    Raises:
        ConfigError: sums do not fit.
    """
    section = experiment.protection
    n_owners = experiment.most_in_a_round(len(data.owner_names(experiment.data)))
    if isinstance(experiment.privacy, OwnerLevel):
        from fedray import bounding

        length = n_values + bounding.n_statistics(experiment)
        return FixedPoint(length, n_owners, 1.0, section.precision)
    return FixedPoint(n_values, n_owners, section.clip, section.precision)


def rounding_of(experiment: Experiment, n_values: int) -> float:
    """How much stochastic rounding can lengthen a vector of norm 1: less than a step in every value."""
    fixed_point = fixed_point_of(experiment, n_values)
    return fixed_point.step * math.sqrt(fixed_point.n_values)


def _rules(experiment: Experiment, section: config.Masked) -> Rules:
    """A server that lies picks the cohort: it must not pick one that all but one of are corrupt.

    Where owners share the noise, a sum must hold enough of them.
    """
    n_corrupt = math.ceil(section.corrupt * len(section.identities)) if section.server == "may_lie" else 0
    fewest = max(section.min_owners, n_corrupt + 2)
    if isinstance(experiment.privacy, DistributedPrivacy):
        from fedray import bounding

        fewest = max(fewest, bounding.fewest_survivors(experiment, len(data.owner_names(experiment.data))))
    return Rules(fewest, section.server, section.corrupt, section.dropouts)


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


def weight_bound_of(experiment: Experiment, population: Population) -> int:
    """The power of two that no owner's weight passes; one where all weigh alike, or the bound that privacy sets.

    Raises:
        ConfigError: a sum of weights would not fit.
    """
    if experiment.strategy.weighting == "uniform":
        return 1
    if isinstance(experiment.privacy, OwnerLevel):
        from fedray import bounding

        return bounding.weight_bound(experiment)
    most = np.sort(population.n_train)[-experiment.most_in_a_round(len(population)) :]
    if (n_all := int(most.sum())) > WEIGHT_BOUND:
        raise ConfigError(
            f"{n_all} training rows in a round as weights", f"at most {WEIGHT_BOUND}", "use strategy.weighting: uniform"
        )
    return power_of_two_from(int(population.n_train.max(initial=1)))
