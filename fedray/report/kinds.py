"""What kind of privacy an experiment asked for: whom it protects, and what it rests on.

Reads experiments as records keep them: mappings, defaults included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fedray.privacy.events import FixedSizeGaussian, SampledGaussian
from fedray.privacy.tuning import decoded
from fedray.records import RunRecords

Kind = Literal["none", "example", "owner", "distributed", "local"]
KINDS: tuple[Kind, ...] = ("example", "owner", "distributed", "local")
"""Kinds of differential privacy, in the order in which a page describes them."""
PROTECTED = {"example": "training row", "owner": "owner"}
"""What each unit is called."""

Settings = Mapping[str, Any]


def section_of(experiment: Settings) -> Settings:
    """The experiment's section on privacy."""
    section: Settings = experiment.get("privacy", {})
    return section


def kind_of(experiment: Settings) -> Kind:
    kind: Kind = section_of(experiment).get("name", "none")
    return kind


def unit_of(experiment: Settings) -> Literal["example", "owner"]:
    """What is protected: one training row, or all that an owner has."""
    return "example" if kind_of(experiment) in ("none", "example") else "owner"


def evaluation_noise(experiment: Settings) -> float | None:
    """Deviation of the noise on held-out figures; None where there is none, or nothing is private."""
    found: float | None = experiment.get("evaluation", {}).get("noise_multiplier")
    return found if kind_of(experiment) != "none" else None


def is_correlated(experiment: Settings) -> bool:
    """Whether noise is correlated over rounds, so that the run is accounted for as a whole."""
    noise = section_of(experiment).get("noise")
    return isinstance(noise, Mapping) and noise.get("name") in ("tree", "banded")


def has_secret_cohorts(run: RunRecords) -> bool:
    """Whether epsilon counts on it that nobody learns who took part in which round; if in doubt, it does."""
    if kind_of(run.experiment) != "owner" or is_correlated(run.experiment):
        return False
    charges = [decoded(line.charges) for record in run.rounds[-1:] for line in record.owners]
    if charges and None not in charges:
        events = [charge.event for one in charges for charge in one or ()]
        return any(isinstance(event, SampledGaussian | FixedSizeGaussian) for event in events)
    return run.experiment.get("cohort", {}).get("name") in ("poisson", "fixed")
