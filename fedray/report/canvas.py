"""Figures as SVG text that CSS can recolour. Owns colours, markers and the way from matplotlib to inline SVG.

Matplotlib draws in placeholder colours, which become CSS variables, so that one drawing serves light and dark
pages. Fonts are left to the page. No pyplot: its state is global. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import MarkerStyle

from fedray.report.comparison import Comparison, goodness

N_SERIES = 8
N_PHASES = 7
WIDTH = 4.6
"""Width of every figure in inches; small, so that its text is still readable on a phone."""

INK, MUTED, LINE, SURFACE = "#fe00a0", "#fe00a1", "#fe00a2", "#fe00a3"
_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", SURFACE: "var(--surface)"}
_SERIES = {f"#fe00b{index}": f"var(--series-{index + 1})" for index in range(N_SERIES)}
_PHASES = {f"#fe00c{index}": f"var(--phase-{index + 1})" for index in range(N_PHASES)}
_VARIABLES = _PAGE | _SERIES | _PHASES
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = "osD^vPXp"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedray",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Series:
    """How one family of variants is drawn in every figure; grey (``index`` None) where there are too many."""

    family: str
    index: int | None

    @property
    def colour(self) -> str:
        return MUTED if self.index is None else f"#fe00b{self.index}"

    @property
    def marker(self) -> str:
        return "." if self.index is None else MARKERS[self.index]

    @property
    def dashes(self) -> Any:
        return _DASHES[0] if self.index is None else _DASHES[self.index % len(_DASHES)]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure of the report.

    Attributes:
        key: short name, unique on the page.
        title: heading above it.
        svg: inline SVG; colours are CSS variables.
        description: what it shows in words, for those who cannot see it.
        note: what a reader must know to read it; may be empty.
        legend: ``series``, ``phases`` or ``work``: which legend belongs to it.
    """

    key: str
    title: str
    svg: str
    description: str
    note: str
    legend: str


def series_of(comparison: Comparison) -> dict[str, Series]:
    """A colour and a marker for every family; past eight families only for those with the best variants."""
    families = comparison.families
    best = {f: max(goodness(v, comparison.mode) for v in comparison.variants if v.family == f) for f in families}
    chosen = sorted(sorted(families, key=lambda family: -best[family])[:N_SERIES])
    return {family: Series(family, chosen.index(family) if family in chosen else None) for family in families}


def legend(series: Mapping[str, Series]) -> list[dict[str, str]]:
    """What the page needs to draw a legend: name, style, dashes and the marker's outline in a 30 x 14 box."""
    entries = [
        {
            "name": family,
            "style": f"fill: {_VARIABLES[member.colour]}; stroke: {_VARIABLES[member.colour]}",
            "dashes": "" if member.dashes == "-" else " ".join(str(1.6 * part) for part in member.dashes[1]),
            "path": _outline(member.marker),
        }
        for family, member in series.items()
        if member.index is not None
    ]
    grey = {"style": "fill: var(--muted); stroke: var(--muted)", "dashes": "", "path": _outline(".")}
    return entries if len(entries) == len(series) else [*entries, {"name": "others", **grey}]


def _outline(marker: str) -> str:
    """SVG path of a matplotlib marker, 9 units wide, in the middle of a 30 x 14 box."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    scale = 4.0 if marker == "." else 9.0
    commands = {path.MOVETO: "M", path.LINETO: "L", path.CURVE3: "Q", path.CURVE4: "C"}
    parts = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        if code == path.CLOSEPOLY:
            parts.append("Z")
            continue
        pairs = zip(points[0::2], points[1::2], strict=True)
        parts.append(commands[code] + " ".join(f"{15 + scale * x:.2f} {7 - scale * y:.2f}" for x, y in pairs))
    return "".join(parts)


def phase_colour(index: int) -> str:
    """Placeholder colour of a phase of a round."""
    return f"#fe00c{index % N_PHASES}"


def draw(key: str, height: float, paint: Callable[[Any], None]) -> str:
    """SVG of a figure that ``paint`` fills, ``height`` inches high."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05))
        paint(figure)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue(), key)


def headline(axes: Any, text: str) -> None:
    """Name of the vertical axis, written above it so that nobody has to turn their head."""
    axes.set_title(text, color=MUTED, fontsize=9.5, pad=8)


def shortened(text: str, limit: int = 20) -> str:
    """A name that fits a plot: no control characters, an ellipsis where it is cut."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def thinned(values: Sequence[float], least_ratio: float) -> list[float]:
    """Ascending values without those that lie too close above the one before."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value / kept[-1] >= least_ratio:
            kept.append(value)
    return kept


def _inline(svg: str, key: str) -> str:
    """The bare ``<svg>`` element: no prologue, no metadata, ids of its own, colours as variables."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None, "matplotlib wrote an SVG without a viewBox"
    body = f'<svg viewBox="{view[1]}" aria-hidden="true" focusable="false">' + body[body.index(">") + 1 :]
    body = re.sub(r'(?<= id=")', f"{key}-", body)
    body = re.sub(r'(?<="#)|(?<=url\(#)', f"{key}-", body).replace("xlink:href", "href")
    body = re.sub(r"(?<=style=\")font: ([0-9.]+px) [^;\"]+", r"font-size: \1", body)
    return re.sub(r"(fill|stroke): (#fe00[abc]\d)", lambda m: f"{m[1]}: {_VARIABLES[m[2]]}", body)
