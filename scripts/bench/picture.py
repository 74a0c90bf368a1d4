"""The benchmark as a picture: seconds a round by case and loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"bare": "#9aa5b1", "vectorised": "#62758a", "fedray": "#c8553d"}


def draw(cases: Mapping[str, Any], path: Path) -> None:
    """Bars of median seconds with the least and the most, a panel a case."""
    heights = [len(case["loops"]) + 1.6 for case in cases.values()]
    figure = Figure(figsize=(8, 0.36 * sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, case) in zip(panels, cases.items(), strict=True):
        _panel(axes, name, case)
    panels[-1].set_xlabel("seconds a round: median, least and most; rounds without evaluation")
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, name: str, case: Mapping[str, Any]) -> None:
    loops = case["loops"]
    seconds = [one["seconds a round, median"] for one in loops.values()]
    ends = [one["least and most"] for one in loops.values()]
    errors = [
        [middle - least for middle, (least, _) in zip(seconds, ends, strict=True)],
        [most - middle for middle, (_, most) in zip(seconds, ends, strict=True)],
    ]
    colours = [COLOURS[loop.partition(",")[0]] for loop in loops]
    axes.barh(list(loops), seconds, xerr=errors, color=colours, height=0.7, ecolor="#333333", capsize=2)
    for place, (value, (_, most)) in enumerate(zip(seconds, ends, strict=True)):
        axes.annotate(f"{value:.3g} s", (most, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.15 * max(most for _, most in ends))
    axes.set_title(f"{name}: {case['what']}", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
