"""Experiments from YAML and from the command line, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from toys import ROOT

from fedray.config import Experiment, as_yaml, json_schema, load, replaced, validated
from fedray.config.loading import as_raw, override, parse_overrides, read_yaml
from fedray.config.space import separate
from fedray.errors import ConfigError

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shorthand": {"strategy": "fedprox", "data": "breast_cancer", "model": "logistic", "protection": "plain"},
    "masked": {
        "protection": {
            "name": "masked",
            "min_owners": 4,
            "server": "may_lie",
            "identities": {"owner-00": "ab" * 32, "zürich": "01" * 32},
            "clip": 2.5,
            "precision": 1e-4,
        }
    },
    "encrypted": {"protection": {"name": "ckks", "key_rounds": 5, "key_holder": {"labels": {"role": "notary"}}}},
    "exactly encrypted": {"protection": {"name": "bfv", "key_holder": {"resources": {"notary": 0.5}}}},
    "private": {
        "data": {"name": "digits", "owners": 3, "split": "iid"},
        "privacy": {"name": "example", "epsilon": 2.5, "delta": 1e-6},
        "train": {"steps": 7, "optimizer": {"name": "adam", "lr": 3e-4}},
        "strategy": {"name": "fedprox", "mu": 0.01, "server_momentum": 0.9},
        "cohort": {"name": "poisson", "rate": 0.5},
    },
    "custom": {
        "model": {"name": "custom", "factory": "package.module:make", "args": {"width": 3}},
        "loss": "package.module:loss",
        "metrics": ["accuracy", "package.module:recall"],
        "search": {"metric": "recall", "mode": "max", "stopping": "asha"},
    },
    "task": {"task": "package.module:Task", "search": {"metric": "accuracy"}, "deadline_s": 2.5},
    "placed": {"placement": {"owner-00": {"labels": {"fedray.owner": "a"}, "resources": {"x": 0.1}, "cpus": 2}}},
    "tables": {
        "data": {"name": "tables", "path": "/tmp/x", "classes": ["a", "b"], "features": ["u", "v"], "holdout": 0.1}
    },
    "fixed scaling": {
        "data": {"name": "digits", "scaling": {"name": "fixed", "center": [8], "scale": [4]}, "central_test": 0.1},
        "cohort": {"name": "fixed", "size": 3},
        "train": {"epochs": 5},
        "stragglers": {"fraction": 0.5},
    },
}


@pytest.mark.parametrize("raw", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_experiment_survives_yaml(raw: dict[str, Any]) -> None:
    experiment = validated(raw)
    assert validated(yaml.safe_load(as_yaml(experiment))) == experiment


@pytest.mark.parametrize("raw", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_mapping_of_what_was_set_gives_the_experiment_back(raw: dict[str, Any]) -> None:
    experiment = validated(raw)
    again = as_raw(experiment)
    assert validated(again) == experiment
    assert set(again) - {"name", "search"} == set(raw) - {"search"}


@pytest.mark.parametrize("raw", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_json_schema_takes_what_fedray_takes(raw: dict[str, Any]) -> None:
    jsonschema.validate(raw, json.loads(json_schema()))
    jsonschema.validate(yaml.safe_load(as_yaml(validated(raw))), json.loads(json_schema()))


@pytest.mark.parametrize(
    "raw",
    [
        {"rounds": "three"},
        {"stratgy": "fedavg"},
        {"strategy": "fedprx"},
        {"strategy": {"name": "fedprox", "mu": -1}},
        {"data": {"name": "digits", "split": {"name": "dirichlet", "alpha": 0}}},
        {"protection": {"name": "masked", "min_owners": 2}},
        {"protection": {"name": "masked", "identities": {"owner-00": "AB" * 32}}},
        {"protection": {"name": "plain", "identities": {}}},
    ],
)
def test_the_json_schema_refuses_what_fedray_refuses(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validated(raw)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, json.loads(json_schema()))


def test_the_demo_is_valid() -> None:
    experiments = separate(read_yaml(ROOT / "scripts" / "demo.yaml")).experiments()
    assert experiments
    for experiment in experiments:
        jsonschema.validate(yaml.safe_load(as_yaml(experiment)), json.loads(json_schema()))


def test_a_bare_name_stands_for_its_section() -> None:
    short = validated({"strategy": "fedprox", "data": {"name": "digits", "split": "iid"}, "privacy": "none"})
    long = validated(
        {
            "strategy": {"name": "fedprox"},
            "data": {"name": "digits", "split": {"name": "iid"}},
            "privacy": {"name": "none"},
        }
    )
    assert short == long


def test_a_callable_stands_for_a_custom_model() -> None:
    experiment = Experiment(model=_make_model)
    assert experiment.model.name == "custom"
    assert yaml.safe_load(as_yaml(experiment))["model"]["factory"].endswith("test_loading:_make_model")


def _make_model() -> None:
    """Stands for a user's factory."""


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-5 as a string."""
    file = tmp_path / "e.yaml"
    file.write_text("privacy: {name: example, noise_multiplier: 1, delta: 1e-6}\ndata: {name: digits, scaling: none}\n")
    assert load(file).privacy.delta == 1e-6


def test_set_reads_values_as_yaml() -> None:
    assignments = ["rounds=3", "strategy.mu=0.5", "model.hidden=[8, 4]", "name=a=b", "evaluation.train=true", "a.b="]
    assert parse_overrides(assignments) == {
        "rounds": 3,
        "strategy.mu": 0.5,
        "model.hidden": [8, 4],
        "name": "a=b",
        "evaluation.train": True,
        "a.b": None,
    }


@pytest.mark.parametrize("assignment", ["rounds", "=3", "rounds=[1", "", "x={"])
def test_set_names_the_assignment_that_it_cannot_read(assignment: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_overrides(["seed=1", assignment])
    assert error.value.found.startswith(f"--set {assignment}")


def test_overrides_reach_into_shorthand_and_into_sections_that_are_not_there() -> None:
    raw = {"strategy": "fedprox", "data": {"name": "digits", "owners": 4}}
    changed = override(raw, {"strategy.mu": 0.5, "data.owners": 5, "train.optimizer.lr": 0.2, "rounds": 2})
    assert changed == {
        "strategy": {"name": "fedprox", "mu": 0.5},
        "data": {"name": "digits", "owners": 5},
        "train": {"optimizer": {"name": "sgd", "lr": 0.2}},
        "rounds": 2,
    }
    assert raw == {"strategy": "fedprox", "data": {"name": "digits", "owners": 4}}


def test_an_override_through_a_number_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"rounds\.x: 'rounds' is 3"):
        override({"rounds": 3}, {"rounds.x": 1})


def test_a_replaced_experiment_differs_there_and_nowhere_else() -> None:
    base = validated(EXPERIMENTS["private"])
    other = replaced(base, {"strategy.mu": 0.5})
    assert other.strategy.mu == 0.5
    assert replaced(other, {"strategy.mu": 0.01}) == base
    assert base.strategy.mu == 0.01


def test_a_file_overrides_and_validates(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("strategy: fedprox\nrounds: 4\n")
    experiment = load(file, {"strategy.mu": 0.3})
    assert (experiment.strategy.name, experiment.strategy.mu, experiment.rounds) == ("fedprox", 0.3, 4)


@pytest.mark.parametrize("content", [b"- 1\n", b"a: [1\n", b"", b"\xff\xfe\x00", b"just text"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "e.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"e\.yaml"):
        load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["rounds: 3\nrounds: 4\n", "data: {name: digits, owners: 2, owners: 3}\n"])
def test_a_key_that_is_there_twice_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"'(rounds|owners)' is there twice(.|\n)*line 1"):
        read_yaml(path)


def test_anchors_and_merged_keys_still_read(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("base: &base {name: digits, owners: 2}\ndata: {<<: *base, owners: 3}\n")
    assert read_yaml(path)["data"] == {"name": "digits", "owners": 3}
