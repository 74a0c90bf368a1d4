"""The server's state as bytes and as a file: named arrays in safetensors, the rest in its metadata. No pickle.

Under noise that is correlated over rounds a run may go on from its newest state only: from an older one, rounds would
be released again with other noise on what earlier ones rest on, which nobody was charged for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedray.errors import RecordsError
from fedray.federation import ServerState
from fedray.files import put
from fedray.spending import Spending
from fedray.values import Spent

VERSION = "1"
_STRATEGY, _MECHANISM = "strategy.", "mechanism."

Arrays = Mapping[str, NDArray[Any]]


def pack(state: ServerState, note: str = "") -> bytes:
    """A state, and a note beside it, as bytes that carry their own digest."""
    named: Arrays = {
        "vector": state.vector,
        **{_STRATEGY + name: array for name, array in state.strategy.items()},
        **{_MECHANISM + name: array for name, array in state.mechanism.items()},
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in named.items()}
    facts = json.dumps(
        {
            "round": state.round,
            "barren": state.barren,
            "is_exhausted": state.is_exhausted,
            "draws": state.draws,
            "asked": dict(state.spending.asked),
            "lost": sorted(state.spending.lost),
            "exhausted": sorted(state.spending.exhausted),
            "spent": {name: asdict(spent) for name, spent in state.spending.spent.items()},
        }
    )
    digest = _digest(arrays, facts, note)
    packed: bytes = save(arrays, {"fedray": facts, "note": note, "version": VERSION, "sha256": digest})
    return packed


def unpack(data: bytes) -> tuple[ServerState, str]:
    """The state in bytes that ``pack`` made, and the note beside it.

    Raises:
        RecordsError: they are of another version, cut short or changed.
    """
    try:
        arrays, metadata = load(data), _metadata(data)
        if metadata["version"] != VERSION:
            raise ValueError(f"version {metadata['version']}, not {VERSION}")
        if metadata["sha256"] != _digest(arrays, metadata["fedray"], metadata["note"]):
            raise ValueError("its digest is another one")
        return _state(arrays, json.loads(metadata["fedray"])), metadata["note"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecordsError(
            f"a state that cannot be read: {type(error).__name__}: {error}",
            f"a state that fedray saved, of version {VERSION}",
            "take an earlier checkpoint",
        ) from error


def save_state(path: Path, state: ServerState) -> None:
    """Write a state to one file, whole or not at all."""
    put(path, pack(state))


def load_state(path: Path) -> ServerState:
    """The state in a file.

    Raises:
        RecordsError: the file is missing or corrupt.
    """
    try:
        return unpack(path.read_bytes())[0]
    except OSError as error:
        raise RecordsError(
            f"{path} cannot be read: {type(error).__name__}", "a state that fedray saved", "take an earlier checkpoint"
        ) from error


def _state(arrays: Arrays, facts: Mapping[str, Any]) -> ServerState:
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
        draws=facts["draws"],
    )


def _digest(arrays: Arrays, facts: str, note: str) -> str:
    found = hashlib.sha256(f"{len(facts)} {facts}{note}".encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    """What safetensors' header holds besides the arrays."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def _within(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
