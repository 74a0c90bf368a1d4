"""The figures of a report: what privacy costs, how learning went, who loses, where time and privacy go.

A colour and a marker mean a family of variants (all settings but the level of privacy) in every figure but
the one of time; levels of privacy are positions or panels. So FedAvg and FedProx at one epsilon are always
side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fedray.report import numbers
from fedray.report.canvas import (
    INK,
    SURFACE,
    Drawing,
    Series,
    draw,
    headline,
    shortened,
    thinned,
)
from fedray.report.comparison import Comparison
from fedray.report.intervals import Interval
from fedray.report.variant import Variant

MAX_PANELS = 6

SeriesMap = Mapping[str, Series]
Curve = Sequence[tuple[int, Interval]]


def privacy_utility(comparison: Comparison, series: SeriesMap) -> Drawing | None:
    """Final metric against the epsilon spent, with no DP in a column of its own; None without DP."""
    shown = [v for v in comparison.variants if v.utility is not None and v.utility.is_finite]
    private = [v for v in shown if v.epsilon is not None and 0 < v.epsilon < math.inf]
    others = [v for v in shown if v not in private]
    search = _search_point(comparison)
    if not private or (len(shown) < 2 and search is None):
        return None

    def paint(figure: Any) -> None:
        ratios = {"width_ratios": [4, 1]} if others else {}
        axes = figure.subplots(1, 2 if others else 1, sharey=True, squeeze=False, gridspec_kw=ratios)[0]
        _private_side(axes[0], comparison, private, others, series)
        if search:
            _search_side(axes[0], *search, series)
        _epsilon_axis(axes[0], [v.epsilon for v in private if v.epsilon] + ([search[1]] if search else []))
        if others:
            _open_side(axes[1], comparison, others, series)
        framed(axes[0], [variant.utility.mean for variant in shown if variant.utility])
        headline(axes[0], f"{shortened(comparison.metric)}, {_better(comparison)} is better")

    described = _utilities(shown)
    return Drawing(
        key="tradeoff",
        title="What privacy costs",
        svg=draw("tradeoff", 3.3, paint),
        description=f"Final {comparison.metric} against epsilon. {described}",
        note="Bars: 95 % intervals over seeds, cut off where they leave the frame. Ring: no other variant"
        f"{' of its kind of privacy' if len(comparison.kinds) > 1 else ''} has both a smaller epsilon and a better "
        f"{comparison.metric}. Points at one epsilon are set a little apart; epsilon is on a logarithmic axis."
        f"{' Epsilons of different kinds bound different things.' if len(comparison.kinds) > 1 else ''}"
        f"{_search_note(search)}",
        legend="series",
    )


def _private_side(
    axes: Any,
    comparison: Comparison,
    private: Sequence[Variant],
    others: Sequence[Variant],
    series: SeriesMap,
) -> None:
    families = [family for family in series if any(v.family == family for v in private)]
    for position, family in enumerate(families):
        nudge = 1.045 ** (position - (len(families) - 1) / 2)
        line = sorted((v for v in private if v.family == family), key=lambda v: v.epsilon or 0.0)
        places = [(v.epsilon or 1.0) * nudge for v in line]
        means = [v.utility.mean for v in line if v.utility]
        style = series[family]
        axes.plot(places, means, color=style.colour, linestyle=style.dashes, linewidth=1.4, zorder=2)
        for place, variant in zip(places, line, strict=True):
            _point(axes, place, variant, style, comparison.on_front(variant))
    for variant in others:
        if variant.utility and series[variant.family].index is not None:
            colour = series[variant.family].colour
            axes.axhline(variant.utility.mean, color=colour, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)


def _search_point(comparison: Comparison) -> tuple[Variant, float] | None:
    """The best private variant, and what it costs with the search that found it.

    None for a single run, and where kinds of privacy, and so epsilons of different things, are mixed.
    """
    best, cost = comparison.best_private, comparison.cost
    if best is None or best.epsilon is None or cost is None or cost.n_runs < 2 or len(comparison.kinds) > 1:
        return None
    return (best, cost.published.epsilon) if best.epsilon < cost.published.epsilon < math.inf else None


def _search_side(axes: Any, best: Variant, epsilon: float, series: SeriesMap) -> None:
    """A hollow mark at the best variant's utility and the whole search's epsilon, with a thread to the variant."""
    assert best.utility is not None, "only variants with a utility are drawn"
    style, mean = series[best.family], best.utility.mean
    thread = {"color": style.colour, "linewidth": 0.9, "linestyle": (0, (1, 2)), "zorder": 2}
    axes.plot([best.epsilon, epsilon], [mean, mean], **thread)
    hollow = {"markersize": 7.5, "markerfacecolor": SURFACE, "markeredgecolor": style.colour, "markeredgewidth": 1.4}
    axes.plot(epsilon, mean, marker=style.marker, linestyle="none", zorder=4, **hollow)


def _epsilon_axis(axes: Any, epsilons: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(epsilons), max(epsilons)
    axes.set_xlim(low / 1.35, high * 1.35)
    ticks = thinned(epsilons, max(1.12, (high / low) ** (1 / 7)))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: numbers.epsilon(value)))
    axes.set_xlabel("epsilon spent (less is more private)")


def _open_side(axes: Any, comparison: Comparison, others: Sequence[Variant], series: SeriesMap) -> None:
    for position, variant in enumerate(others):
        place = (position + 1) / (len(others) + 1)
        _point(axes, place, variant, series[variant.family], comparison.on_front(variant))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator([0.5]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda *_: "no DP"))
    axes.tick_params(axis="x", color="none")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="x")


def _point(axes: Any, place: float, variant: Variant, style: Series, ringed: bool) -> None:
    assert variant.utility is not None, "only variants with a utility are drawn"
    mean, half = variant.utility.mean, variant.utility.half_width
    if half is not None:
        axes.errorbar(place, mean, yerr=half, color=style.colour, elinewidth=1.2, capsize=2.5, zorder=3)
    size = 3 if style.index is None else 6.5
    axes.plot(
        place,
        mean,
        marker=style.marker,
        markersize=size,
        color=style.colour,
        markeredgecolor=SURFACE,
        zorder=4,
    )
    if ringed:
        ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.1}
        axes.plot(place, mean, marker="o", zorder=5, linestyle="none", **ring)


def learning(comparison: Comparison, series: SeriesMap) -> Drawing | None:
    """The metric per round, a panel a level of privacy; for a single variant a panel a metric."""
    drawn = [variant for variant in comparison.variants if variant.curve()]
    if not drawn:
        return None
    if len(comparison.variants) == 1:
        return _all_metrics(drawn[0], series)
    levels, note = chosen_levels(drawn)

    def paint(figure: Any) -> None:
        for axes, level in zip(panels(figure, len(levels)), levels, strict=True):
            members = [v for v in drawn if v.level == level]
            for variant in sorted(members, key=lambda v: _drawn_late(series[v.family])):
                _curve(axes, variant.curve(), series[variant.family])
            axes.set_title(shortened(level, 34))
        framed(axes, [point.mean for variant in drawn for _, point in variant.curve() if point.is_finite])

    finals = _utilities(drawn)
    return Drawing(
        key="learning",
        title=f"Learning, round by round: {comparison.metric}",
        svg=draw("learning", _panel_height(len(levels)), paint),
        description=f"{comparison.metric} over rounds, a panel a level of privacy. At the end: {finals}",
        note=f"Mean over seeds; the band is the 95 % interval, cut off where it leaves the frame. Horizontal: round. "
        f"{note}".strip(),
        legend="series",
    )


def _all_metrics(variant: Variant, series: SeriesMap) -> Drawing:
    names = dict.fromkeys([variant.metric, *(n for run in variant.runs for r in run.rounds for n in variant.judge(r))])
    metrics = [name for name in names if variant.curve(name)][:MAX_PANELS]
    whose = "owners' held-out rows" if variant.is_judged_by_owners else "the server's own test set"

    def paint(figure: Any) -> None:
        for axes, metric in zip(panels(figure, len(metrics), share=False), metrics, strict=True):
            _curve(axes, variant.curve(metric), series[variant.family])
            axes.set_title(shortened(metric, 34))

    return Drawing(
        key="learning",
        title="Learning, round by round",
        svg=draw("learning", _panel_height(len(metrics)), paint),
        description=f"{', '.join(metrics)} on {whose} over rounds.",
        note=f"On {whose}, round by round."
        + (" The band is the 95 % interval over seeds." if len(variant.seeds) > 1 else ""),
        legend="",
    )


def _curve(axes: Any, curve: Curve, style: Series) -> None:
    finite = [(number, point) for number, point in curve if point.is_finite]
    rounds = [number for number, _ in finite]
    means = [point.mean for _, point in finite]
    is_grey = style.index is None
    axes.plot(rounds, means, color=style.colour, linestyle=style.dashes, linewidth=0.7 if is_grey else 1.5)
    if rounds:
        axes.plot(rounds[-1:], means[-1:], marker=style.marker, color=style.colour, markersize=3 if is_grey else 5.5)
    if not is_grey and any(point.half_width is not None for _, point in finite):
        low, high = [point.low for _, point in finite], [point.high for _, point in finite]
        axes.fill_between(rounds, low, high, color=style.colour, alpha=0.14, linewidth=0)


def privacy_spent(comparison: Comparison, series: SeriesMap) -> Drawing | None:
    """Epsilon over rounds; None without DP."""
    curves = [(v, v.epsilon_curve()) for v in comparison.variants if v.is_private]
    curves = [(v, [point for point in curve if math.isfinite(point[1])]) for v, curve in curves]
    curves = [(variant, curve) for variant, curve in curves if curve]
    if not curves:
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for variant, curve in sorted(curves, key=lambda pair: _drawn_late(series[pair[0].family])):
            rounds, epsilons = zip(*curve, strict=True)
            style = series[variant.family]
            axes.plot(rounds, epsilons, color=style.colour, linestyle=style.dashes, linewidth=1.6)
            axes.plot(rounds[-1], epsilons[-1], marker=style.marker, color=style.colour, markersize=5)
        ends = [curve[-1][1] for _, curve in curves if curve[-1][1] > 0]
        if ends and max(ends) / min(ends) > 30:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.set_xlabel("round")
        headline(axes, _epsilon_by(comparison))

    described = "; ".join(f"{v.label}: {numbers.epsilon(v.epsilon)}" for v, _ in curves[:24])
    return Drawing(
        key="spent",
        title="Privacy spent, round by round",
        svg=draw("spent", 2.7, paint),
        description=f"Epsilon over rounds. At the end: {described}",
        note="For the owner who spent most so far. "
        + ("Lines coincide where strategies ask for the same local work." if len(curves) > 1 else ""),
        legend="series" if len(comparison.variants) > 1 else "",
    )


def _epsilon_by(comparison: Comparison) -> str:
    named = sorted({variant.accountant for variant in comparison.variants if variant.accountant is not None})
    return f"epsilon ({', '.join(named)})" if named else "epsilon"


def _drawn_late(style: Series) -> int:
    """Grey first; then solid lines under dashed ones, so that lines that coincide are both seen."""
    return -1 if style.index is None else style.index


def chosen_levels(variants: Sequence[Variant], limit: int = MAX_PANELS) -> tuple[list[str], str]:
    """Levels of privacy that get a panel, and a note where some do not."""
    levels = list(dict.fromkeys(variant.level for variant in variants))
    if len(levels) <= limit:
        return levels, ""
    places = {round(step * (len(levels) - 1) / (limit - 1)) for step in range(limit)}
    return [levels[place] for place in sorted(places)], f"Shown: {limit} of {len(levels)} levels of privacy."


def panels(figure: Any, count: int, share: bool = True) -> list[Any]:
    """Axes in two columns that share their scales; one column for one panel."""
    columns = min(count, 2)
    grid = figure.subplots(math.ceil(count / columns), columns, sharex=True, sharey=share, squeeze=False)
    flat: list[Any] = list(grid.flat)
    for spare in flat[count:]:
        spare.set_visible(False)
    for position, axes in enumerate(flat[:count]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.tick_params(labelbottom=position + columns >= count)
    return flat[:count]


def framed(axes: Any, means: Sequence[float]) -> None:
    """Let means fill the axis: intervals of a few seeds can be many times as wide as all that they are about."""
    if not means:
        return
    low, high = min(means), max(means)
    room = 0.2 * (high - low) or 0.1 * abs(high) or 0.1
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))


def _panel_height(count: int) -> float:
    return 2.6 if count <= 2 else 0.3 + 1.7 * math.ceil(count / 2)


def _utilities(variants: Sequence[Variant]) -> str:
    return "; ".join(f"{v.label}: {numbers.with_interval(v.utility)}" for v in variants[:24])


def _search_note(search: tuple[Variant, float] | None) -> str:
    if search is None:
        return ""
    return f" Hollow: the best private variant at epsilon {numbers.epsilon(search[1])}, that of the whole search."


def _better(comparison: Comparison) -> str:
    return "more" if comparison.mode == "max" else "less"
