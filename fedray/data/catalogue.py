"""What data sets there are, for ``fedray datasets`` and the documentation. Facts only; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DataSetInfo:
    """One line of the catalogue.

    Attributes:
        name: what ``data.name`` says.
        summary: what it is, in a sentence.
        n_rows: rows of all owners; None where it depends on the configuration.
        feature_shape: shape of one example; None where it depends on the data.
        n_classes: number of classes; None where it depends on the data.
        owners: ``natural`` where each owner's rows were collected by that owner, ``simulated`` where they are
            dealt.
        licence: terms of use.
        citation: whom to cite.
        source: where it comes from.
    """

    name: str
    summary: str
    n_rows: int | None
    feature_shape: tuple[int, ...] | None
    n_classes: int | None
    owners: Literal["natural", "simulated", "yours"]
    licence: str
    citation: str
    source: str


_CATALOGUE = (
    DataSetInfo(
        name="digits",
        summary="handwritten digits, 8 x 8 pixels",
        n_rows=1797,
        feature_shape=(1, 8, 8),
        n_classes=10,
        owners="simulated",
        licence="CC BY 4.0",
        citation="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI 1998, doi 10.24432/C50P49",
        source="test part of UCI data set 80; ships with scikit-learn",
    ),
    DataSetInfo(
        name="breast_cancer",
        summary="breast masses, 30 measurements of cell nuclei, malignant or benign",
        n_rows=569,
        feature_shape=(30,),
        n_classes=2,
        owners="simulated",
        licence="CC BY 4.0",
        citation="Wolberg, Mangasarian, Street, Street: Breast Cancer Wisconsin (Diagnostic), UCI 1993, "
        "doi 10.24432/C5DW2B",
        source="UCI data set 17; ships with scikit-learn",
    ),
    DataSetInfo(
        name="synthetic",
        summary="softmax-regression data whose models and inputs differ from owner to owner",
        n_rows=None,
        feature_shape=(60,),
        n_classes=10,
        owners="simulated",
        licence="none needed: generated here",
        citation="Li et al.: Federated Optimization in Heterogeneous Networks, MLSys 2020, section 5.1",
        source="generated from data.seed",
    ),
    DataSetInfo(
        name="images",
        summary="made-up images for any number of owners: smooth patterns under noise, with label skew",
        n_rows=None,
        feature_shape=None,
        n_classes=None,
        owners="simulated",
        licence="none needed: generated here",
        citation="label skew of Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for "
        "Federated Visual Classification, 2019",
        source="generated from data.seed",
    ),
    DataSetInfo(
        name="heart_disease",
        summary="patients of four hospitals, heart disease or none",
        n_rows=740,
        feature_shape=(13,),
        n_classes=2,
        owners="natural",
        licence="CC BY 4.0",
        citation="Janosi, Steinbrunn, Pfisterer, Detrano: Heart Disease, UCI 1988, doi 10.24432/C52P4X; "
        "prepared as in Ogier du Terrail et al.: FLamby, NeurIPS 2022",
        source="https://archive.ics.uci.edu/dataset/45; the four processed.*.data files in data.path",
    ),
    DataSetInfo(
        name="tables",
        summary="your own: a folder of one Parquet or CSV file an owner, or a table with an owner column",
        n_rows=None,
        feature_shape=None,
        n_classes=None,
        owners="yours",
        licence="yours",
        citation="yours",
        source="data.path",
    ),
)


def catalogue() -> tuple[DataSetInfo, ...]:
    """Every data set that ``data.name`` may say, in the order of the documentation."""
    return _CATALOGUE
