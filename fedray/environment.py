"""The machine: what a run ran on, for its record, and where it keeps what can be made again."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

_PACKAGES = ("fedray", "ray", "torch", "opacus", "dp-accounting", "numpy", "pyarrow", "scikit-learn")


def environment() -> dict[str, str]:
    """Names to values, e.g. ``{"python": "3.11.7", "torch": "2.13.0", "cpus": "2", ...}``."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        **{name: _version(name) for name in _PACKAGES},
    }


def cache_folder() -> Path:
    """``$FEDRAY_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("FEDRAY_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("fedray")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
