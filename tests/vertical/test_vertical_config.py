"""Vertical experiments in YAML: what is taken, what is refused and how, and that ``fedray run`` runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner
from vertical_toys import people

from fedray import cli
from fedray.errors import ConfigError
from fedray.vertical.config import load

SMALL: dict[str, Any] = {
    "kind": "vertical",
    "id": "pid",
    "owners": {"bank": {"path": "bank.csv"}, "shop": {"path": "shop.parquet", "hidden": [8]}},
    "labels": {"party": "hospital", "path": "labels.csv", "target": "label", "hidden": []},
    "fuse": "masked_sum",
    "width": 4,
    "train": {"epochs": 2, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.5}},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of three parties as files, and the experiment beside them."""
    monkeypatch.chdir(tmp_path)
    owners, labels = people(80)
    for name, one in owners.items():
        frame = pd.DataFrame({"pid": one["pid"], **{f"x{i}": one["x"][:, i] for i in range(one["x"].shape[1])}})
        frame.to_csv("bank.csv", index=False) if name == "bank" else frame.to_parquet("shop.parquet")
    pd.DataFrame(labels).to_csv("labels.csv", index=False)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["run", "small.yaml", "--in-process", "--out", "out", *words])


def test_fedray_run_runs_a_vertical_experiment_and_writes_its_figures(folder: Path) -> None:
    result = run("--set", "train.epochs=3", "--set", "defences.cut=max_norm")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (folder / "out" / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert set(records[0]["holdout"]) == {"loss", "accuracy", "auc"}
    assert json.loads((folder / "out" / "vertical.json").read_text())["alignment"]["n_holdout"] == 16
    last = f"{records[2]['loss']:.4f}"
    for shown in ("2 feature owners, masked_sum, 64 common rows", "norm attack", "MaxNorm()", last):
        assert shown in " ".join(result.output.split())


@pytest.mark.parametrize(
    "changes",
    [
        ["fuse=concat", "defences.cut.name=isotropic", "defences.cut.times=1", "align.holdout=0"],
        ["defences.activations.clip=2", "align.missing=allow", "train.optimizer=adam", "fuse.clip=4"],
        ["defences.label_epsilon=2"],
    ],
)
def test_every_setting_reaches_the_run(folder: Path, changes: list[str]) -> None:
    result = run(*(word for change in changes for word in ("--set", change)))
    assert result.exit_code == 0, (result.output, result.exception)


def test_figures_are_for_their_user_alone_and_json_where_an_auc_is_of_one_class(folder: Path) -> None:
    labels = pd.read_csv("labels.csv")
    labels.assign(label=range(80)).assign(label=lambda frame: frame.label == 0).to_csv("labels.csv", index=False)
    assert run("--set", "train.batch_size=1", "--set", "train.epochs=1").exit_code == 0
    text = (folder / "out" / "history.jsonl").read_text()
    (leak, _) = json.loads(text, parse_constant=pytest.fail)["leaks"].values()
    assert leak["cosine"] is None
    assert {path.stat().st_mode & 0o077 for path in (folder / "out").iterdir()} == {0}


def test_what_a_vertical_run_has_not_is_said_by_the_commands_that_read_runs(folder: Path) -> None:
    assert run().exit_code == 0
    assert "of a vertical run read history.jsonl" in " ".join(
        str(CliRunner().invoke(cli.app, ["report", "out"]).exception).split()
    )
    assert "`kind: vertical` is for `fedray run` alone" in str(
        CliRunner().invoke(cli.app, ["compare", "small.yaml"]).exception
    )


def test_profile_is_refused(folder: Path) -> None:
    assert "--profile is for runs in rounds" in run("--profile").output


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"owners": {"bank": {"path": "b.csv"}}}, "the sum over one owner is its embedding"),
        ({"labels": {"party": "bank", "path": "l.csv"}}, "'bank' is both an owner and the label holder"),
        ({"owners": {"bank": {}, "shop": {"path": "s.csv"}}}, "give one of path and source"),
        ({"owners": {}}, "owners"),
        ({"labels": {"path": "l.csv"}}, "labels: 'party' is missing"),
        ({"widht": 3}, "widht: unknown key; did you mean 'width'"),
        ({"fuse": "mean"}, "fuse"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"defences": {"cut": {"name": "isotropic", "times": -1}}}, "defences.cut.times"),
        ({"align": {"holdout": 1.0}}, "align.holdout"),
        ({"owners": {"bank": {"source": "nowhere"}, "shop": {"path": "s.csv"}}}, "package.module:name"),
    ],
)
def test_what_breaks_a_rule_is_one_clear_error(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=r"docs/vertical\.md") as caught:
        load({**SMALL, **changes}, {})
    assert found in str(caught.value)


def test_overrides_start_from_the_defaults_of_vertical_experiments() -> None:
    bare = {key: value for key, value in SMALL.items() if key != "train"}
    changed = load(bare, {"train.optimizer.lr": 0.5})
    assert (changed.train.optimizer.name, changed.train.optimizer.lr) == ("adam", 0.5)
    assert load(SMALL, {"fuse.clip": 2.0}).fuse.model_dump() == {"name": "masked_sum", "clip": 2.0}
    assert load(SMALL, {}).owners["bank"].path == Path("bank.csv").absolute()
