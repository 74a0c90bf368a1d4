"""What an experiment may not say, and that each refusal names the user's own keys."""

from __future__ import annotations

from typing import Any

import pytest

from fedray.config import validated
from fedray.errors import ConfigError

PRIVATE = {"name": "example", "epsilon": 3.0}

KEY = "0123456789abcdef" * 4

OWNER = {"name": "owner", "epsilon": 8.0}
UNIFORM = {"name": "fedavg", "weighting": "uniform"}
BUFFERED = {"name": "buffered", "size": 4}

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
    (
        "a strategy that needs single updates",
        {"strategy": "krum"},
        ["strategy", "'krum' needs every single update", "fedavg or fedprox"],
    ),
    (
        "a strategy that needs single updates, with its settings",
        {"strategy": {"name": "trimmed_mean", "share": 0.1}, "protection": "plain"},
        ["strategy", "'trimmed_mean' needs every single update"],
    ),
    ("a list for a strategy", {"strategy": ["fedavg", "fedprox"]}, ["strategy: "]),
    ("a list for the name of a strategy", {"strategy": {"name": ["fedavg", "fedprox"]}}, ["strategy: "]),
    ("a number for a strategy", {"strategy": 3}, ["strategy: "]),
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
    (
        "fewer owners than a sum must hide",
        {"data": {"name": "digits", "owners": 2}},
        ["protection is 'masked'", "at least 3 owners", "at most 2", "protection: plain"],
    ),
    (
        "a cohort smaller than a sum must hide",
        {"cohort": {"name": "fixed", "size": 2}},
        ["protection is 'masked'", "at least 3 owners", "at most 2", "protection: plain"],
    ),
    (
        "a cohort smaller than the owners asked for",
        {
            "data": {"name": "digits", "owners": 9},
            "cohort": {"name": "fixed", "size": 5},
            "protection": {"name": "masked", "min_owners": 6},
        },
        ["'masked'", "at least 6 owners", "at most 5", "protection: plain"],
    ),
    (
        "too few owners to be hidden by encryption",
        {"data": {"name": "synthetic", "owners": 2}, "protection": "ckks"},
        ["protection is 'ckks'", "at least 3 owners", "at most 2", "protection: plain"],
    ),
    (
        "too few owners to be hidden by exact encryption",
        {"data": {"name": "synthetic", "owners": 3}, "protection": {"name": "bfv", "min_owners": 4}},
        ["protection is 'bfv'", "at least 4 owners", "at most 3", "protection: plain"],
    ),
    (
        "a server that lies about keys that nobody enrolled",
        {"protection": {"name": "masked", "server": "may_lie"}},
        ["protection.server is may_lie", "protection.identities", "fedray enrol"],
    ),
    (
        "sums of two",
        {"protection": {"name": "masked", "min_owners": 2}},
        ["protection.min_owners: ", "found 2"],
    ),
    (
        "a key that is too short",
        {"protection": {"name": "masked", "identities": {"owner-00": KEY[:-1]}}},
        ["protection.identities.owner-00: ", KEY[:-1]],
    ),
    (
        "a key that is too long",
        {"protection": {"name": "masked", "identities": {"owner-00": KEY + "0"}}},
        ["protection.identities.owner-00: "],
    ),
    (
        "a key in capitals",
        {"protection": {"name": "masked", "identities": {"owner-00": KEY.upper()}}},
        ["protection.identities.owner-00: "],
    ),
    (
        "a key that is no hexadecimal number",
        {"protection": {"name": "bfv", "identities": {"owner-00": "g" * 64}}},
        ["protection.identities.owner-00: "],
    ),
    (
        "a key that ends its line",
        {"protection": {"name": "masked", "identities": {"owner-00": KEY + "\n"}}},
        ["protection.identities.owner-00: "],
    ),
    (
        "a key that is a number",
        {"protection": {"name": "masked", "identities": {"a": 12}}},
        ["protection.identities.a: ", "found 12"],
    ),
    ("an unknown protection", {"protection": "maskd"}, ["protection: ", "'masked'", "'plain'"]),
    (
        "an unknown server",
        {"protection": {"name": "masked", "server": "lies"}},
        ["protection.server: ", "found 'lies'"],
    ),
    ("half of the owners corrupt", {"protection": {"name": "masked", "corrupt": 0.5}}, ["protection.corrupt: "]),
    ("less than no dropouts", {"protection": {"name": "masked", "dropouts": -0.1}}, ["protection.dropouts: "]),
    ("no clip", {"protection": {"name": "plain", "clip": 0}}, ["protection.clip: ", "found 0"]),
    ("no precision", {"protection": {"name": "masked", "precision": 0.0}}, ["protection.precision: ", "found 0"]),
    (
        "identities under plain protection",
        {"protection": {"name": "plain", "min_owners": 3}},
        ["protection.min_owners"],
    ),
    ("a key for no rounds", {"protection": {"name": "ckks", "key_rounds": 0}}, ["protection.key_rounds: ", "found 0"]),
    ("a name that is no file name", {"name": "a/b"}, ["name: ", "'a/b'"]),
    ("a wrong resource", {"resources": {"owner_cpus": -1}}, ["resources.owner_cpus: ", "found -1"]),
    ("a wrong placement", {"placement": {"b": {"labels": 3}}}, ["placement.b.labels: ", "found 3"]),
    ("an unknown simulation", {"simulation": "pools"}, ["simulation: ", "'none'", "'pooled'"]),
    ("no pools", {"simulation": {"name": "pooled", "pools": 0}}, ["simulation.pools: ", "found 0"]),
    ("no owners at once", {"simulation": {"name": "pooled", "at_once": 0}}, ["simulation.at_once: ", "found 0"]),
    ("less than no GPU", {"simulation": {"name": "pooled", "pool_gpus": -1}}, ["simulation.pool_gpus: ", "found -1"]),
    ("pools of owners by themselves", {"simulation": {"name": "none", "pools": 2}}, ["simulation.pools: unknown key"]),
    (
        "owners in pools that are pinned",
        {"simulation": "pooled", "placement": {"b": {"cpus": 1}, "a": {"labels": {"x": "y"}}}},
        ["placement pins a, b", "simulation is 'pooled'", "simulation: none"],
    ),
    (
        "GPUs for owners in pools",
        {"simulation": "pooled", "resources": {"owner_gpus": 0.5}},
        ["resources.owner_gpus is 0.5", "simulation is 'pooled'", "simulation.pool_gpus"],
    ),
    (
        "owners trained together under a deadline",
        {"simulation": {"name": "pooled", "at_once": 2}, "deadline_s": 1.5},
        ["simulation.at_once is 2", "deadline_s", "at_once: 1"],
    ),
    (
        "owners trained together on a task of one's own",
        {"simulation": {"name": "pooled", "at_once": 2}, "task": "a:B"},
        ["simulation.at_once is 2", "task is your own", "at_once: 1"],
    ),
    (
        "more asked by over-selection than there are",
        {"data": {"name": "digits", "owners": 5}, "cohort": {"name": "fixed", "size": 4, "over_select": 0.5}},
        ["cohort.size with cohort.over_select is 6", "data.owners is 5"],
    ),
    ("negative over-selection", {"cohort": {"name": "fixed", "size": 4, "over_select": -0.1}}, ["over_select", "-0.1"]),
    ("closed at once", {"schedule": {"name": "synchronous", "close_after_s": 0}}, ["schedule.close_after_s: "]),
    (
        "over-selection of owners that are protected as such",
        {"cohort": {"name": "fixed", "size": 4, "over_select": 0.5}, "privacy": OWNER, "strategy": UNIFORM},
        ["cohort.over_select", "'owner'", "not to be drawn", "close_after_s"],
    ),
    (
        "over-selection of owners that add noise",
        {
            "cohort": {"name": "fixed", "size": 4, "over_select": 0.5},
            "privacy": {**OWNER, "name": "distributed"},
            "strategy": UNIFORM,
        },
        ["cohort.over_select", "'distributed'"],
    ),
    (
        "over-selection of simulated owners",
        {"cohort": {"name": "fixed", "size": 4, "over_select": 0.5}, "simulation": "pooled"},
        ["cohort.over_select", "'pooled'", "stragglers"],
    ),
    (
        "rounds of simulated owners that are closed by the clock",
        {"schedule": {"name": "synchronous", "close_after_s": 3.0}, "simulation": "pooled"},
        ["schedule.close_after_s", "'pooled'", "stragglers"],
    ),
    (
        "a buffer larger than the federation",
        {"data": {"name": "digits", "owners": 4}, "schedule": {"name": "buffered", "size": 5}},
        ["schedule.size is 5", "data.owners is 4"],
    ),
    ("a buffer of nothing", {"schedule": {"name": "buffered", "size": 0}}, ["schedule.size: ", "found 0"]),
    ("a buffer of an unknown size", {"schedule": "buffered"}, ["schedule: 'size' is missing"]),
    (
        "a buffer too small for masks",
        {"schedule": {"name": "buffered", "size": 2}},
        ["at least 3 owners", "at most 2"],
    ),
    (
        "a buffer and cohorts",
        {"schedule": BUFFERED, "cohort": {"name": "poisson", "rate": 0.5}},
        ["cohort is 'poisson'", "'buffered'", "leave out cohort"],
    ),
    (
        "a buffer and simulated stragglers",
        {"schedule": BUFFERED, "stragglers": {"fraction": 0.5}, "train": {"epochs": 2}},
        ["stragglers.fraction", "'buffered'", "waits for nobody"],
    ),
    ("a buffer of simulated owners", {"schedule": BUFFERED, "simulation": "pooled"}, ["'buffered'", "'pooled'"]),
    (
        "a buffer of owners that are protected as such",
        {"schedule": BUFFERED, "privacy": OWNER, "strategy": UNIFORM},
        ["'buffered'", "'owner'", "not sampled", "privacy: example"],
    ),
    (
        "a buffer at a server that lies",
        {
            "schedule": BUFFERED,
            "protection": {"name": "masked", "server": "may_lie", "identities": {"owner-00": KEY}},
        },
        ["'buffered'", "may_lie", "different models"],
    ),
    ("nobody evaluated", {"evaluation": {"owners": 0}}, ["evaluation.owners: ", "found 0"]),
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


