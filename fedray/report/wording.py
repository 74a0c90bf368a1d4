"""What a comparison says, in plain sentences. Claims no more than the records hold.

A difference counts as established only where both 95 % intervals exist and do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from fedray.report import numbers
from fedray.report.comparison import Comparison, is_better
from fedray.report.intervals import Interval
from fedray.report.variant import Variant, largest, seed_of, spent

MAX_LEVELS = 4

_STRATEGIES = {"fedavg": "FedAvg", "fedprox": "FedProx"}


def answer(comparison: Comparison) -> list[str]:
    """The report's first paragraph, sentence by sentence."""
    rivals = {level: _best_of_each_strategy(comparison, level) for level in comparison.levels}
    rivals = {level: best for level, best in rivals.items() if best}
    if not rivals:
        return ["No run holds an evaluated round yet, so there is nothing to compare."]
    levels = _few(list(rivals))
    sentences = [_reached(level, rivals[level], comparison.metric) for level in levels]
    if len(levels) < len(rivals):
        sentences.append(f"The table below has the other {len(rivals) - len(levels)} levels of privacy.")
    return [*sentences, *_verdict({level: rivals[level] for level in levels}), *_seeds(comparison)]


def _best_of_each_strategy(comparison: Comparison, level: str) -> list[Variant]:
    """The best variant of every strategy at a level, the better first (the order of the comparison)."""
    best: dict[str, Variant] = {}
    for variant in comparison.variants:
        if variant.level == level and variant.utility is not None:
            other = best.setdefault(variant.strategy, variant)
            if is_better(variant, other, comparison.mode):
                best[variant.strategy] = variant
    return list(best.values())


def _few(levels: list[str]) -> list[str]:
    if len(levels) <= MAX_LEVELS:
        return levels
    places = sorted({round(step * (len(levels) - 1) / (MAX_LEVELS - 1)) for step in range(MAX_LEVELS)})
    return [levels[place] for place in places]


def _reached(level: str, rivals: Sequence[Variant], metric: str) -> str:
    first, *rest = (f"{display_name(v)} {{}}{numbers.with_interval(v.utility)}" for v in rivals)
    parts = [first.format(f"reached {metric} "), *(other.format("") for other in rest)]
    return f"{_at_level(level, rivals)}, {_listed(parts)}."


def _at_level(level: str, rivals: Sequence[Variant]) -> str:
    if level == "no DP":
        return "Without differential privacy"
    described = level.replace("=", " ").replace("noise", "noise multiplier")
    if level.startswith("noise"):
        described += f" (epsilon {numbers.epsilon(largest(v.epsilon for v in rivals))})"
    return f"At {described}"


def display_name(variant: Variant) -> str:
    """``FedProx (mu=0.1)``."""
    head, _, details = variant.family.replace(" · ", " ").partition(" ")
    name = _STRATEGIES.get(head, head)
    return f"{name} ({details.replace(' ', ', ')})" if details else name


def _verdict(rivals: Mapping[str, Sequence[Variant]]) -> list[str]:
    pairs = {level: best for level, best in rivals.items() if len(best) > 1}
    if not pairs:
        return []
    apart = [level for level, best in pairs.items() if _is_established(best)]
    single = any(v.utility is None or v.utility.n < 2 for best in pairs.values() for v in best[:2])
    why = "there is only one seed" if single else "the 95 % intervals overlap"
    if not apart:
        where = "there" if len(pairs) == 1 else "at any of these levels"
        return [f"A difference between the strategies is not established {where}: {why}."]
    names = _listed([_at_level(level, pairs[level])[0].lower() + _at_level(level, pairs[level])[1:] for level in apart])
    if len(apart) == len(pairs):
        return [f"The 95 % intervals of the strategies do not overlap {names}."]
    return [f"Only {names} do the 95 % intervals not overlap; elsewhere a difference is not established."]


def _is_established(best: Sequence[Variant]) -> bool:
    first, second = best[0].utility, best[1].utility
    return isinstance(first, Interval) and isinstance(second, Interval) and first.is_apart_from(second)


def _seeds(comparison: Comparison) -> list[str]:
    counts = sorted({v.utility.n for v in comparison.variants if v.utility is not None})
    if counts == [1]:
        return ["Every figure comes from a single seed, so how far a repeat would differ is not known."]
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [f"Figures are means over {seeds} seeds ± half the 95 % interval."]


def caveats(comparison: Comparison) -> list[str]:
    """What a reader of the table must know."""
    notes = []
    if any(v.utility is not None and v.utility.half_width is not None for v in comparison.variants):
        notes.append(
            "Intervals (Student t over seeds, 95 %) say how far a repeat with the same owners and the same held-out "
            "rows would vary. They say nothing about other data."
        )
    if len(comparison.variants) > 2:
        notes.append(
            f"{len(comparison.variants)} variants were scored on the same held-out rows: the best of them looks a "
            "little better than it is, and some intervals part by chance."
        )
    if incomplete := [v for v in comparison.variants if v.n_complete < len(v.runs)]:
        notes.append(
            f"{numbers.share(len(incomplete), 'variant')} {'has' if len(incomplete) == 1 else 'have'} runs that did "
            "not complete. Figures are taken from the completed runs; where none completed, from the last round that "
            "was evaluated, which flatters or wrongs a variant that stopped early."
        )
    if comparison.unevaluated:
        labels = _listed([f"{run.label} (seed {seed_of(run)})" for run in comparison.unevaluated[:8]])
        more = len(comparison.unevaluated) - 8
        notes.append(f"Without an evaluated round: {labels}" + (f", and {more} more." if more > 0 else "."))
    return notes


