"""What importing fedray loads, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toys import ROOT

import fedray

HEAVY = {"ray", "torch", "tenseal", "opacus", "dp_accounting"}


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def _loaded(statement: str, folder: Path) -> set[str]:
    done = _run(f"import sys; {statement}; print(*sorted({HEAVY!r} & set(sys.modules)))", folder)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_fedray_alone_loads_no_heavy_package(tmp_path: Path) -> None:
    assert _loaded("import fedray; dir(fedray)", tmp_path) == set()


def test_strategies_configuration_and_rounds_do_without_ray_and_torch(tmp_path: Path) -> None:
    protections = "fedray.protection.plain, fedray.protection.masked.server, fedray.protection.masked.owner"
    rooms = f"fedray.strategies, fedray.rounds, fedray.config.space, {protections}, fedray.selection"
    assert _loaded(f"import {rooms}; fedray.Experiment()", tmp_path) == set()


def test_a_run_without_privacy_loads_neither_ray_nor_opacus(tmp_path: Path) -> None:
    assert _loaded("import fedray.running, fedray.owners, fedray.states", tmp_path) == {"torch"}


@pytest.mark.parametrize("folder", ["actors", "strategies"])
def test_the_bare_name_of_a_linked_folder_is_refused(folder: str) -> None:
    done = _run(f"import {folder}", ROOT)
    assert done.returncode != 0
    assert f"import fedray.{folder}, not {folder}" in done.stderr


def test_every_public_name_resolves() -> None:
    assert set(dir(fedray)) == set(fedray.__all__)
    for name in fedray.__all__:
        assert getattr(fedray, name).__name__.rpartition(".")[2] == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'fedray' has no attribute 'nothing'"):
        fedray.nothing  # noqa: B018
