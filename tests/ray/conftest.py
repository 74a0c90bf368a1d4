"""Fixtures of the tests that need Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest_ray import own_ray


@pytest.fixture(scope="module")
def ray_dir() -> Iterator[Path]:
    """Four logical CPUs for one module of tests."""
    with own_ray(4) as folder:
        yield folder
