"""Configuration of privacy: what bounds what the result reveals, of whom, and against whom."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedray.config.fields import BY_NAME, Section

Probability = Annotated[float, Field(gt=0, lt=1)]


class NoPrivacy(Section):
    """No differential privacy."""

    name: Literal["none"] = "none"


class _Budgeted(Section):
    epsilon: PositiveFloat | None = None
    """Budget for the whole run. Give this or ``noise_multiplier``."""
    noise_multiplier: PositiveFloat | None = None
    """Noise deviation over the clipping norm, instead of a budget."""
    delta: Probability = 1e-5
    """Failure probability; must be below one over the number of what is protected."""
    clip: PositiveFloat = 1.0
    """Norm to which each part is clipped."""
    unsafe_replay_seed: int | None = None
    """For tests only: noise that can be replayed. Whoever knows the seed can remove it."""

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        return self


class ExamplePrivacy(_Budgeted):
    """Example-level differential privacy: DP-SGD (Abadi et al. 2016) inside every owner, by Opacus.

    Each owner's noise is calibrated once for the whole planned training, so that the epsilon it has spent at the end
    is the one given here. Neighbouring shards differ in one training row, for which one of them has nothing; row
    counts and the choice of held-out rows are public.
    """

    name: Literal["example"] = "example"
    gradients: Literal["per_example", "ghost"] = "per_example"
    """How the norms are found that examples are clipped by. ``per_example`` forms every example's gradient. ``ghost``
    (Li et al. 2021) finds the norms without, and goes backward twice: far less memory and time for wide linear layers,
    no gain for recurrent ones and for linear ones on sequences. Needs one of fedray's named losses."""


class FixedClip(Section):
    """The same norm in every round."""

    name: Literal["fixed"] = "fixed"


class AdaptiveClip(Section):
    """A norm that follows a quantile of the owners' update norms (Andrew et al. 2021), starting at ``clip``."""

    name: Literal["adaptive"] = "adaptive"
    quantile: Probability = 0.5
    """Share of updates that are not clipped."""
    rate: PositiveFloat = 0.2
    """Learning rate of the norm's logarithm."""
    count_noise: PositiveFloat | None = None
    """Noise deviation on the number of unclipped updates; a twentieth of the expected cohort when left out, or more
    where that would cost the update too much."""


Clipping = Annotated[FixedClip | AdaptiveClip, Field(discriminator="name"), BY_NAME]


class GaussianNoise(Section):
    """Fresh Gaussian noise in every round."""

    name: Literal["gaussian"] = "gaussian"


class TreeNoise(Section):
    """DP-FTRL (Kairouz et al. 2021): prefix sums by binary trees. Needs ``cohort: cyclic``, and no sampling."""

    name: Literal["tree"] = "tree"
    restart_every: PositiveInt | None = None
    """Rounds of a tree: at most as many as lie between two rounds of an owner; the largest power of two of these when
    left out."""


class BandedNoise(Section):
    """Banded matrix factorisation (Choquette-Choo et al. 2023). Needs ``cohort: cyclic``, and no sampling."""

    name: Literal["banded"] = "banded"
    bands: PositiveInt | None = None
    """Rounds over which noise is correlated; as many as lie between two rounds of an owner when left out, up to 32."""


CentralNoise = Annotated[GaussianNoise | TreeNoise | BandedNoise, Field(discriminator="name"), BY_NAME]


class OwnerPrivacy(_Budgeted):
    """Owner-level differential privacy with a trusted server (McMahan et al. 2018): owners clip, the server adds noise.

    Neighbours differ in one owner's whole part in the run, for which one of them has zeros. Holds against whoever sees
    the models, not against the server.
    """

    name: Literal["owner"] = "owner"
    clipping: Clipping = FixedClip()
    """Whether the norm stays."""
    noise: CentralNoise = GaussianNoise()
    """How the noise of different rounds hangs together."""
    weight_bound: PositiveInt | None = None
    """With ``weighting: examples``: an owner counts by its training rows up to so many."""


class DistributedPrivacy(_Budgeted):
    """Owner-level differential privacy without trust in the server: owners add integer noise inside the masked sum.

    The noise of the owners that are left after the tolerated dropouts, without those that may join with the server
    (``protection.dropouts`` and ``protection.corrupt``), is enough.
    """

    name: Literal["distributed"] = "distributed"
    clipping: Clipping = FixedClip()
    """Whether the norm stays."""
    noise: Literal["discrete_gaussian", "skellam"] = "discrete_gaussian"
    """Law of the noise: Kairouz et al. 2021, or Agarwal et al. 2021."""


class LocalPrivacy(_Budgeted):
    """Owner-level differential privacy that trusts nobody: each owner's own noise is enough for itself."""

    name: Literal["local"] = "local"
    clipping: Clipping = FixedClip()
    """Whether the norm stays."""
    noise: Literal["discrete_gaussian", "skellam"] = "discrete_gaussian"
    """Law of the noise: Kairouz et al. 2021, or Agarwal et al. 2021."""


OwnerLevel = OwnerPrivacy | DistributedPrivacy | LocalPrivacy
"""All kinds that protect an owner as a whole."""

Privacy = Annotated[
    NoPrivacy | ExamplePrivacy | OwnerPrivacy | DistributedPrivacy | LocalPrivacy,
    Field(discriminator="name"),
    BY_NAME,
]
