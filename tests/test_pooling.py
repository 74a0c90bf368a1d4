"""Simulations in this process: the bits of owners by themselves, a million owners, and what pools are made of."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedray
from fedray import build, data
from fedray.build import open_federation
from fedray.config import Experiment
from fedray.data import Numbered
from fedray.errors import ConfigError
from fedray.owners import Owner
from fedray.pooling import PoolMaker, cohort_here, known_population
from fedray.pools import InProcessCohort, InProcessPool, OneByOne
from fedray.rounds import federate
from fedray.selection import cohort_of_round, evaluated
from fedray.values import Choice, Population, RoundRecord

POOLED = {"name": "pooled", "at_once": 1}
SMALL: dict[str, Any] = {
    "seed": 3,
    "rounds": 3,
    "data": {"name": "synthetic", "owners": 7},
    "model": {"name": "mlp", "hidden": [4]},
    "train": {"batch_size": 32, "epochs": 2},
    "strategy": {"name": "fedprox", "mu": 0.1},
    "evaluation": {"owners": 5, "train": True},
    "protection": "plain",
}
UNIFORM = {"strategy": {"name": "fedavg", "weighting": "uniform"}, "evaluation": {"noise_multiplier": 5.0}}
OWNER = {"noise_multiplier": 2.0, "delta": 1e-3, "unsafe_replay_seed": 3}
EXAMPLE = {"name": "example", "noise_multiplier": 2.0, "unsafe_replay_seed": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"protection": "masked"},
    "stragglers": {"stragglers": {"fraction": 0.5}},
    "dropped": {"stragglers": {"fraction": 0.5}, "strategy": "fedavg", "protection": "masked"},
    "few": {"cohort": {"name": "fixed", "size": 4}, "protection": "masked"},
    "owners": {"privacy": {"name": "owner", **OWNER}, **UNIFORM},
    "owners, masked": {"privacy": {"name": "owner", **OWNER}, **UNIFORM, "protection": "masked"},
    "distributed": {"privacy": {"name": "distributed", **OWNER}, **UNIFORM, "protection": "masked"},
    "examples": {"privacy": EXAMPLE, "evaluation": {"owners": 5}},
    "examples, noised figures": {"privacy": EXAMPLE, "evaluation": {"noise_multiplier": 5.0}},
}


def figures(record: RoundRecord) -> RoundRecord:
    """Without what is measured by the clock; of epsilons, those that pools' owners give."""
    owners = tuple(replace(owner, seconds=0.0, epsilon=owner.epsilon_rdp) for owner in record.owners)
    epsilon = record.epsilon_rdp
    accountant = None if epsilon is None else "RDP"
    return replace(record, seconds={}, work={}, owners=owners, epsilon=epsilon, accountant=accountant)


