"""Numbers as the report and the terminal show them."""

from __future__ import annotations

import math

from fedray.report.intervals import Interval

NONE = "–"


def number(value: float | None) -> str:
    """About three digits that matter: ``0.872``, ``12.3``, ``0.00042``."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size == 0 or 0.01 <= size < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if 10 <= size < 1000 else f"{value:.2g}" if size < 1 else f"{value:,.0f}"


def with_interval(found: Interval | None) -> str:
    """``0.872 ± 0.021``; the mean alone where there is no interval."""
    if found is None:
        return NONE
    return number(found.mean) if found.half_width is None else f"{number(found.mean)} ± {_spread(found)}"


def _spread(found: Interval) -> str:
    half = found.half_width or 0.0
    if 0.01 <= abs(found.mean) < 10 and 0 < half < 0.0005:
        return "under 0.001"
    return f"{half:.3f}" if 0.01 <= abs(found.mean) < 10 else number(half)


def epsilon(value: float | None) -> str:
    """Three digits, rounded up: a loss is never shown smaller than it is (but for one part in a million)."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "unbounded"
    if value <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step * (1 - 1e-6)) * step:.12g}"


def size(n_bytes: float) -> str:
    """``1.2 MB``, in powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def duration(seconds: float) -> str:
    """``3.2 s`` or ``4 min 10 s``."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def share(count: int, noun: str, plural: str | None = None) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
