"""What protects whom from whom, in plain words, from what the experiments say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedray.report import numbers
from fedray.report.comparison import Comparison
from fedray.report.kinds import PROTECTED
from fedray.report.privacy_promises import noise_itself, privacy_promises
from fedray.report.wording import prose

_PLAIN = prose("""
    Protection is “plain”: the server reads every owner's update as it was sent. It hides nothing from the
    server; its sums are exact and do not depend on the order of arrival, and that is all it promises.
""")
_MASKED = prose("""
    Protection is “masked”: owners add masks that cancel in the sum (Bonawitz et al. 2017), so the server
    learns the sum of at least {min_owners} updates a round and no single one, unless a threshold of an
    owner's neighbours joins with it. {identities} What a sum itself tells stays visible: only
    differential privacy bounds that.
""")
_HOMOMORPHIC = prose("""
    Protection is “{name}”: owners encrypt, the server adds ciphertexts, and a key holder opens sums of at
    least {min_owners} updates. The server alone and owners alone read no other update; the server together
    with the key holder reads every one. {identities} What a sum itself tells stays visible: only
    differential privacy bounds that.{ckks}
""")
_CKKS = " " + prose("""
    CKKS is approximate, and its errors are made of key material: the key holder rounds them away, so that
    only the integers of the sum leave it. BFV has no such question.
""")
_FIRST_USE = (
    "Signing keys are trusted at first use: a server that lies could pass off owners of its own, and read updates."
)
_ENROLLED = "Signing keys are enrolled, so that the server cannot pass off its own."
_ONE_RUN = prose("""
    Epsilon is that of this run alone. Every further run on the same rows spends more. An owner that opened a ledger
    on its machine sees there what all runs have cost it.
""")
_ALL_RUNS = prose("""
    Each epsilon is that of one run alone. Whoever learns of all {n} private runs of this page is bounded only by their
    composition: epsilon {epsilon} at delta {delta:.2g} for one {unit}, {how}.
""")
_CHOICE = prose("""
    To choose the best run and publish only that one still uses what the others saw.
""")
_RANDOM_STOPPING = prose("""
    The number of trials was drawn at random (Papernot and Steinke 2022; {stopping}), and so were the settings of each.
    Whoever sees the best trial alone, its settings, its figure and its own model, and never learns how many trials
    there were, is bounded by epsilon {epsilon} at delta {delta:.2g}. This page lists all trials: it is not for
    publication. To train once more with the settings that won is one more run.
""")
_REPLAY = prose("""
    privacy.unsafe_replay_seed is set, so the noise comes from a known seed. Whoever knows the seed can
    remove it: against them epsilon does not hold.
""")
_NO_PRIVACY = prose("""
    {which} differential privacy. Updates and models may then reveal training rows, even whole ones, to
    anyone who sees them.
""")
_CLUSTER = prose("""
    Anyone who may submit code to the Ray cluster is trusted: such code can read what any owner's actor
    holds. Owners who do not trust each other must not share a cluster.
""")


def promises(comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, text): what protects whom from whom, and what does not."""
    private = [variant for variant in comparison.variants if variant.is_private]
    n_open = len(comparison.variants) - len(private)
    found = _protections(comparison)
    if private:
        found += [
            *privacy_promises(private),
            ("One run, or all of them", _composition(comparison)),
            ("The noise itself", _REPLAY if is_replayable(comparison) else noise_itself(private)),
        ]
    if n_open:
        found.append(("Without differential privacy", _NO_PRIVACY.format(which=_which(n_open, bool(private)))))
    return [*found, ("Inside the cluster", _CLUSTER)]


def is_replayable(comparison: Comparison) -> bool:
    """Whether the noise of any private run comes from a known seed, so that its epsilon does not hold."""
    privacies = [variant.experiment.get("privacy", {}) for variant in comparison.variants if variant.is_private]
    return any(privacy.get("unsafe_replay_seed") is not None for privacy in privacies)


def _protections(comparison: Comparison) -> list[tuple[str, str]]:
    """A paragraph for each kind of protection in the comparison; where settings differ, the weakest of them."""
    sections = [variant.experiment["protection"] for variant in comparison.variants]
    by_name = {
        name: _of_one(name, [one for one in sections if one["name"] == name])
        for name in sorted({str(section["name"]) for section in sections})
    }
    what = "what the server sees of one owner"
    if len(by_name) == 1:
        return [(f"Protection: {what}", text) for text in by_name.values()]
    return [(f"Protection “{name}”: {what}", text) for name, text in by_name.items()]


def _of_one(name: str, sections: Sequence[Mapping[str, Any]]) -> str:
    if name == "plain":
        return _PLAIN
    facts = {
        "min_owners": min(section["min_owners"] for section in sections),
        "identities": _ENROLLED if all(section["identities"] for section in sections) else _FIRST_USE,
    }
    if name == "masked":
        return _MASKED.format(**facts)
    return _HOMOMORPHIC.format(name=name, ckks=_CKKS if name == "ckks" else "", **facts)


def _composition(comparison: Comparison) -> str:
    cost = comparison.cost
    if cost is None or cost.n_runs == 1:
        return _ONE_RUN
    epsilon = numbers.epsilon(cost.composed.epsilon)
    how = "by adding them up" if cost.is_plain_sum else f"by {cost.composed.accountant}"
    facts = {"epsilon": epsilon, "how": how, "delta": cost.composed.delta}
    text = _ALL_RUNS.format(n=cost.n_runs, unit=PROTECTED[cost.unit], **facts)
    if cost.selected is None or cost.stopping is None or not cost.was_drawn:
        return f"{text} {_CHOICE}"
    best = numbers.epsilon(cost.selected.epsilon)
    stopping = f"{cost.stopping.distribution}, {cost.stopping.mean:g} expected"
    return f"{text} {_RANDOM_STOPPING.format(stopping=stopping, epsilon=best, delta=cost.selected.delta)}"


def _which(count: int, mixed: bool) -> str:
    if not mixed:
        return "No run here has"
    return f"{numbers.share(count, 'variant')} marked “no DP” {'has' if count == 1 else 'have'} no"
