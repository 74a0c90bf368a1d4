"""A promise held against the records: what was claimed, what was found, and whether it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "note"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise held against the records."""

    claim: str
    found: str
    verdict: Verdict


def held(holds: bool) -> Verdict:
    return "holds" if holds else "fails"
