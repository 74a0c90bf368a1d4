"""What an experiment may not say, and that each refusal names the user's own keys."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.config import validated
from fedray.errors import ConfigError

PRIVATE = {"name": "example", "epsilon": 3.0}

REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unknown key", {"stratgy": "fedavg"}, ["stratgy: unknown key; did you mean 'strategy'?"]),
    (
        "unknown key deep down",
        {"data": {"name": "digits", "split": {"name": "dirichlet", "alfa": 1}}},
        ["data.split.alfa: unknown key; did you mean 'alpha'?"],
    ),
    ("unknown key like none", {"zzzzqqq": 1}, ["zzzzqqq: unknown key"]),
    ("wrong type", {"rounds": "three"}, ["rounds: ", "found 'three'"]),
    ("zero rounds", {"rounds": 0}, ["rounds: ", "found 0"]),
    ("wrong element", {"model": {"name": "mlp", "hidden": [8, "wide"]}}, ["model.hidden.1: ", "found 'wide'"]),
    ("unknown name", {"strategy": "fedprx"}, ["strategy: ", "'fedavg'", "'fedprox'"]),
    ("no name", {"strategy": {"mu": 1.0}}, ["strategy: ", "'name'"]),
    ("missing key", {"cohort": "fixed"}, ["cohort: 'size' is missing"]),
    ("negative mu", {"strategy": {"name": "fedprox", "mu": -0.1}}, ["strategy.mu: ", "found -0.1"]),
    (
        "no epsilon left",
        {"data": {"name": "digits"}, "privacy": {"name": "example", "epsilon": 0}},
        ["privacy.epsilon: "],
    ),
    ("negative epsilon", {"privacy": {"name": "example", "epsilon": -1.0}}, ["privacy.epsilon: ", "found -1.0"]),
    (
        "two measures of noise",
        {"privacy": {"name": "example", "epsilon": 1.0, "noise_multiplier": 1.0}},
        ["privacy", "epsilon", "noise_multiplier"],
    ),
    ("no measure of noise", {"privacy": {"name": "example"}}, ["privacy", "epsilon", "noise_multiplier"]),
    ("delta of one", {"privacy": {**PRIVATE, "delta": 1.0}}, ["privacy.delta: ", "found 1.0"]),
    ("two measures of work", {"train": {"epochs": 1, "steps": 1}}, ["train", "epochs", "steps"]),
    (
        "a cohort larger than the federation",
        {"data": {"name": "digits", "owners": 4}, "cohort": {"name": "fixed", "size": 5}},
        ["cohort.size is 5", "data.owners is 4"],
    ),
    (
        "owner scaling under privacy",
        {"data": "breast_cancer", "privacy": PRIVATE},
        ["data.scaling is 'owner'", "privacy"],
    ),
    (
        "training metrics under privacy",
        {"privacy": PRIVATE, "evaluation": {"train": True}},
        ["evaluation.train", "privacy"],
    ),
    ("a task under privacy", {"privacy": PRIVATE, "task": "a:B"}, ["task", "privacy"]),
    ("a task beside a model", {"task": "a:B", "model": {"name": "mlp", "hidden": [3]}}, ["task", "model"]),
    ("a task that is no path", {"task": "nothing"}, ["task: ", "package.module:name"]),
    ("a loss that is no path", {"loss": "hinge"}, ["loss: ", "cross_entropy"]),
    ("a metric that is no path", {"metrics": ["accuracy", "hinge"]}, ["metrics.1: ", "accuracy"]),
    ("stragglers of one epoch", {"stragglers": {"fraction": 0.5}}, ["stragglers", "1 epochs", "train.epochs"]),
    (
        "stragglers of one step",
        {"stragglers": {"fraction": 0.5}, "train": {"steps": 1}},
        ["stragglers", "1 steps", "train.steps"],
    ),
    ("a metric twice", {"metrics": ["accuracy", "my.module:accuracy"]}, ["metrics", "accuracy"]),
    ("a metric called loss", {"metrics": ["my.module:loss"]}, ["metrics", "loss"]),
    ("accuracy of one output", {"loss": "binary_cross_entropy"}, ["'accuracy'", "'binary_cross_entropy'"]),
    ("accuracy of a regression", {"loss": "mse"}, ["'accuracy'", "'mse'"]),
    ("an unknown objective", {"search": {"metric": "recall"}}, ["search.metric is 'recall'", "accuracy"]),
    (
        "central rows without an owner to scale them",
        {"data": {"name": "digits", "central_test": 0.1, "scaling": "owner"}},
        ["data.central_test", "data.scaling"],
    ),
    ("a name that is no file name", {"name": "a/b"}, ["name: ", "'a/b'"]),
    ("a wrong resource", {"resources": {"owner_cpus": -1}}, ["resources.owner_cpus: ", "found -1"]),
    ("a wrong placement", {"placement": {"b": {"labels": 3}}}, ["placement.b.labels: ", "found 3"]),
]

TAGS = ["function-before", "tagged-union", "literal[", "Digits", "FedProx", "ExamplePrivacy", "digits.", "constrained-"]


@pytest.mark.parametrize(("raw", "said"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_refusal_names_the_users_own_keys(raw: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        validated(raw)
    for words in said:
        assert words in error.value.found
    assert not [tag for tag in TAGS if tag in error.value.found]


def test_every_broken_rule_has_its_line() -> None:
    with pytest.raises(ConfigError) as error:
        validated({"rounds": 0, "strategy": {"name": "fedprox", "mu": -1}, "dat": "digits"})
    keys = {line.strip().partition(":")[0] for line in error.value.found.splitlines()}
    assert keys == {"rounds", "strategy.mu", "dat"}


@pytest.mark.parametrize(
    ("raw", "metric", "mode"),
    [
        ({}, "accuracy", "max"),
        ({"search": {"metric": "loss"}}, "loss", "min"),
        ({"metrics": []}, "loss", "min"),
        ({"loss": "mse", "metrics": ["squared_error"]}, "squared_error", "min"),
        ({"metrics": ["a.b:recall"]}, "recall", "max"),
        ({"metrics": ["a.b:cost"], "search": {"mode": "min"}}, "cost", "min"),
        ({"task": "a:B", "search": {"metric": "anything"}}, "anything", "max"),
    ],
)
def test_search_knows_what_is_better(raw: dict[str, Any], metric: str, mode: str) -> None:
    search = validated(raw).search
    assert (search.metric, search.mode) == (metric, mode)


def test_an_experiment_cannot_be_changed() -> None:
    experiment = validated({})
    with pytest.raises(Exception, match="frozen"):
        experiment.rounds = 3
