"""The server's state on disk: named arrays in safetensors, the rest in its metadata. No pickle.

Under noise that is correlated over rounds a run may go on from its newest state only: from an older one, rounds would
be released again with other noise on what earlier ones rest on, which nobody was charged for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedray.errors import RecordsError
from fedray.federation import ServerState
from fedray.spending import Spending
from fedray.values import Spent

_STRATEGY, _MECHANISM = "strategy.", "mechanism."


def save_state(path: Path, state: ServerState) -> None:
    """Write a state to one file, whole or not at all."""
    arrays = {
        "vector": state.vector,
        **{_STRATEGY + name: array for name, array in state.strategy.items()},
        **{_MECHANISM + name: array for name, array in state.mechanism.items()},
    }
    facts = {
        "round": state.round,
        "barren": state.barren,
        "is_exhausted": state.is_exhausted,
        "asked": dict(state.spending.asked),
        "lost": sorted(state.spending.lost),
        "exhausted": sorted(state.spending.exhausted),
        "spent": {name: asdict(spent) for name, spent in state.spending.spent.items()},
    }
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        partial,
        {"fedray": json.dumps(facts)},
    )
    partial.replace(path)


def load_state(path: Path) -> ServerState:
    """The state in a file.

    Raises:
        RecordsError: the file is missing or corrupt.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            facts = json.loads(file.metadata()["fedray"])
        return ServerState(
            round=facts["round"],
            vector=arrays["vector"],
            strategy=_within(arrays, _STRATEGY),
            mechanism=_within(arrays, _MECHANISM),
            spending=Spending(
                spent={name: Spent(**spent) for name, spent in facts["spent"].items()},
                asked=facts["asked"],
                lost=frozenset(facts["lost"]),
                exhausted=frozenset(facts["exhausted"]),
            ),
            barren=facts["barren"],
            is_exhausted=facts["is_exhausted"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecordsError(
            f"{path} cannot be read: {type(error).__name__}",
            "a state that fedray saved",
            "take an earlier checkpoint",
        ) from error


def _within(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
