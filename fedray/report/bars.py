"""Figures with a line a name: the metric of every owner, and seconds by phase of every variant.

Names of variants stand above their bar or row, since beside it they would leave no room on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from fedray.report import numbers
from fedray.report.canvas import (
    INK,
    LINE,
    MUTED,
    SURFACE,
    Drawing,
    Series,
    draw,
    headline,
    phase_colour,
    shortened,
)
from fedray.report.comparison import Comparison
from fedray.report.plots import SeriesMap, chosen_levels, panels
from fedray.report.variant import Variant

MAX_OWNERS = 50
MAX_ROWS = 12
OWNER_PANELS = 4

_WORST_FIRST = "Each on its own held-out rows, the worst off on top."
_CHANCE = "Owners with few held-out rows scatter by chance alone."

OwnerMeans = Mapping[str, float]


def owners(comparison: Comparison, series: SeriesMap) -> Drawing | None:
    """Final metric of every owner: dots up to 50 owners, beyond that the distribution."""
    found = [(variant, _means(variant)) for variant in comparison.variants]
    found = [(variant, means) for variant, means in found if means]
    names = {name for _, means in found for name in means}
    if not found or len(names) < 2:
        return None
    return _dots(comparison, found, series) if len(names) <= MAX_OWNERS else _spread(comparison, found, series)


def _title(comparison: Comparison, scope: str) -> str:
    opening = "Who gains, who loses: " if len(comparison.variants) > 1 else ""
    return f"{opening}{comparison.metric} {scope}"


def _means(variant: Variant) -> dict[str, float]:
    return {o.name: o.utility.mean for o in variant.owners() if o.utility is not None and o.utility.is_finite}


def _dots(comparison: Comparison, found: Sequence[tuple[Variant, OwnerMeans]], series: SeriesMap) -> Drawing:
    levels, note = chosen_levels([variant for variant, _ in found], OWNER_PANELS)
    order = _worst_first(comparison, found)
    rows = math.ceil(len(levels) / 2)

    def paint(figure: Any) -> None:
        for axes, level in zip(panels(figure, len(levels)), levels, strict=True):
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4 if len(levels) > 1 else 7))
            members = [(v, means) for v, means in found if v.level == level]
            _dot_panel(axes, members, order, series)
            axes.set_title(shortened(level if len(comparison.levels) > 1 else comparison.metric, 30))

    step = 0.24 if len(order) <= 12 else 0.175
    return Drawing(
        key="owners",
        title=_title(comparison, "by owner"),
        svg=draw("owners", 0.5 + rows * (0.45 + step * max(len(order), 4)), paint),
        description=f"Final {comparison.metric} of {len(order)} owners. " + _extremes(found),
        note=" ".join(filter(None, [_WORST_FIRST, _CHANCE, _missing(comparison, found), note])),
        legend="series" if len(comparison.variants) > 1 else "",
    )


def _missing(comparison: Comparison, found: Sequence[tuple[Variant, OwnerMeans]]) -> str:
    n = len(comparison.variants) - len(found)
    return f"{numbers.share(n, 'variant')} without figures of owners left out." if n else ""


def _worst_first(comparison: Comparison, found: Sequence[tuple[Variant, OwnerMeans]]) -> list[str]:
    values: dict[str, list[float]] = {}
    for _, means in found:
        for name, value in means.items():
            values.setdefault(name, []).append(value)
    sign = 1.0 if comparison.mode == "max" else -1.0
    return sorted(values, key=lambda name: (sign * sum(values[name]) / len(values[name]), name))


def _dot_panel(
    axes: Any, members: Sequence[tuple[Variant, OwnerMeans]], order: Sequence[str], series: SeriesMap
) -> None:
    for place, name in enumerate(order):
        values = [means[name] for _, means in members if name in means]
        if len(values) > 1:
            axes.plot([min(values), max(values)], [place, place], color=LINE, linewidth=2.2, zorder=1)
    for variant, means in members:
        style = series[variant.family]
        places = [place for place, name in enumerate(order) if name in means]
        values = [means[order[place]] for place in places]
        size = 3.0 if style.index is None else 6.0 if len(order) <= 24 else 5.0
        dots = {
            "marker": style.marker,
            "markersize": size,
            "markeredgecolor": SURFACE,
            "markeredgewidth": 0.6,
        }
        axes.plot(values, places, linestyle="none", color=style.colour, zorder=2, **dots)
    axes.yaxis.set_major_locator(FixedLocator(range(len(order))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda place, _: shortened(order[round(place)], 16)))
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _spread(comparison: Comparison, found: Sequence[tuple[Variant, OwnerMeans]], series: SeriesMap) -> Drawing:
    rows = found[:MAX_ROWS]
    left_out = f"Shown: {len(rows)} of {len(found)} variants. " if len(found) > len(rows) else ""

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, (variant, means) in enumerate(rows):
            _spread_row(axes, place, sorted(means.values()), series[variant.family])
        name_rows(axes, [variant.label for variant, _ in rows])
        headline(axes, shortened(comparison.metric))

    n_owners = max(len(means) for _, means in rows)
    return Drawing(
        key="owners",
        title=_title(comparison, f"over {n_owners:,} owners"),
        svg=draw("owners", 0.8 + 0.5 * len(rows), paint),
        description=f"Distribution of the final {comparison.metric} over {n_owners} owners. " + _extremes(rows),
        note=f"A tick is an owner; the bar spans their middle half, the gap is their median. {left_out}{_CHANCE}",
        legend="",
    )


def _spread_row(axes: Any, place: int, values: Sequence[float], style: Series) -> None:
    ticks = {"marker": "|", "markersize": 7, "markeredgewidth": 0.7, "alpha": 0.6}
    axes.plot(values, [place] * len(values), linestyle="none", color=style.colour, zorder=1, **ticks)
    lower, middle, upper = (_quantile(values, share) for share in (0.25, 0.5, 0.75))
    axes.barh(place, upper - lower, left=lower, height=0.26, color=style.colour, linewidth=0, zorder=2)
    axes.plot([middle, middle], [place - 0.13, place + 0.13], color=SURFACE, linewidth=2.0, zorder=3)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _extremes(found: Sequence[tuple[Variant, OwnerMeans]]) -> str:
    ends = [(v.label, min(means.values()), max(means.values())) for v, means in found[:24]]
    return "; ".join(f"{label}: {numbers.number(low)} to {numbers.number(high)}" for label, low, high in ends)


def seconds(comparison: Comparison, phases: Mapping[str, int]) -> Drawing | None:
    """Seconds of a run by phase, a bar a variant.

    Args:
        comparison: whose variants to draw.
        phases: each phase with its colour, in the order of a round.
    """
    found = [(variant, variant.seconds()) for variant in comparison.variants]
    return _stacks("seconds", "Where time goes", "phases", "Wall time of a whole run by phase", found, phases)


def work(comparison: Comparison, kinds: Mapping[str, int]) -> Drawing | None:
    """Seconds that all processes of owners spent together, a bar a variant; None where that is not on record.

    Args:
        comparison: whose variants to draw.
        kinds: each kind of work with its colour, in the order of a round.
    """
    found = [(variant, variant.work()) for variant in comparison.variants]
    note = "Time of a whole run that all processes of owners spent together, by what they did"
    return _stacks("work", "What owners' processes do", "work", note, found, kinds)


def _stacks(
    key: str,
    title: str,
    legend: str,
    note: str,
    found: Sequence[tuple[Variant, Mapping[str, float]]],
    parts: Mapping[str, int],
) -> Drawing | None:
    """A bar a variant, made up of its parts in their colours."""
    found = [(variant, times) for variant, times in found if sum(times.values()) > 0]
    if not found:
        return None
    rows = found[:MAX_ROWS]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, (_, times) in enumerate(rows):
            _stack(axes, place, times, parts)
        name_rows(axes, [variant.label for variant, _ in rows])
        axes.set_xlim(0, max(sum(times.values()) for _, times in rows) * 1.16)
        axes.set_xlabel("seconds")

    described = "; ".join(f"{v.label}: {numbers.duration(sum(times.values()))}" for v, times in rows)
    shared = " Variants that ran side by side shared the machine." if len(found) > 1 else ""
    left_out = f" Shown: {len(rows)} of {len(found)} variants." if len(found) > len(rows) else ""
    return Drawing(
        key=key,
        title=title,
        svg=draw(key, 0.75 + 0.44 * len(rows), paint),
        description=f"{note}. {described}",
        note=f"{note}, mean over runs.{shared}{left_out}",
        legend=legend,
    )


def _stack(axes: Any, place: int, times: Mapping[str, float], parts: Mapping[str, int]) -> None:
    start = 0.0
    for part, colour in parts.items():
        length = times.get(part, 0.0)
        if length > 0:
            axes.barh(place, length, left=start, height=0.36, color=phase_colour(colour), linewidth=0)
        start += length
    axes.annotate(
        numbers.duration(start),
        (start, place),
        (4, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
        size=9,
    )


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """A name above every row, instead of labels at the left."""
    for place, name in enumerate(names):
        axes.text(
            0.0,
            place - 0.27,
            shortened(name, 60),
            transform=axes.get_yaxis_transform(),
            va="bottom",
            color=INK,
        )
    axes.set_ylim(len(names) - 0.6, -0.85)
    axes.yaxis.set_major_locator(FixedLocator([]))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
