"""What a comparison says, in plain sentences. Claims no more than the records hold.

A difference counts as established only where both 95 % intervals exist and do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedray.report import numbers
from fedray.report.comparison import Comparison, is_better
from fedray.report.intervals import Interval
from fedray.report.variant import Variant, largest, seed_of

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
    spent, planned = largest(v.epsilon for v in rivals), rivals[0].experiment["privacy"].get("epsilon")
    if planned is None or (spent is not None and abs(spent / planned - 1) > SPENT_AS_PLANNED):
        described += f" (epsilon spent: {numbers.epsilon(spent)})"
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
    incomplete = sum(variant.n_complete < len(variant.runs) for variant in comparison.variants)
    has_intervals = any(v.utility is not None and v.utility.half_width is not None for v in comparison.variants)
    notes = [
        (has_intervals, _INTERVALS),
        (n_variants > 2, _SELECTION.format(n=n_variants)),
        (incomplete > 0, _INCOMPLETE.format(variants=numbers.share(incomplete, "variant"))),
        (bool(comparison.unevaluated), _unevaluated(comparison)),
    ]
    return [note for applies, note in notes if applies]


def _unevaluated(comparison: Comparison) -> str:
    names = [f"{run.label} (seed {seed_of(run)})" for run in comparison.unevaluated]
    shown = names[:8] + ([f"{len(names) - 8} more"] if len(names) > 8 else [])
    return f"Without an evaluated round: {listed(shown)}." if names else ""


def prose(text: str) -> str:
    """Text written over several lines, as one."""
    return " ".join(text.split())


_INTERVALS = prose("""
    Intervals (Student t over seeds, 95 %) say how far a repeat with the same owners and the same held-out
    rows would vary. They say nothing about other data.
""")
_SELECTION = prose("""
    {n} variants were scored on the same held-out rows: the best of them looks a little better than it is,
    and some intervals part by chance.
""")
_INCOMPLETE = prose("""
    Not all runs of {variants} completed. Figures are taken from the completed runs; where none completed,
    from the last round that was evaluated, which flatters or wrongs a variant that stopped early.
""")


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
