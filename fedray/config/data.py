"""Configuration of data: which data set, how it is split over owners, how it is scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from fedray.config.fields import BY_NAME, Section

Fraction = Annotated[float, Field(ge=0, lt=1)]
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
"""Made absolute where the experiment is read: an owner's process may have another working directory."""
Alpha = Annotated[float, Field(gt=0, le=1e6)]


class Iid(Section):
    """Every owner gets an equal random share."""

    name: Literal["iid"] = "iid"


class Dirichlet(Section):
    """Label skew: each class is spread over owners by a draw from Dirichlet(alpha) (Yurochkin et al. 2019)."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: Alpha = 0.5
    """Concentration: near 0 an owner holds few classes; 100 is nearly IID."""
    min_rows: PositiveInt = 10
    """Redraw until every owner has at least this many rows."""


class LabelShards(Section):
    """Pathological label skew: rows sorted by class, cut into shards, a few shards each (McMahan et al. 2017)."""

    name: Literal["shards"] = "shards"
    per_owner: PositiveInt = 2
    """Shards dealt to each owner."""


class Quantity(Section):
    """Quantity skew: owners' sizes are a draw from Dirichlet(alpha); labels stay IID."""

    name: Literal["quantity"] = "quantity"
    alpha: Alpha = 1.0
    """Concentration of the sizes: small is very unequal."""
    min_rows: PositiveInt = 10
    """Redraw until every owner has at least this many rows."""


Split = Annotated[Iid | Dirichlet | LabelShards | Quantity, Field(discriminator="name"), BY_NAME]


class NoScaling(Section):
    """Features as they are."""

    name: Literal["none"] = "none"


class OwnerScaling(Section):
    """Each owner standardises by the mean and deviation of its own training rows (refused under DP)."""

    name: Literal["owner"] = "owner"


class FixedScaling(Section):
    """(x - center) / scale with public constants, safe under DP."""

    name: Literal["fixed"] = "fixed"
    center: tuple[float, ...]
    """A value a feature, or one for all."""
    scale: tuple[PositiveFloat, ...]
    """A value a feature, or one for all."""


Scaling = Annotated[NoScaling | OwnerScaling | FixedScaling, Field(discriminator="name"), BY_NAME]


class DataSection(Section):
    """What all data sets share."""

    seed: int = 0
    """Seed of the split and of held-out rows; apart from the experiment's seed, so that repeats see the same owners."""
    scaling: Scaling = NoScaling()
    """How features are brought to a common scale."""
    min_classes: PositiveInt = 2
    """Fewest classes an owner's training rows may hold (classification only)."""


def _require_central_scaling(central_test: float, scaling: NoScaling | OwnerScaling | FixedScaling) -> None:
    if central_test > 0 and isinstance(scaling, OwnerScaling):
        raise ValueError(
            "data.central_test is set while data.scaling is 'owner': central rows have no owner to be scaled by; "
            "give fixed scaling, or leave central_test out"
        )


class Simulated(DataSection):
    """What data sets that are cut up for a simulation share."""

    holdout: Fraction = 0.2
    """Share of each owner's rows kept for evaluation."""
    central_test: Fraction = 0.0
    """Share of all rows kept aside as the server's own test set, before the split."""
    owners: PositiveInt = 8
    """Number of owners."""
    split: Split = Dirichlet()
    """How rows are dealt to owners."""

    @model_validator(mode="after")
    def _central_rows_have_no_owner(self) -> Self:
        _require_central_scaling(self.central_test, self.scaling)
        return self


class Digits(Simulated):
    """scikit-learn's digits: 1,797 images of 8 x 8, ten classes; ships with scikit-learn."""

    name: Literal["digits"] = "digits"


class BreastCancer(Simulated):
    """scikit-learn's breast cancer (Wisconsin): 569 rows, 30 features, two classes; ships with scikit-learn."""

    name: Literal["breast_cancer"] = "breast_cancer"
    scaling: Scaling = OwnerScaling()
    """How features are brought to a common scale; they differ by orders of magnitude."""
    split: Split = Dirichlet(alpha=5.0)
    """How rows are dealt to owners; mild, since with two classes more skew leaves owners with one."""


