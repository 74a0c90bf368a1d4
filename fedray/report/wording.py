"""What a comparison says, in plain sentences. Claims no more than the records hold.

A difference counts as established only where both 95 % intervals exist and do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedray.report import numbers
from fedray.report.comparison import Comparison, is_better
from fedray.report.cost import SearchCost
from fedray.report.intervals import Interval
from fedray.report.kinds import PROTECTED, evaluation_noise
from fedray.report.labels import SEPARATOR
from fedray.report.variant import Variant, by_server, largest, seed_of

MAX_LEVELS = 4
SPENT_AS_PLANNED = 0.05
"""A spent epsilon this close to the planned one goes without saying."""

_STRATEGIES = {"fedavg": "FedAvg", "fedprox": "FedProx"}


def answer(comparison: Comparison) -> list[str]:
    """The report's first paragraph, sentence by sentence."""
    found = {level: _best_of_each_strategy(comparison, level) for level in comparison.levels}
    rivals = {level: best for level, best in found.items() if best}
    if not rivals:
        return ["No run holds an evaluated round yet, so there is nothing to compare."]
    levels = _few(list(rivals))
    sentences = [_reached(comparison, level, rivals[level]) for level in levels]
    if len(levels) < len(rivals):
        others = numbers.share(len(rivals) - len(levels), "other level")
        sentences.append(f"The table below has {others} of privacy.")
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


def _reached(comparison: Comparison, level: str, rivals: Sequence[Variant]) -> str:
    names = [f"{display_name(v)}{_best_of(comparison, v)}" for v in rivals]
    values = [numbers.with_interval(v.utility) for v in rivals]
    parts = [f"{name} {value}" for name, value in zip(names[1:], values[1:], strict=True)]
    first = f"{names[0]} reached {comparison.metric} {values[0]}"
    return f"{_at_level(level, rivals)}, {listed([first, *parts])}."


def _best_of(comparison: Comparison, variant: Variant) -> str:
    """Says from how many a variant was picked as its strategy's best at its level."""
    n = sum(v.level == variant.level and v.strategy == variant.strategy for v in comparison.variants)
    return f", the best of {n} variants," if n > 1 else ""


def _at_level(level: str, rivals: Sequence[Variant]) -> str:
    if level == "no DP":
        return "Without differential privacy"
    described = level.replace("=", " ").replace("noise", "noise multiplier")
    for kind in ("example", "owner"):
        described = described.replace(f"{kind} ", f"{kind}-level ")
    spent, planned = largest(v.epsilon for v in rivals), rivals[0].experiment["privacy"].get("epsilon")
    if planned is None or (spent is not None and abs(spent / planned - 1) > SPENT_AS_PLANNED):
        described += f" (epsilon spent: {numbers.epsilon(spent)})"
    return f"At {described}"


def display_name(variant: Variant) -> str:
    """``FedProx (mu=0.1)``."""
    parts = [part for part in variant.family.split(SEPARATOR) if part != variant.kind]
    head, _, details = " ".join(parts).partition(" ")
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
    names = listed([_at_level(level, pairs[level])[0].lower() + _at_level(level, pairs[level])[1:] for level in apart])
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
    n_variants = len(comparison.variants)
    exhausted = sum(run.status == "exhausted" for run in comparison.runs)
    incomplete = sum(variant.n_complete < len(variant.runs) for variant in comparison.variants)
    has_intervals = any(v.utility is not None and v.utility.half_width is not None for v in comparison.variants)
    notes = [
        (has_intervals, _INTERVALS),
        (n_variants > 2, _SELECTION.format(n=n_variants)),
        (len(comparison.kinds) > 1, _KINDS),
        (incomplete > 0, _INCOMPLETE.format(variants=numbers.share(incomplete, "variant"))),
        (exhausted > 0, _EXHAUSTED.format(runs=numbers.share(exhausted, "run"))),
        (bool(comparison.unevaluated), _unevaluated(comparison)),
    ]
    return [note for applies, note in notes if applies]


