"""What was measured on this machine, remembered: the same choice every time, so that runs can be repeated.

How many owners are best trained at once is a matter of a few per cent at the edges, and would come out differently now
and then. A file in the cache folder keeps what was found for a model, its training and a device.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
import yaml

from fedray.config import Experiment, as_yaml
from fedray.environment import cache_folder
from fedray.values import Choice

_SECTIONS = ("data", "model", "loss", "train", "strategy", "privacy", "cohort", "deadline_s")


def remembered(experiment: Experiment, device: torch.device, measure: Callable[[], Choice]) -> Choice:
    """What was found before for such an experiment on this machine, or what is found now."""
    path = cache_folder() / "at_once" / f"{_key(experiment, device)}.json"
    kept = _kept(path)
    if kept is not None:
        return kept
    found = measure()
    with suppress(OSError):  # a folder that cannot be written is measured anew every time
        _keep(path, msgspec.json.encode(found))
    return found


def _kept(path: Path) -> Choice | None:
    """What a file says; None where there is none, or none that can be believed."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Choice)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.at_once >= 1 else None


def _keep(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def _key(experiment: Experiment, device: torch.device) -> str:
    raw: dict[str, Any] = yaml.safe_load(as_yaml(experiment))
    machine = [version("fedray"), platform.machine(), platform.node(), os.cpu_count(), torch.__version__, _name(device)]
    return hashlib.sha256(json.dumps([machine, [raw.get(one) for one in _SECTIONS]]).encode()).hexdigest()[:32]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
