"""The server's state on disk: named arrays in safetensors, the rest in its metadata. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedray.errors import RecordsError
from fedray.rounds import ServerState
from fedray.values import Spent

_STRATEGY = "strategy."


def save_state(path: Path, state: ServerState) -> None:
    """Write a state to one file, whole or not at all."""
    arrays = {"vector": state.vector, **{_STRATEGY + name: array for name, array in state.strategy.items()}}
    facts = {
        "round": state.round,
        "asked": dict(state.asked),
        "lost": sorted(state.lost),
        "barren": state.barren,
        "spent": {name: asdict(spent) for name, spent in state.spent.items()},
    }
    partial = path.with_suffix(".partial")
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
            strategy={
                name.removeprefix(_STRATEGY): array for name, array in arrays.items() if name.startswith(_STRATEGY)
            },
            spent={name: Spent(**spent) for name, spent in facts["spent"].items()},
            asked=facts["asked"],
            lost=frozenset(facts["lost"]),
            barren=facts["barren"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecordsError(
            f"{path} cannot be read: {type(error).__name__}",
            "a state that fedray saved",
            "take an earlier checkpoint",
        ) from error
