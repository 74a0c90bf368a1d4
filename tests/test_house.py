"""The project's own house: the wheel, an install outside the checkout, the scripts, cluster.yaml."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by way of the source distribution from what git would commit."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        origin, copy = ROOT / name, source / name
        if not origin.is_symlink() and not origin.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            copy.symlink_to(origin.readlink())
        else:
            copy.write_bytes(origin.read_bytes())
    run(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_all_modules_of_the_three_folders(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (("fedray", "fedray"), ("actors", "fedray/actors"), ("strategies", "fedray/strategies")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}" in inside
    assert {"fedray/py.typed", "fedray/report/template.html", "fedray/report/style.css"} <= inside
    tops = {name.split("/")[0] for name in inside}
    assert tops == {"fedray", f"fedray-{wheel.name.split('-')[1]}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_an_install_outside_the_checkout_runs(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    settings = {"rounds": 1, "data": {"name": "digits", "owners": 3}, "model": "logistic"}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    where = run(
        python, "-c", "import fedray, fedray.actors.owner as o; print(fedray.__file__, o.__file__)", cwd=tmp_path
    )
    assert str(ROOT) not in where
    shown = run(tmp_path / "venv/bin/fedray", "run", "experiment.yaml", "--out", "out", cwd=tmp_path)
    assert "accuracy" in shown
    assert (tmp_path / "out" / "report.html").exists()


def test_the_demo_ends_with_a_table_a_report_and_records(tmp_path: Path) -> None:
    small = ["--set", "rounds=1", "--set", "seed=0", "--set", "privacy=none", "--set", "data.owners=3"]
    shown = run(ROOT / "scripts/demo", *small, "--out", tmp_path / "demo", cwd=tmp_path)
    assert "fedavg" in shown
    assert "fedprox mu=0.1" in shown
    assert (tmp_path / "demo" / "report.html").exists()
    assert len(list((tmp_path / "demo" / "trials").glob("*.parquet"))) == 2


def test_cluster_yaml_is_valid_by_rays_own_rules() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    misspelt = {**config, "avalable_node_types": {}}
    with pytest.raises(Exception, match="avalable_node_types"):
        validate_config(prepare_config(misspelt))


def test_ci_runs_the_same_scripts_as_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "scripts/lint" in ci
    assert "scripts/test" in ci
    for name in ("setup", "demo", "test", "lint"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)
