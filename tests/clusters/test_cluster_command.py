"""``fedray cluster`` as it is typed: exit codes, one message a mistake, and nothing launched after an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cluster_files import ALL_FILES, ROOT, documents
from typer.testing import CliRunner

from fedray.cli import app
from fedray.cli import cluster as command
from fedray.clusters.images import Versions
from fedray.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Versions, "installed", classmethod(lambda cls: cls("2.60.0", "3.11")))


@pytest.mark.parametrize("name", ALL_FILES)
def test_check_ends_with_0_for_what_is_shipped(name: str) -> None:
    result = CliRunner().invoke(app, ["cluster", "check", name])
    assert result.exit_code == 0, result.output
    assert "no errors" in result.output


def broken(folder: Path) -> Path:
    (raw,) = documents("cluster.yaml")
    raw["available_node_types"]["hospital-b"]["max_workers"] = 2
    path = folder / "broken.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_check_ends_with_2_and_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["cluster", "check", str(broken(tmp_path))], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "owner hospital-b has 1 to 2 nodes" in result.output
    assert "Set both numbers to 1" in result.output


def test_nothing_is_launched_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = list[object]()
    monkeypatch.setattr(command, "_run", lambda *args, **options: run.append(args))
    assert CliRunner().invoke(app, ["cluster", "up", str(broken(tmp_path))]).exit_code == 2
    assert run == []


def test_check_takes_a_search_space_for_an_experiment(tmp_path: Path) -> None:
    space = {"data": {"name": "digits", "owners": 4}, "strategy": ["fedavg", {"name": "fedprox", "mu": 0.1}]}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**space, "placement": {"owner-00": {"cpus": 64}}}))
    result = CliRunner().invoke(app, ["cluster", "check", "cluster.yaml", str(tmp_path / "space.yaml")])
    assert result.exit_code == 2
    assert "placement.owner-00" in result.output


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- a list", "neither a file for Ray's launcher nor manifests"),
        ("rounds: 3", "neither a file for Ray's launcher nor manifests"),
        ("{", "is not YAML"),
        (None, "cannot read"),
    ],
)
def test_what_is_no_cluster_is_refused_in_one_message(text: str | None, found: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=found):
        CliRunner().invoke(app, ["cluster", "check", str(path)], catch_exceptions=False)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_manifests_are_for_kubectl(verb: str) -> None:
    with pytest.raises(ConfigError, match="KubeRay") as refusal:
        CliRunner().invoke(app, ["cluster", verb, "clusters/kuberay.yaml"], catch_exceptions=False)
    assert "kubectl apply -f" in refusal.value.remedy


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match="no command no-such-command"):
        command._run(["no-such-command"])


def test_output_that_is_not_shown_is_caught(capfd: pytest.CaptureFixture[str]) -> None:
    done = command._run(["sh", "-c", "echo $GREETING; exit 3"], environment={"GREETING": "hello"})
    assert (done.code, done.output) == (3, "hello\n")
    assert capfd.readouterr() == ("", "")
