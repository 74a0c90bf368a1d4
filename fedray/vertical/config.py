"""A vertical experiment in YAML: a file whose top level says ``kind: vertical``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from fedray.config.cluster import Placement
from fedray.config.data import AbsolutePath
from fedray.config.fields import BY_NAME, Reference, Section
from fedray.config.learning import Adam, Sgd
from fedray.config.loading import explain, override
from fedray.vertical.plans import LARGEST_EPSILON


class Held(Section):
    """A party's table, opened on its own node: one of the two."""

    path: AbsolutePath | None = None
    """CSV or Parquet file there; from the folder that fedray runs in, if it is not absolute."""
    source: Reference | None = None
    """A function that returns the table there."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.source is None):
            raise ValueError("give one of path and source")
        return self


class FeatureOwnerSection(Held):
    """A feature owner and its bottom model."""

    hidden: tuple[PositiveInt, ...] = (64,)
    """Widths of the hidden layers of its bottom model."""
    model: Reference | None = None
    """Instead of these: ``model(shape) -> torch.nn.Module``."""


class LabelHolderSection(Held):
    """The label holder and its top model."""

    party: str
    """Its name."""
    target: str | None = None
    """The label's column; the only one besides the id when left out."""
    hidden: tuple[PositiveInt, ...] = (32,)
    """Widths of the hidden layers of the top model; none for one layer."""
    model: Reference | None = None
    """Instead of these: ``model(width, n_outputs) -> torch.nn.Module``."""


class Align(Section):
    """Which rows are common."""

    missing: Literal["drop", "allow"] = "drop"
    """Whether rows that an owner lacks are dropped."""
    holdout: Annotated[float, Field(ge=0, lt=1)] | str = 0.2
    """Share that is held out, or the label holder's column that says which."""


class ConcatSection(Section):
    """Embeddings side by side: the label holder sees each."""

    name: Literal["concat"] = "concat"


class MaskedSumSection(Section):
    """The sum of embeddings: the label holder sees nothing else."""

    name: Literal["masked_sum"] = "masked_sum"
    clip: PositiveFloat = 16.0
    """Largest absolute value of an embedding."""


class TrainSection(Section):
    """How the model is trained."""

    epochs: PositiveInt = 5
    """Passes over the rows."""
    batch_size: PositiveInt = 256
    """Rows a step."""
    optimizer: Annotated[Adam | Sgd, Field(discriminator="name"), BY_NAME] = Adam()
    """Of each party."""


class MaxNormSection(Section):
    """Noise along gradients, up to the longest of the batch."""

    name: Literal["max_norm"] = "max_norm"


class IsotropicSection(Section):
    """Noise in every direction."""

    name: Literal["isotropic"] = "isotropic"
    times: PositiveFloat = 3.0
    """Its expected length over that of the batch's longest gradient."""


class ActivationsSection(Section):
    """What owners do to embeddings before they leave."""

    clip: PositiveFloat = 1.0
    """Largest absolute value."""
    deviation: NonNegativeFloat = 0.1
    """Of the noise."""


class Defences(Section):
    """Against what messages tell."""

    cut: Annotated[MaxNormSection | IsotropicSection, Field(discriminator="name"), BY_NAME] | None = None
    """Noise on the gradients that leave the label holder."""
    label_epsilon: Annotated[float, Field(gt=0, le=LARGEST_EPSILON)] | None = None
    """Labels are randomised once, with this epsilon."""
    activations: ActivationsSection | None = None
    """Clipping and noise at owners."""


class VerticalExperiment(Section):
    """One vertical run: who holds what, how it is aligned and trained, and what protects it.

    Raises:
        pydantic.ValidationError: a value or a combination is wrong; ``load`` turns it into a ``ConfigError``.
    """

    kind: Literal["vertical"]
    """Tells this file from other experiments."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "vertical"
    """Names the run directory."""
    seed: int = 0
    """Seed of batches, initial weights and dropout; never of noise or keys."""
    id: str
    """The column that tells people apart, at every party."""
    owners: Annotated[dict[str, FeatureOwnerSection], Field(min_length=1)]
    """Feature owners by name."""
    labels: LabelHolderSection
    """The label holder."""
    align: Align = Align()
    """Which rows are common."""
    fuse: Annotated[ConcatSection | MaskedSumSection, Field(discriminator="name"), BY_NAME] = ConcatSection()
    """What the top model gets of embeddings."""
    width: PositiveInt = 32
    """Of embeddings; of models of your own, their own."""
    train: TrainSection = TrainSection()
    """How the model is trained."""
    defences: Defences = Defences()
    """Against what messages tell."""
    placement: dict[str, Placement] = {}
    """Party's name to where its actor must run."""
    identities: dict[str, str] = {}
    """Party's name to its public signing key, in hex; of all parties, or of none."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if isinstance(self.fuse, MaskedSumSection) and len(self.owners) < 2:
            raise ValueError("fuse is 'masked_sum', but the sum over one owner is its embedding; take concat")
        if self.labels.party in self.owners:
            raise ValueError(f"{self.labels.party!r} is both an owner and the label holder; give them two names")
        return self


def load(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> VerticalExperiment:
    """The vertical experiment that a mapping describes, with dotted keys overridden.

    Raises:
        ConfigError: with a line for every broken rule.
    """
    changed = override(raw, overrides, VerticalExperiment.model_construct())
    try:
        return VerticalExperiment.model_validate(changed)
    except ValidationError as error:
        raise explain(error, changed, VerticalExperiment, "docs/vertical.md") from None