def _unevaluated(comparison: Comparison) -> str:
    names = [f"{run.label} (seed {seed_of(run)})" for run in comparison.unevaluated]
    shown = names[:8] + ([f"{len(names) - 8} more"] if len(names) > 8 else [])
    return f"Without an evaluated round: {listed(shown)}." if names else ""


def measured(comparison: Comparison) -> list[str]:
    """On whose rows figures were measured, and with what noise."""
    metric, variants = comparison.metric, [v for v in comparison.variants if v.utility is not None]
    by_owners = [variant for variant in variants if variant.is_judged_by_owners]
    if comparison.judge is by_server or (variants and not by_owners):
        return [f"Measured as {metric} on the server's own test set, after the last round that was evaluated."]
    found = [f"Measured as {metric} on owners' held-out rows, after the last round that was evaluated."]
    if len(by_owners) < len(variants):
        found.append(_TWO_MEASURES)
    noised = {variant.kind for variant in by_owners if evaluation_noise(variant.experiment) is not None}
    if "example" in noised:
        found.append(_NOISED_ROWS)
    if noised - {"example"}:
        found.append(_NOISED_OWNERS)
    return found


def costs(cost: SearchCost | None) -> list[str]:
    """What all private runs cost together, and what the best one costs that was found among them."""
    if cost is None or cost.n_runs < 2:
        return []
    found = [
        _COMPOSED.format(
            n=cost.n_runs,
            unit=PROTECTED[cost.unit],
            epsilon=numbers.epsilon(cost.composed.epsilon),
            how="their sum" if cost.is_plain_sum else cost.composed.accountant,
            delta=cost.composed.delta,
        )
    ]
    if cost.selected is None or cost.stopping is None:
        return found
    text = _SELECTED if cost.was_drawn else _MIGHT_HAVE_BEEN_SELECTED
    best = numbers.epsilon(cost.selected.epsilon)
    stopping = f"{cost.stopping.distribution}, {cost.stopping.mean:g} expected"
    return [*found, text.format(stopping=stopping, epsilon=best, delta=cost.selected.delta)]


def prose(text: str) -> str:
    """Text written over several lines, as one."""
    return " ".join(text.split())


_INTERVALS = prose("""
    Intervals (Student t over seeds, 95 %) say how far a repeat with the same owners and the same held-out
    rows would vary. They say nothing about other data.
""")
_SELECTION = prose("""
    {n} variants were scored on the same rows: the best of them looks a little better than it is,
    and some intervals part by chance.
""")
_KINDS = prose("""
    Kinds of privacy are mixed. An epsilon for one training row and one for an owner bound different things, and
    hold against different parties: compare within a kind. The Pareto front does.
""")
_EXHAUSTED = prose("""
    {runs} ended before the last round, since too few owners had a privacy budget left.
""")
_TWO_MEASURES = prose("""
    Some variants release no figures of owners and are measured on the server's own test set: do not compare them with
    the others.
""")
_NOISED_ROWS = prose("""
    Under example-level privacy with evaluation.noise_multiplier, each owner's figures are noised before they leave it.
""")
_NOISED_OWNERS = prose("""
    Under owner-level privacy with evaluation.noise_multiplier, figures are noised, and are of the model that the round
    began with, over that round's cohort, every owner counting alike.
""")
_COMPOSED = prose("""
    All {n} private runs together: epsilon {epsilon} ({how}) at delta {delta:.2g} for one {unit}, for whoever learns of
    them all.
""")
_SELECTED = prose("""
    The best trial alone: epsilon {epsilon} (RDP) at delta {delta:.2g}, for whoever sees that trial and not how many
    there were (random stopping, {stopping}). Owners' ledgers are charged for all trials.
""")
_MIGHT_HAVE_BEEN_SELECTED = prose("""
    Had their number been drawn at random (search.draws: random_stopping, {stopping}; figures noised or central),
    the best one alone would have cost epsilon {epsilon} (RDP).
""")
_INCOMPLETE = prose("""
    Not all runs of {variants} completed. Figures are taken from the completed runs; where none completed,
    from the last round that was evaluated, which flatters or wrongs a variant that stopped early.
""")


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
