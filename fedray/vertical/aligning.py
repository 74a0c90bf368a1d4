"""The order of the common rows, which the label holder fixes and tells each owner in pointers.

Rows are sorted by an HMAC of their ids under a digest of all ids of the label holder, the uncommon too. So the order
follows from the seed and the ids, whatever order rows are in; and an owner that cannot guess all of these ids cannot
tell from the gaps between its own rows whose the others are. Labels are not in it: private labels must move nothing
that owners see. Those sorted last are held out.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from fedray.errors import DataError
from fedray.protection.wire import canonical
from fedray.psi import pointers
from fedray.psi.work import Mapper
from fedray.vertical.plans import Missing

POINTER_BYTES = 16


@dataclass(frozen=True)
class Alignment:
    """What the caller is told of the common rows: counts.

    Attributes:
        n_train: common rows to train on.
        n_holdout: common rows held out.
        n_alone: those of both that one owner alone has; no sum hides these.
        n_shared: owner's name to how many people it shares with the label holder.
    """

    n_train: int
    n_holdout: int
    n_alone: int
    n_shared: Mapping[str, int]


class Work(TypedDict):
    """What a half of an intersection takes to compute in parts."""

    shards: int
    mapper: Mapper


@dataclass(frozen=True)
class Common:
    """The common rows, as the label holder knows them.

    Attributes:
        rows: row numbers of the label holder in the common order, shape ``(n,)``.
        n_train: how many of them are trained on.
        n_alone: how many of them one owner alone has.
    """

    rows: NDArray[np.int64] = field(repr=False)
    n_train: int
    n_alone: int


def common_rows(
    shared: Mapping[str, NDArray[np.int64]],
    ids: Sequence[str],
    missing: Missing,
    holdout: float | NDArray[np.bool_],
    key: bytes,
) -> Common:
    """Choose and order the common rows.

    Args:
        shared: owner's name to the label holder's rows that it has too.
        ids: the label holder's, normalised.
        missing: whether owners may lack rows.
        holdout: a share, or whether each of the label holder's rows is held out.
        key: nobody else knows it.

    Raises:
        DataError: an owner shares no row, or nothing is left to train on.
    """
    for name, rows in shared.items():
        if not len(rows):
            raise DataError(f"no id that {name!r} shares with the labels", "one at least", "check how ids are written")
    n_owners = np.zeros(len(ids), dtype=np.int64)
    for rows in shared.values():
        n_owners[rows] += 1
    chosen = np.flatnonzero(n_owners >= (len(shared) if missing == "drop" else 1))
    ranked = sorted(chosen.tolist(), key=lambda row: hmac.digest(key, ids[row].encode(), "sha256"))
    rows, n_train = _divided(np.array(ranked, dtype=np.int64), holdout)
    return Common(rows, n_train, int((n_owners[rows] == 1).sum()))


def _divided(rows: NDArray[np.int64], holdout: float | NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Rows to train on, then those held out; and how many the former are."""
    if isinstance(holdout, float):
        is_held_out = np.arange(len(rows)) >= len(rows) - round(len(rows) * holdout)
    else:
        is_held_out = holdout[rows]
    if not (n_train := int((~is_held_out).sum())):
        raise DataError(
            f"{len(rows)} common rows, none of them to train on",
            "some to train on",
            "hold out fewer, or take missing='allow' where owners lack some",
        )
    return np.concatenate([rows[~is_held_out], rows[is_held_out]]), n_train


@contextmanager
def all_cores() -> Iterator[Work]:
    """How an intersection is divided over the cores that this process may use."""
    n_cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(n_cores) as threads:
        yield {"shards": 4 * n_cores, "mapper": threads.map}


def order_key(seed: int, ids: Sequence[str]) -> bytes:
    """A digest of all ids of the label holder, the same in whatever order it has them; 32 bytes."""
    return hashlib.sha256(canonical("vertical order", seed, sorted(ids))).digest()


def pointers_for(common: Common, shared: NDArray[np.int64], ids: Sequence[str], key: bytes) -> bytes:
    """The common order as one owner is told it: pointers to its rows, and random bytes where it lacks one."""
    told = np.frombuffer(os.urandom(POINTER_BYTES * len(common.rows)), dtype=np.uint8).reshape(-1, POINTER_BYTES).copy()
    has = np.isin(common.rows, shared)
    told[has] = pointers([ids[row] for row in common.rows[has]], key)
    return told.tobytes()
