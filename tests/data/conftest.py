"""What the tests of data share: a cache folder of their own, and UCI's heart disease files if at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests of the session, apart from the user's."""
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def heart_folder() -> Path:
    given = os.environ.get("FEDRAY_HEART_DISEASE")
    beside = Path(__file__).parents[2] / ".." / "shared" / "data" / "heart-disease"
    folder = Path(given) if given else beside.resolve()
    if not (folder / "processed.va.data").is_file():
        pytest.skip(f"no UCI heart disease files in {folder}; set FEDRAY_HEART_DISEASE to their folder")
    return folder