def is_replayable(comparison: Comparison) -> bool:
    """Whether the noise of any run can be replayed, so that its epsilon does not hold."""
    return any(
        v.is_private and v.experiment.get("privacy", {}).get("unsafe_replay_seed") is not None
        for v in comparison.variants
    )


def composed(variants: Iterable[Variant]) -> tuple[float, float, int]:
    """(epsilon, delta, runs) of all private runs published together: plain sums, a safe bound.

    A run that did not complete counts with what it planned, if that is more than what is on record.
    """
    epsilon, delta, n_runs = 0.0, 0.0, 0
    for variant in variants:
        if not variant.is_private:
            continue
        privacy = variant.experiment.get("privacy", {})
        for run in variant.runs:
            planned = privacy.get("epsilon") if run.status != "complete" else None
            epsilon += largest([spent([run])[0], planned]) or 0.0
            delta += float(privacy.get("delta", 0.0))
            n_runs += 1
    return epsilon, delta, n_runs


def promises(comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, text): what protects whom from whom, and what does not."""
    private = [v for v in comparison.variants if v.is_private]
    open_ones = [v for v in comparison.variants if not v.is_private]
    found = [("Protection: what the server sees of one owner", _protection(comparison))]
    if private:
        found.append(("Privacy: what the result tells about one row", _example_level(private)))
        found.append(("What that bound leaves out", _left_out()))
        found.append(("One run, or all of them", _composition(private)))
        found.append(("The noise itself", _noise()))
    if open_ones:
        which = "No variant here" if not private else f"{numbers.share(len(open_ones), 'variant')} marked “no DP”"
        found.append(("Without differential privacy", _no_privacy(which, bool(private), len(open_ones))))
    found.append(("Inside the cluster", "Anyone who may submit code to the Ray cluster is trusted: such code can read "
                  "what any owner's actor holds. Owners who do not trust each other must not share a cluster."))  # fmt: skip
    return found


def _protection(comparison: Comparison) -> str:
    names = {str(v.experiment.get("protection", {}).get("name", "plain")) for v in comparison.variants}
    if names == {"plain"}:
        return (
            "Protection is “plain”: the server reads every owner's update as it was sent. It hides nothing from the "
            "server; its sums are exact and do not depend on the order of arrival, and that is all it promises."
        )
    return f"Protection: {_listed(sorted(names))}. See the documentation for what each hides, and from whom."


def _example_level(private: Sequence[Variant]) -> str:
    epsilons = [v.epsilon for v in private if v.epsilon is not None]
    deltas = sorted({float(v.experiment.get("privacy", {}).get("delta", 0.0)) for v in private})
    spread = "" if not epsilons else f" Here epsilon is {_range([numbers.epsilon(e) for e in sorted(epsilons)])}"
    spread += f" at delta {_range([f'{delta:g}' for delta in deltas])}." if spread else ""
    return (
        "Example-level differential privacy. Whoever sees the updates or the model, the server included, learns "
        "little about whether any one training row of any one owner was used: one row more or less changes the "
        "probability of anything they could see by at most a factor of e to the power of epsilon, but for a "
        f"probability of at most delta.{spread} Each owner spends for its own rows; the figure is that of the owner "
        "who spent most. It bounds what is learned about one row, not about a person with many rows or about an "
        "owner as a whole. Epsilon is computed by Google's dp-accounting with privacy loss distributions (PLD); the "
        "looser figure by Rényi DP (RDP) stands beside it."
    )


def _left_out() -> str:
    return (
        "Held-out metrics and the owners' numbers of rows are released without noise; epsilon does not cover them, "
        "nor does it cover settings that were chosen by looking at the data."
    )


def _composition(private: Sequence[Variant]) -> str:
    epsilon, delta, n_runs = composed(private)
    if n_runs == 1:
        return (
            "Epsilon is that of this run alone. Every further run on the same rows spends more: publish several, and "
            "their epsilons and deltas add up (a safe bound)."
        )
    total = numbers.epsilon(epsilon) if math.isfinite(epsilon) else "unbounded"
    return (
        f"Each epsilon is that of one run alone. Whoever sees all {n_runs} private runs of this page, if they used the "
        f"same rows, is bounded only by their composition: epsilon {total} and delta {delta:.2g} by adding them up, "
        "a safe bound. Choosing the best run and publishing only that one still uses what the others saw."
    )


def _noise() -> str:
    return (
        "Noise is drawn as floating-point numbers from a Mersenne Twister that the operating system's entropy seeds. "
        "Attacks on the gaps between floating-point numbers, or on that generator, are not covered by epsilon."
    )


def _no_privacy(which: str, mixed: bool, count: int) -> str:
    verb = "has" if not mixed or count == 1 else "have"
    return (
        f"{which} {verb} differential privacy. Updates and models may then reveal training rows, even whole ones, to "
        "anyone who sees them."
    )


def _range(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} to {texts[-1]}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


