"""What all parties of a vertical session know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """What all parties of a session know.

    Attributes:
        experiment: the run's name.
        owners: names of the feature owners, ascending.
        holder: the label holder's name.
        id_column: the column that tells people apart, at every party.
        target: name of the label's column; the label holder's only other one when left out.
        seed: of batches, initial weights and dropout; never of noise or keys.
        enrolled: party's name to public signing key.
        folder: where the label holder keeps the run's ledger, on its node.
    """

    experiment: str
    owners: tuple[str, ...]
    holder: str
    id_column: str
    target: str | None
    seed: int
    enrolled: Mapping[str, bytes]
    folder: Path
