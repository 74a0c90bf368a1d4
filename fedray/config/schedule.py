"""Configuration of when a round is closed, and whether owners wait for each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fedray.config.fields import BY_NAME, Section


class Synchronous(Section):
    """Owners of a cohort train from the same model; whoever is not done when the round is closed is left out of it."""

    name: Literal["synchronous"] = "synchronous"
    close_after_s: PositiveFloat | None = None
    """Seconds of training after which a round is closed with the updates that are there; without, it waits for all."""


class Buffered(Section):
    """FedBuff (Nguyen et al. 2022): owners train all the time, and the server steps once a buffer of updates is full.

    Late updates join a later round, with a smaller weight: ``1 / (1 + staleness) ** power``.
    """

    name: Literal["buffered"] = "buffered"
    size: PositiveInt
    """Updates that make up a round."""
    at_work: PositiveInt | None = None
    """Owners that train at a time; all of them when left out."""
    power: NonNegativeFloat = 0.5
    """How fast the weight of an update falls with its staleness, the rounds since its owner was given the model."""
    max_staleness: NonNegativeInt = 20
    """Rounds after which an update is thrown away."""


Schedule = Annotated[Synchronous | Buffered, Field(discriminator="name"), BY_NAME]
