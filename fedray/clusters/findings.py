"""What a check finds in a cluster's file: how bad, where, what, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Raw = Mapping[str, Any]
"""A parsed file, or a part of it."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a cluster's file, or that its reader should know.

    Attributes:
        severity: ``error`` if the cluster would not work or not be safe, ``warning`` if it may not, ``note`` otherwise.
        where: the key in the file, as ``section.key``.
        found: what is there.
        remedy: what to do.
    """

    severity: Literal["error", "warning", "note"]
    where: str
    found: str
    remedy: str


def error(where: str, found: str, remedy: str) -> Finding:
    """What must be mended first."""
    return Finding("error", where, found, remedy)


def warning(where: str, found: str, remedy: str) -> Finding:
    """What is most likely a mistake."""
    return Finding("warning", where, found, remedy)


def note(where: str, found: str, remedy: str) -> Finding:
    """What the file cannot say, or what Ray does by itself."""
    return Finding("note", where, found, remedy)


def mapping(raw: Any) -> dict[str, Any]:
    """A section as a mapping; empty where it is left out, or is something else, of which the schema complains."""
    return dict(raw) if isinstance(raw, Mapping) else {}


def strings(raw: Any) -> list[str]:
    """A list of commands or options as text; empty where it is left out."""
    return [str(item) for item in raw] if isinstance(raw, list) else []


def number(raw: Any) -> float:
    """A quantity that may be written as text; 0 where it is none, or has a unit such as ``16Gi``."""
    try:
        return float(raw)
    except (TypeError, ValueError):
        return 0.0
