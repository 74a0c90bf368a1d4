"""What protects whom from whom, in plain words, from what the experiments say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedray.report import numbers
from fedray.report.comparison import Comparison
from fedray.report.variant import Variant, largest, spent
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
_EXAMPLE_LEVEL = prose("""
    Example-level differential privacy. Whoever sees the updates or the model, the server included, learns
    little about whether any one training row of any one owner was used: one row more or less changes the
    probability of anything they could see by at most a factor of e to the power of epsilon, but for a
    probability of at most delta. {here} Each owner spends for its own rows; the figure is that of the
    owner who spent most. It bounds what is learned about one row, not about a person with many rows or
    about an owner as a whole. Epsilon is computed by Google's dp-accounting with privacy loss
    distributions (PLD); the figure by Rényi DP (RDP) stands beside it.
""")
_LEFT_OUT = prose("""
    Held-out metrics, the owners' numbers of rows and their training times are released without noise;
    epsilon does not cover them. Nor does it cover settings that were chosen by looking at the data.
""")
_ONE_RUN = prose("""
    Epsilon is that of this run alone. Every further run on the same rows spends more: publish several,
    and their epsilons and deltas add up (a safe bound).
""")
_ALL_RUNS = prose("""
    Each epsilon is that of one run alone. Whoever sees all {n} private runs of this page, if they used
    the same rows, is bounded only by their composition: epsilon {epsilon} and delta {delta:.2g} by adding
    them up, a safe bound. To choose the best run and publish only that one still uses what the others
    saw.
""")
_NOISE = prose("""
    Noise is drawn as floating-point numbers from a Philox generator, with a fresh 128-bit key of the
    operating system's every round. Attacks on the gaps between floating-point numbers, or on that
    generator, are not covered by epsilon.
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
            ("Privacy: what the result tells about one row", _EXAMPLE_LEVEL.format(here=_here(private))),
            ("What that bound leaves out", _LEFT_OUT),
            ("One run, or all of them", _composition(private)),
            ("The noise itself", _REPLAY if is_replayable(comparison) else _NOISE),
        ]
    if n_open:
        found.append(("Without differential privacy", _NO_PRIVACY.format(which=_which(n_open, bool(private)))))
    return [*found, ("Inside the cluster", _CLUSTER)]


def is_replayable(comparison: Comparison) -> bool:
    """Whether the noise of any private run comes from a known seed, so that its epsilon does not hold."""
    privacies = [variant.experiment.get("privacy", {}) for variant in comparison.variants if variant.is_private]
    return any(privacy.get("unsafe_replay_seed") is not None for privacy in privacies)


def composed(variants: Iterable[Variant]) -> tuple[float, float, int]:
    """(epsilon, delta, runs) of all private runs published together: plain sums, a safe bound.

    A run that did not complete counts with what it planned, if that is more than what is on record.
    """
    epsilon, delta, n_runs = 0.0, 0.0, 0
    for variant in (variant for variant in variants if variant.is_private):
        privacy = variant.experiment.get("privacy", {})
        for run in variant.runs:
            planned = privacy.get("epsilon") if run.status != "complete" else None
            epsilon += largest([spent([run])[0], planned]) or 0.0
            delta += float(privacy.get("delta", 0.0))
            n_runs += 1
    return epsilon, delta, n_runs


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


def _here(private: Sequence[Variant]) -> str:
    epsilons = sorted(variant.epsilon for variant in private if variant.epsilon is not None)
    deltas = sorted({float(variant.experiment.get("privacy", {}).get("delta", 0.0)) for variant in private})
    if not epsilons:
        return "No epsilon is on record here yet."
    spread = _range([numbers.epsilon(epsilon) for epsilon in epsilons])
    return f"Here epsilon is {spread} at delta {_range([f'{delta:g}' for delta in deltas])}."


def _composition(private: Sequence[Variant]) -> str:
    epsilon, delta, n_runs = composed(private)
    if n_runs == 1:
        return _ONE_RUN
    total = numbers.epsilon(epsilon) if math.isfinite(epsilon) else "unbounded"
    return _ALL_RUNS.format(n=n_runs, epsilon=total, delta=delta)


def _which(count: int, mixed: bool) -> str:
    if not mixed:
        return "No run here has"
    return f"{numbers.share(count, 'variant')} marked “no DP” {'has' if count == 1 else 'have'} no"


def _range(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} to {texts[-1]}"
