"""Configuration of a comparison: how trials are drawn, judged and stopped."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from fedray.config.fields import BY_NAME, Section


class NoStopping(Section):
    """Every trial runs all its rounds."""

    name: Literal["none"] = "none"


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020): stop trials that fall behind."""

    name: Literal["asha"] = "asha"
    grace_rounds: PositiveInt = 3
    """Rounds that every trial may run."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Keep one in so many at each rung."""


Stopping = Annotated[NoStopping | Asha, Field(discriminator="name"), BY_NAME]


class FixedDraws(Section):
    """``samples`` draws from the ranges at every point of the lists."""

    name: Literal["fixed"] = "fixed"


class RandomStopping(Section):
    """As many trials as a secret draw says, each at settings of its own (Papernot and Steinke 2022): whoever sees the
    best trial alone learns little more than from one trial. Lists and ranges are both drawn from."""

    name: Literal["random_stopping"] = "random_stopping"
    mean: Annotated[float, Field(gt=1)] = 10.0
    """Expected number of trials."""
    distribution: Literal["geometric", "logarithmic", "poisson"] = "geometric"
    """Of the number of trials."""


Draws = Annotated[FixedDraws | RandomStopping, Field(discriminator="name"), BY_NAME]


class Search(Section):
    """How ``fedray compare`` runs its trials; ``fedray run`` ignores it."""

    metric: str | None = None
    """Metric on held-out rows that says which trial is better; the first of ``metrics`` when left out."""
    mode: Literal["max", "min"] | None = None
    """Whether more of it is better; known for the metrics that fedray brings."""
    samples: PositiveInt = 1
    """Draws from the search ranges; lists are always tried in full."""
    draws: Draws = FixedDraws()
    """How many trials there are, and at which settings."""
    algorithm: Literal["random", "optuna"] = "random"
    """How ranges are sampled; ``optuna`` needs the extra ``fedray[search]``."""
    stopping: Stopping = NoStopping()
    """Early stopping of trials."""
    max_concurrent: PositiveInt | None = None
    """Trials at a time; as many as fit when left out."""

    @model_validator(mode="after")
    def _random_stopping_looks_at_no_trial(self) -> Self:
        if not isinstance(self.draws, RandomStopping):
            return self
        if not isinstance(self.stopping, NoStopping) or self.algorithm != "random" or self.samples > 1:
            raise ValueError(
                "draws is random_stopping, which draws the number of trials and the settings of each without a look "
                "at any; leave out samples, take algorithm: random and stopping: none"
            )
        return self
