"""Dealing one pool of rows to simulated owners: pure functions of labels, number of owners and seed.

Every row is dealt exactly once. This file must not read files.

- ``iid``: a random equal share each.
- ``dirichlet``: every class is spread over owners by its own draw from Dirichlet(alpha): Yurochkin et al.,
  Bayesian Nonparametric Federated Learning of Neural Networks, 2019, section 4. (Hsu et al. 2019 draw the
  classes of each owner instead, and deal an equal number of rows to each; theirs cannot deal every row
  exactly once.)
- ``shards``: rows sorted by class, cut into equal shards, a few dealt to each owner: McMahan et al.,
  Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017, section 3.
- ``quantity``: sizes from Dirichlet(alpha), labels at random: Li et al., Federated Learning on Non-IID Data
  Silos: An Experimental Study, 2022, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedray.config.data import Dirichlet, Iid, LabelShards, Quantity
from fedray.data.kinds import SplitSection
from fedray.errors import DataError
from fedray.seeds import generator

Index = NDArray[np.int64]
"""Row numbers of shape ``(n_rows_of_one_owner,)``."""

MAX_DRAWS = 1000


def deal(split: SplitSection, labels: NDArray[np.int64], n_owners: int, seed: int) -> list[Index]:
    """Row numbers of each owner, ascending.

    Args:
        split: how to deal.
        labels: class of each row, shape ``(n_rows,)``.
        n_owners: number of owners.
        seed: of the draw.

    Raises:
        DataError: too few rows for so many owners, or no draw gave every owner ``min_rows`` rows.
    """
    _check_enough(len(labels), n_owners * _fewest(split), n_owners)
    rng = generator(seed, "split", split.name)
    match split:
        case Iid():
            parts = iid(len(labels), n_owners, rng)
        case Dirichlet():
            parts = dirichlet(labels, n_owners, split.alpha, split.min_rows, rng)
        case LabelShards():
            parts = label_shards(labels, n_owners, split.per_owner, rng)
        case Quantity():
            parts = quantity(len(labels), n_owners, split.alpha, split.min_rows, rng)
    return [np.sort(part) for part in parts]


def iid(n_rows: int, n_owners: int, rng: np.random.Generator) -> list[Index]:
    """A random share each; sizes differ by one row at most."""
    return list(np.array_split(rng.permutation(n_rows), n_owners))


def dirichlet(
    labels: NDArray[np.int64], n_owners: int, alpha: float, min_rows: int, rng: np.random.Generator
) -> list[Index]:
    """Each class spread over owners by a draw from Dirichlet(alpha); redrawn until all have ``min_rows``.

    Raises:
        DataError: ``MAX_DRAWS`` draws gave some owner too few rows.
    """
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def draw() -> list[Index]:
        spread = [_cut(rng.permutation(rows), rng.dirichlet([alpha] * n_owners)) for rows in classes]
        return [np.concatenate(parts) for parts in zip(*spread, strict=True)]

    return _redrawn(draw, min_rows)


def label_shards(labels: NDArray[np.int64], n_owners: int, per_owner: int, rng: np.random.Generator) -> list[Index]:
    """Rows sorted by class (in random order within a class), cut into shards, ``per_owner`` shards each."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_class, n_owners * per_owner)
    dealt = rng.permutation(len(shards)).reshape(n_owners, per_owner)
    return [np.concatenate([shards[number] for number in numbers]) for numbers in dealt]


def quantity(n_rows: int, n_owners: int, alpha: float, min_rows: int, rng: np.random.Generator) -> list[Index]:
    """Sizes by a draw from Dirichlet(alpha), redrawn until all have ``min_rows``; rows at random.

    Raises:
        DataError: ``MAX_DRAWS`` draws gave some owner too few rows.
    """
    return _redrawn(lambda: _cut(rng.permutation(n_rows), rng.dirichlet([alpha] * n_owners)), min_rows)


def _cut(rows: Index, shares: NDArray[np.float64]) -> list[Index]:
    ends = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
    return list(np.split(rows, ends))


def _redrawn(draw: Callable[[], list[Index]], min_rows: int) -> list[Index]:
    most = 0
    for _ in range(MAX_DRAWS):
        parts = draw()
        fewest = min(len(part) for part in parts)
        if fewest >= min_rows:
            return parts
        most = max(most, fewest)
    raise DataError(
        f"in {MAX_DRAWS} draws the smallest owner never had more than {most} rows",
        f"at least {min_rows} rows for every owner (split.min_rows)",
        "raise split.alpha, lower split.min_rows, or take fewer owners",
    )


def _fewest(split: SplitSection) -> int:
    match split:
        case Iid():
            return 1
        case LabelShards():
            return split.per_owner
        case Dirichlet() | Quantity():
            return split.min_rows


def _check_enough(n_rows: int, n_needed: int, n_owners: int) -> None:
    if n_rows < n_needed:
        raise DataError(
            f"{n_rows} rows to deal to {n_owners} owners",
            f"at least {n_needed} rows for this split",
            "take fewer owners, or a split that asks for fewer rows an owner",
        )