def records_of(raw: dict[str, Any], folder: Path, **changes: Any) -> list[RoundRecord]:
    experiment = Experiment.model_validate({**raw, **changes})
    return [figures(record) for record in fedray.run(experiment, folder, in_process=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_owners_in_a_pool_give_the_bits_and_figures_of_owners_by_themselves(variant: str, tmp_path: Path) -> None:
    raw = {**SMALL, **VARIANTS[variant]}
    expected = records_of(raw, tmp_path / "none")
    assert {record.sum.outcome for record in expected} == {"opened"}
    assert records_of(raw, tmp_path / "pooled", simulation=POOLED) == expected


@pytest.mark.parametrize("protection", ["bfv", "ckks"])
def test_so_they_do_under_encryption(protection: str, tmp_path: Path) -> None:
    """Ciphertexts are drawn anew each time, and are not of one length."""
    raw = {**SMALL, "protection": protection, "model": "logistic", "rounds": 1}
    (expected,), (found,) = records_of(raw, tmp_path / "none"), records_of(raw, tmp_path / "pooled", simulation=POOLED)
    assert (found.n_updates, found.sum.outcome) == (7, "opened")
    assert (found.parameters_sha256, found.metrics) == (expected.parameters_sha256, expected.metrics)
    assert found.owners == expected.owners


@pytest.mark.parametrize("variant", ["masked", "examples", "owners"])
def test_so_they_do_where_no_owner_stays_in_memory(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {**SMALL, **VARIANTS[variant]}
    expected = records_of(raw, tmp_path / "none")
    monkeypatch.setattr("fedray.pooling._BUDGET_BYTES", 0)
    assert records_of(raw, tmp_path / "pooled", simulation=POOLED) == expected


def test_what_is_not_simulated_is_opened_as_owners_by_themselves() -> None:
    assert cohort_here(Experiment.model_validate(SMALL)) is InProcessCohort


# A million owners ----------------------------------------------------------------------------------------------------

MILLION: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "images", "owners": 1_000_000, "rows": 20, "shape": [1, 4, 4], "classes": 3},
    "model": "logistic",
    "train": {"batch_size": 10},
    "cohort": {"name": "fixed", "size": 30},
    "protection": "plain",
    "evaluation": {"owners": 20},
    "simulation": POOLED,
}


class Doors:
    """Counts who is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: Counter[str] = Counter()
        opens = build.OwnerOpener.__call__

        def opened(opener: build.OwnerOpener, name: str) -> Owner:
            self.opened[name] += 1
            return opens(opener, name)

        monkeypatch.setattr(build.OwnerOpener, "__call__", opened)


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> Doors:
    return Doors(monkeypatch)


@pytest.mark.parametrize(
    ("changes", "most_mb"),
    [
        ({}, 60),
        ({"protection": "masked"}, 60),
        ({"privacy": {"name": "owner", "noise_multiplier": 1.0, "delta": 1e-7}, **UNIFORM}, 120),
        ({"privacy": {"name": "example", "noise_multiplier": 1.0}}, 120),
    ],
    ids=["plain", "masked", "owner-level privacy", "example-level privacy"],
)
def test_a_million_owners_start_without_a_list_of_them(
    changes: dict[str, Any], most_mb: float, doors: Doors, tmp_path: Path
) -> None:
    """A list of their names takes 66 MB, a set of them 95; an accountant's modules take 46."""
    experiment = Experiment.model_validate({**MILLION, **changes})
    tracemalloc.start()
    try:
        build.check(experiment)
        federation = open_federation(experiment, cohort_here(experiment), tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(federation.cohort.population) == 1_000_000
    assert isinstance(federation.cohort.population.names, Numbered)
    assert not doors.opened
    assert peak < most_mb * 1e6, f"{peak / 1e6:.0f} MB"


def test_of_a_million_owners_only_those_that_are_asked_are_opened(doors: Doors, tmp_path: Path) -> None:
    experiment = Experiment.model_validate(MILLION)
    federation = open_federation(experiment, cohort_here(experiment), tmp_path)
    population = federation.cohort.population
    asked: set[str] = set()
    for round, (_, record) in enumerate(federate(federation), start=1):
        drawn = evaluated(experiment.evaluation, population, experiment.seed, round)
        asked |= {*record.cohort, *drawn}
        assert record.n_updates == len(record.cohort) == 30
        assert record.n_owners == 1_000_000
        assert {owner.name for owner in record.owners} == {*record.cohort, *drawn}
    assert set(doors.opened) == asked
    assert set(doors.opened.values()) == {1}


def test_the_sizes_that_are_known_beforehand_are_those_that_owners_have() -> None:
    few = Experiment.model_validate({**MILLION, "data": {**MILLION["data"], "owners": 40}})
    known = known_population(few)
    assert known is not None
    opened = InProcessCohort({name: partial(build.open_owner, few, name, 2, Path(), "") for name in known.names})
    assert list(known.names) == list(opened.population.names)
    assert known.n_train.tolist() == opened.population.n_train.tolist()
    assert known.n_holdout.tolist() == opened.population.n_holdout.tolist()
    assert [known.n_train_of(name) for name in known.names] == known.n_train.tolist()


@pytest.mark.parametrize(
    "changes", [{"name": "synthetic", "owners": 4}, {**MILLION["data"], "min_classes": 2}], ids=str
)
def test_where_owners_must_be_opened_to_be_counted_nothing_is_known_beforehand(changes: dict[str, Any]) -> None:
    assert known_population(Experiment.model_validate({**MILLION, "data": changes, "cohort": "all"})) is None


# Who is drawn --------------------------------------------------------------------------------------------------------

NAMES = Numbered.of(1_000_000)
ROWS = np.ones(len(NAMES), np.int64)
SELECTIONS: list[dict[str, Any]] = [
    {"name": "fixed", "size": 50},
    {"name": "poisson", "rate": 5e-5},
    {"name": "cyclic", "size": 50},
]


@pytest.mark.parametrize("cohort", SELECTIONS, ids=[one["name"] for one in SELECTIONS])
def test_cohorts_of_names_made_up_on_demand_are_those_of_a_list(cohort: dict[str, Any]) -> None:
    selection = Experiment.model_validate({**MILLION, "cohort": cohort}).cohort
    few, listed = Numbered.of(1234), [f"owner-{number:04d}" for number in range(1234)]
    for round in (1, 2, 7):
        assert cohort_of_round(selection, few, 5, round) == cohort_of_round(selection, listed, 5, round)
        drawn = cohort_of_round(selection, NAMES, 5, round)
        assert list(drawn) == sorted(set(drawn))
        assert 5 < len(drawn) < 150
        assert all(type(name) is str and name in NAMES for name in drawn)


@pytest.mark.parametrize("asked", [1, 20])
def test_as_many_owners_are_evaluated_as_asked_for_the_same_for_a_seed_and_a_round(asked: int) -> None:
    evaluation = Experiment.model_validate({**MILLION, "evaluation": {"owners": asked}}).evaluation
    drawn = {
        (seed, round): evaluated(evaluation, Population(NAMES, ROWS, ROWS), seed, round)
        for seed in (1, 2)
        for round in (1, 2, 3)
    }
    assert all(len(names) == len(set(names)) == asked for names in drawn.values())
    assert len(set(drawn.values())) == 6, "another draw for another seed or round"
    for (seed, round), names in drawn.items():
        assert evaluated(evaluation, Population(NAMES, ROWS, ROWS), seed, round) == names
        assert list(names) == sorted(names)


@pytest.mark.parametrize("asked", [None, 7, 8])
def test_all_are_evaluated_where_there_are_no_more(asked: int | None) -> None:
    evaluation = Experiment.model_validate({"evaluation": {"owners": asked}}).evaluation
    seven = Numbered.of(7)
    assert evaluated(evaluation, Population(seven, ROWS[:7], ROWS[:7]), 0, 1) == seven


def test_figures_are_means_over_the_owners_that_were_drawn(tmp_path: Path) -> None:
    """Weighed by their rows, and no owner's line tells of a model that was not evaluated there."""
    experiment = Experiment.model_validate({**SMALL, "evaluation": {"owners": 2}, "simulation": POOLED})
    for record in fedray.run(experiment, tmp_path / "run", in_process=True):
        told = [owner for owner in record.owners if owner.metrics]
        assert len(told) == 2
        n_rows = sum(owner.n_holdout for owner in told)
        for name, mean in record.metrics.items():
            assert mean == pytest.approx(sum(owner.metrics[name] * owner.n_holdout for owner in told) / n_rows)
        assert all(owner.n_holdout == 0 for owner in record.owners if owner not in told)


# Makers of pools -----------------------------------------------------------------------------------------------------

UNTREATABLE: dict[str, dict[str, Any]] = {
    "batchnorm": {"model": {"name": "cnn", "channels": [2], "hidden": 4, "norm": "batch"}},
    "loss": {"model": "logistic", "loss": "torch.nn:CrossEntropyLoss"},
}
IMAGES = {"name": "images", "owners": 9, "shape": [1, 8, 8], "rows": 20, "spread": 0.0}


@pytest.mark.parametrize("changes", UNTREATABLE.values(), ids=UNTREATABLE)
def test_owners_that_cannot_be_trained_together_are_refused_where_that_is_asked_for(changes: dict[str, Any]) -> None:
    raw = {**SMALL, "data": IMAGES, **changes}
    asked = Experiment.model_validate({**raw, "simulation": {"name": "pooled", "at_once": 8}})
    with pytest.raises(ConfigError, match=r"simulation\.at_once 8, but owners cannot be trained together"):
        open_federation(asked, cohort_here(asked), Path())
    pinned = Experiment.model_validate({**raw, "simulation": POOLED})
    assert isinstance(PoolMaker(pinned).trainer(1), OneByOne)
    automatic = Experiment.model_validate({**raw, "simulation": "pooled"})
    choice = PoolMaker(automatic).choose([20] * 9)
    assert choice.at_once == 1
    assert choice.line.startswith("one owner at a time: ")


def test_what_is_remembered_of_a_model_that_can_be_trained_together_no_more_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedray.pooling.remembered", lambda *_: Choice(64, "64 at a time"))
    raw = {**SMALL, "data": IMAGES, "simulation": "pooled"}
    assert PoolMaker(Experiment.model_validate(raw)).choose([20]) == Choice(64, "64 at a time")
    choice = PoolMaker(Experiment.model_validate({**raw, **UNTREATABLE["batchnorm"]})).choose([20])
    assert (choice.at_once, "BatchNorm" in choice.line) == (1, True)


class Mine:
    """A task of the user's own."""

    n_parameters = 1

    def __init__(self, schema: data.Sizes) -> None:
        """Needs nothing."""

    def initial(self, seed: int) -> Any:
        return np.zeros(1, np.float32)


def test_tasks_of_the_users_own_train_one_owner_at_a_time() -> None:
    asked = Experiment.model_validate({"data": SMALL["data"], "task": Mine, "simulation": "pooled"})
    assert PoolMaker(asked).choose([3, 4]) == Choice(1, "one owner at a time: the task is your own")


def test_owners_trained_together_give_the_model_of_owners_one_by_one(tmp_path: Path) -> None:
    """After one round, to a ten-thousandth of how far it moved; records say how many."""
    models = {}
    for at_once in (1, 3):
        asked = Experiment.model_validate({**SMALL, "simulation": {"name": "pooled", "at_once": at_once}})
        federation = open_federation(asked, cohort_here(asked), tmp_path / str(at_once))
        state, record = next(federate(federation))
        assert record.at_once == at_once
        models[at_once] = state.vector
    moved = models[1] - federation.task.initial(asked.seed)
    assert np.linalg.norm(models[3] - models[1]) <= 1e-4 * np.linalg.norm(moved)


def test_what_was_chosen_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fedray.pooling.remembered", lambda *_: Choice(4, "4 owners at a time: it is faster"))
    asked = Experiment.model_validate({**SMALL, "simulation": "pooled"})
    run = fedray.run(asked, tmp_path / "run", in_process=True)
    assert {record.at_once for record in run} == {4}
    assert list(run.notes) == ["4 owners at a time: it is faster"]


@pytest.mark.parametrize("protection", ["plain", "masked", "ckks", "bfv"])
def test_pools_add_up_what_may_be_added(protection: str, tmp_path: Path) -> None:
    """One vector a pool where sums are taken in a ring, and every owner's own where it must be signed."""
    asked = Experiment.model_validate({**SMALL, "model": "logistic", "protection": protection, "simulation": POOLED})
    federation = open_federation(asked, cohort_here(asked), tmp_path)
    given: list[Any] = []
    train = InProcessPool.train

    def noting(cohort: InProcessPool, *asked: Any, **patience: Any) -> Any:
        given.extend(train(cohort, *asked, **patience))
        return list(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessPool, "train", noting)
        next(federate(federation))
    assert [type(one).__name__ for one in given] == (
        ["Subtotal"] if protection in ("plain", "masked") else ["Sealed"] * 7
    )


@pytest.mark.parametrize("at_once", [1, "auto"])
def test_a_pool_that_was_promised_a_gpu_and_finds_none_says_so(at_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    section = {"name": "pooled", "pool_gpus": 0.5, "at_once": at_once}
    data = {"name": "images", "owners": 8, "shape": [1, 8, 8], "rows": 40, "spread": 0.0}
    asked = Experiment.model_validate({"model": "logistic", "data": data, "simulation": section})
    choice = PoolMaker(asked).choose([32] * 8)
    assert choice.line.startswith("no GPU that PyTorch can use: on the CPU")
    assert choice.at_once == 1 or at_once == "auto"
