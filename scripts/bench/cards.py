"""What an NVIDIA card says of itself, by nvidia-smi; of the first card that this process may see."""

from __future__ import annotations

import os
import subprocess


def used_mib() -> float:
    """Memory in use on the card, by whomever."""
    return _asked("memory.used")


def utilisation() -> float:
    """Share of the last moments (up to a second) in which the card was busy, 0 to 1."""
    return _asked("utilization.gpu") / 100


def name() -> str:
    """The card's name."""
    return _answer("name")


def _asked(what: str) -> float:
    return float(_answer(what))


def _answer(what: str) -> str:
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--id={card}", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