class Synthetic(DataSection):
    """Synthetic(alpha, beta) of the FedProx paper (Li et al. 2020, section 5.1): 60 features, ten classes."""

    name: Literal["synthetic"] = "synthetic"
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Spread of the local models, as a standard deviation."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Spread of the local inputs, as a standard deviation."""
    iid: bool = False
    """One model and one input distribution for all owners."""
    owners: PositiveInt = 30
    """Number of owners."""
    holdout: Fraction = 0.1
    """Share of each owner's rows kept for evaluation."""
    min_classes: PositiveInt = 1
    """1, since some owners' models give all their rows one class."""


class Images(DataSection):
    """Images made up on demand, for any number of owners: smooth patterns of each class under noise (Hsu et al. 2019).

    Nothing is written to disk, and the sizes of all owners are known without making any.
    """

    name: Literal["images"] = "images"
    owners: PositiveInt = 100
    """Number of owners; a million is fine."""
    rows: Annotated[int, Field(ge=2)] = 60
    """Mean number of rows an owner, held-out rows among them; each has 2 at least."""
    spread: Annotated[float, Field(ge=0, le=2)] = 0.5
    """Sigma of the log-normal that owners' sizes follow; 0: all alike. The mean stays."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 28, 28)
    """Channels, height and width of an image."""
    classes: Annotated[int, Field(ge=2)] = 10
    """Number of classes."""
    alpha: Alpha | None = 0.3
    """Label skew: each owner's class shares are a draw from Dirichlet(alpha); null: all classes alike."""
    noise: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """How hard it is: deviation of the noise, in deviations of the pattern under it."""
    holdout: Fraction = 0.2
    """Share of each owner's rows kept for evaluation."""
    central_test: Annotated[int, Field(ge=0)] = 0
    """Number of rows of the server's own test set, all classes alike."""
    min_classes: PositiveInt = 1
    """1, since small owners of a skewed draw have few; above 1, sizes are known only once an owner is opened."""

    @model_validator(mode="after")
    def _central_rows_have_no_owner(self) -> Self:
        _require_central_scaling(self.central_test, self.scaling)
        return self


class HeartDisease(DataSection):
    """UCI heart disease in four hospitals, as FLamby prepares it (Ogier du Terrail et al. 2022)."""

    name: Literal["heart_disease"] = "heart_disease"
    path: AbsolutePath
    """Folder with the four processed.*.data files of UCI data set 45."""
    scaling: Scaling = OwnerScaling()
    """How features are brought to a common scale; each hospital by its own rows, as in FLamby."""
    min_classes: PositiveInt = 1
    """1, since every training row of Switzerland is positive."""


class Tables(DataSection):
    """Your own data: a folder of Parquet or CSV files, one an owner, or one table with an owner column."""

    name: Literal["tables"] = "tables"
    path: AbsolutePath
    """A folder of ``OWNER.parquet`` or ``OWNER.csv``, or one table."""
    target: str = "target"
    """Column of the label or the number to predict."""
    features: tuple[str, ...] | None = None
    """Columns to learn from; all others when left out."""
    feature_shape: tuple[PositiveInt, ...] | None = None
    """Shape of one example where the features are one list column, e.g. [1, 28, 28]."""
    owner_column: str | None = None
    """Column that names the owner, when ``path`` is one table."""
    owners: tuple[str, ...] | None = None
    """Names of the owners, when their files lie on nodes of their own and cannot be listed here."""
    classes: tuple[str | int | float | bool, ...] | None = None
    """All labels in order, for classification; leave out for regression."""
    holdout: Fraction = 0.2
    """Share of each owner's rows kept for evaluation."""
    holdout_column: str | None = None
    """Boolean column that marks held-out rows, instead of a random share."""


Data = Annotated[
    Digits | BreastCancer | Synthetic | Images | HeartDisease | Tables, Field(discriminator="name"), BY_NAME
]