def test_masks_are_the_default_and_ask_for_three_owners() -> None:
    protection = validated({}).protection
    assert (protection.name, protection.min_owners, protection.server) == ("masked", 3, "honest")
    assert (protection.clip, protection.precision) == (8.0, 1e-5)
    assert validated({"data": {"name": "digits", "owners": 3}}).protection == protection


@pytest.mark.parametrize(
    "raw",
    [
        {"data": {"name": "digits", "owners": 1}, "protection": "plain"},
        {"cohort": {"name": "fixed", "size": 1}, "protection": "plain"},
        {"cohort": {"name": "fixed", "size": 3}},
        {"cohort": {"name": "poisson", "rate": 0.01}},
        {"protection": {"name": "masked", "server": "may_lie", "identities": {"owner-00": KEY}}},
        {"data": {"name": "tables", "path": "/tmp/x", "classes": ["a", "b"]}},
        {"schedule": {"name": "synchronous", "close_after_s": 0.5}, "privacy": OWNER, "strategy": UNIFORM},
        {"schedule": BUFFERED, "privacy": PRIVATE, "deadline_s": 3.0},
        {"schedule": BUFFERED, "protection": "bfv"},
        {"cohort": {"name": "fixed", "size": 4, "over_select": 0.5}, "privacy": PRIVATE},
    ],
    ids=[
        "plain",
        "plain cohort",
        "three",
        "poisson",
        "enrolled",
        "tables of whose owners nothing is known yet",
        "closed under owner-level privacy",
        "buffered under example-level privacy",
        "buffered and encrypted",
        "over-selected under example-level privacy",
    ],
)
def test_what_may_be_hidden_or_is_not_to_be_is_taken(raw: dict[str, Any]) -> None:
    validated(raw)


