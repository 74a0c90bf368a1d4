"""Counter-based randomness: every draw is a pure function of (seed, purpose, round, owner, ...).

No generator is shared, so no draw depends on how many workers there are or on who answered first. Differential-privacy
noise and key material never come from here: they come from the operating system's generator.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def _digest(seed: int, key: tuple[str | int, ...]) -> bytes:
    return hashlib.sha256(json.dumps([seed, *key]).encode()).digest()


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011) for one purpose, e.g. ``generator(7, "cohort", round)``."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, key)[:16], "little")))


def integer(seed: int, *key: str | int) -> int:
    """A 63-bit seed for libraries that want an integer, e.g. ``torch.manual_seed``."""
    return int.from_bytes(_digest(seed, key)[:8], "little") >> 1


def key(seed: int, *key: str | int) -> bytes:
    """A 16-byte key for a counter-mode cipher, where ``generator`` would be too slow."""
    return _digest(seed, key)[:16]
