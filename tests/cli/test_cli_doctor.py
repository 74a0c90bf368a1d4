"""``fedray doctor`` and the command that writes identity files, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedray.cli.identify import identify
from fedray.errors import ResourcesError

FEDRAY = Path(sys.executable).with_name("fedray")


def test_this_machine_alone_is_well_without_an_experiment_and_not_with_one_that_is_pinned_elsewhere(
    tmp_path: Path,
) -> None:
    def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        command = [str(FEDRAY), "doctor", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    pinned = tmp_path / "pinned.yaml"
    pinned.write_text(
        "data: {name: digits, owners: 2}\nprotection: plain\nplacement: {owner-01: {labels: {fedray.owner: ann}}}\n"
    )
    well, unwell = doctor(), doctor(str(pinned), "--json")
    assert (well.returncode, unwell.returncode) == (0, 5), well.stderr + unwell.stderr
    assert "nothing stands in the way" in well.stdout
    owners = json.loads(unwell.stdout)["owners"]
    assert owners["owner-00"]["placeable"]
    assert not owners["owner-01"]["placeable"]
    assert "Traceback" not in well.stderr + unwell.stderr


def test_a_cluster_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    found = subprocess.run(
        [str(FEDRAY), "doctor", "--address", "127.0.0.1:1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 5
    assert "no Ray cluster answers" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(identify)
    return app


def test_identify_names_owners_in_the_file_that_the_environment_names_or_in_another(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, other = tmp_path / "usual.json", tmp_path / "other.json"
    monkeypatch.setenv("FEDRAY_NODE", str(usual))
    assert CliRunner().invoke(app, ["hospital-a"]).stdout.split() == ["hospital-a"]
    assert CliRunner().invoke(app, ["key holder"]).stdout.splitlines() == ["hospital-a", "key holder"]
    assert CliRunner().invoke(app, ["hospital-b", "--file", str(other)]).stdout.split() == ["hospital-b"]
    assert json.loads(usual.read_text()) == {"owners": ["hospital-a", "key holder"]}
    assert json.loads(other.read_text()) == {"owners": ["hospital-b"]}


def test_identify_without_a_right_to_write_there_is_one_error(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = CliRunner().invoke(app, ["hospital-a", "--file", str(tmp_path / "file" / "owner.json")])
    assert isinstance(found.exception, ResourcesError)