POOLED = {"name": "pooled", "pools": 3, "at_once": 1}


@pytest.mark.parametrize(
    "raw",
    [
        {"simulation": "pooled"},
        {"simulation": {"name": "pooled", "pool_gpus": 0.25, "at_once": 64}},
        {"simulation": POOLED, "deadline_s": 1.5},
        {"simulation": POOLED, "task": "a:B"},
        {"simulation": "pooled", "deadline_s": 1.5, "task": "a:B"},
        {"simulation": POOLED, "protection": "bfv"},
        {"simulation": "none", "placement": {"b": {"cpus": 1}}, "resources": {"owner_gpus": 0.5}},
    ],
    ids=["auto", "gpus", "deadline", "task", "auto finds one at a time", "encrypted", "owners by themselves"],
)
def test_what_can_be_simulated_is_taken(raw: dict[str, Any]) -> None:
    validated(raw)


def test_owners_are_not_simulated_unless_that_is_said() -> None:
    assert validated({}).simulation.name == "none"
    simulation = validated({"simulation": "pooled"}).simulation
    assert (simulation.pools, simulation.pool_gpus, simulation.at_once) == ("auto", 0.0, "auto")


def test_gpus_of_owners_in_pools_are_their_pools() -> None:
    assert validated({"simulation": {"name": "pooled", "pool_gpus": 0.25}}).gpus_of("a") == 0.25
    assert validated({"resources": {"owner_gpus": 0.5}, "placement": {"a": {"gpus": 1}}}).gpus_of("a") == 1


def test_an_experiment_cannot_be_changed() -> None:
    experiment = validated({})
    with pytest.raises(Exception, match="frozen"):
        experiment.rounds = 3
