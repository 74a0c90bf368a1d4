"""Pools as Ray actors: the contract, the bits of owners by themselves, lost pools, and what is refused at the start."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contracts.cohort
import numpy as np
import pandas as pd
import pytest
import ray
import toys
from contracts.cohort import SHARDS, CohortContract, OpensCohort, SinglePools
from ray import cloudpickle
from toys import is_there, openers, torch_task

import fedray
from fedray.actors import pooled_cohort
from fedray.actors.pooled_cohort import PooledCohort
from fedray.actors.session import RayServer, ray_cohort
from fedray.build import open_federation
from fedray.config import Experiment
from fedray.errors import ConfigError, DataError, ResourcesError
from fedray.federation import Federation
from fedray.open_owners import OpensOwner
from fedray.overlapping import federate_overlapping
from fedray.pools import InProcessCohort
from fedray.protocols import Cohort
from fedray.rounds import federate
from fedray.tune import compare
from fedray.values import Assignment, Examples, RoundRecord, Schema, Shard, Tally, Update, Vector

cloudpickle.register_pickle_by_value(toys)
cloudpickle.register_pickle_by_value(contracts.cohort)
cloudpickle.register_pickle_by_value(sys.modules[__name__])


OpensPools = Callable[[Mapping[str, OpensOwner], int], Cohort]


@pytest.fixture(scope="module")
def opens_pools(ray_dir: Path) -> Iterator[OpensPools]:
    """On little of the machine, so that they do not keep others from starting."""
    opened: list[PooledCohort] = []

    def opens(openers: Mapping[str, OpensOwner], n_pools: int) -> Cohort:
        simulation = {"name": "pooled", "pools": n_pools, "at_once": 1}
        experiment = Experiment.model_validate({"simulation": simulation})
        opened.append(PooledCohort(openers, experiment, cpus=0.2, makes=SinglePools()))
        return opened[-1]

    yield opens
    for cohort in opened:
        cohort.close()


@pytest.fixture(scope="module")
def two_pools(opens_pools: OpensPools) -> Cohort:
    return opens_pools(openers(torch_task, SHARDS), 2)


class TestPooledCohort(CohortContract):
    """Tests that change nothing share two pools, which take long to start."""

    @pytest.fixture
    def opens_cohort(self, opens_pools: OpensPools) -> OpensCohort:
        return partial(opens_pools, n_pools=1)

    @pytest.fixture
    def cohort(self, two_pools: Cohort) -> Cohort:
        return two_pools

    def test_a_cohort_may_be_closed_twice(self, opens_cohort: OpensCohort) -> None:
        super().test_a_cohort_may_be_closed_twice(opens_cohort(openers(torch_task, SHARDS)))


# The bits of owners by themselves ------------------------------------------------------------------------------------

SMALL = Experiment.model_validate(
    {
        "seed": 3,
        "rounds": 2,
        "data": {"name": "synthetic", "owners": 7},
        "model": {"name": "mlp", "hidden": [4]},
        "train": {"batch_size": 32, "epochs": 2},
        "strategy": {"name": "fedprox", "mu": 0.1},
        "stragglers": {"fraction": 0.3},
        "evaluation": {"owners": 5},
    }
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"protection": "masked"},
    "examples": {
        "data": {"name": "synthetic", "owners": 4},
        "evaluation": {"owners": 2},
        "privacy": {"name": "example", "noise_multiplier": 2.0, "unsafe_replay_seed": 3},
    },
    "owners": {
        "privacy": {"name": "owner", "noise_multiplier": 2.0, "delta": 1e-3, "unsafe_replay_seed": 3},
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "stragglers": {"fraction": 0.0},
        "evaluation": {"noise_multiplier": 5.0},
    },
}


def figures(record: RoundRecord) -> RoundRecord:
    """Without what is measured by the clock."""
    owners = tuple(replace(owner, seconds=0.0) for owner in record.owners)
    return replace(record, seconds={}, work={}, owners=owners)


def by_renyi(record: RoundRecord) -> RoundRecord:
    """With the figures that pools' owners give of what they have spent."""
    owners = tuple(replace(owner, epsilon=owner.epsilon_rdp) for owner in record.owners)
    return replace(record, epsilon=record.epsilon_rdp, accountant="RDP", owners=owners)


def figures_here(experiment: Experiment, folder: Path) -> list[RoundRecord]:
    return [figures(record) for _, record in federate(open_federation(experiment, InProcessCohort, folder))]


def pooled(experiment: Experiment, n_pools: int, **changes: Any) -> Experiment:
    simulation = {"name": "pooled", "pools": n_pools, "at_once": 1, **changes}
    return Experiment.model_validate({**dict(experiment), "simulation": simulation})


def open_pools(experiment: Experiment, folder: Path) -> Federation:
    return open_federation(experiment, ray_cohort(experiment, cpus=3.0), folder)


@pytest.mark.parametrize(
    ("variant", "n_pools"),
    [("owners", 1), ("plain", 2), ("masked", 3), ("examples", 2)],
)
def test_any_number_of_pools_gives_the_bits_and_figures_of_owners_by_themselves(
    variant: str, n_pools: int, tmp_path: Path, ray_dir: Path
) -> None:
    """``test_pooling`` compares every variant in process."""
    experiment = Experiment.model_validate({**dict(SMALL), "protection": "plain", **VARIANTS[variant]})
    expected = figures_here(experiment, tmp_path / "here")
    assert {record.sum.outcome for record in expected} == {"opened"}
    federation = open_pools(pooled(experiment, n_pools), tmp_path / "pools")
    assert federation.cohort.notes == (f"pools: {n_pools}",)
    rounds = federate if variant in ("owners", "examples") else federate_overlapping
    found = [figures(record) for _, record in rounds(federation)]
    federation.cohort.close()
    assert found == ([by_renyi(record) for record in expected] if variant == "examples" else expected)


def test_a_run_with_pools_leaves_the_records_and_the_model_of_one_without(tmp_path: Path, ray_dir: Path) -> None:
    """The whole way: server actor, overlapping rounds, records on disk."""
    run = fedray.run(pooled(SMALL, 2), tmp_path / "pools")
    found = [figures(record) for record in run]
    expected = [figures(record) for record in fedray.run(SMALL, tmp_path / "here", in_process=True)]
    assert found == expected
    assert list(run.notes) == ["pools: 2"]
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("pools", "here")]
    assert models[0] == models[1]


def test_owners_trained_together_end_where_each_does_alone(tmp_path: Path, ray_dir: Path) -> None:
    """The update of a round is compared: up to rounding, that of owners one by one."""
    experiment = Experiment.model_validate({**dict(SMALL), "rounds": 1, "protection": "plain"})
    start = open_federation(experiment, InProcessCohort, tmp_path / "here")
    (state, _), together = next(federate(start)), open_pools(pooled(experiment, 1, at_once=4), tmp_path / "pools")
    found, record = next(federate(together))
    together.cohort.close()
    before = start.task.initial(experiment.seed)
    assert record.at_once == 4
    assert np.linalg.norm(found.vector - state.vector) <= 1e-4 * np.linalg.norm(state.vector - before)


# Owners and pools that fail ------------------------------------------------------------------------------------------

SECRET = "a row: 31415.9265"


class Counting:
    """A task of one number: every update is 1. In round 2 some owners misbehave.

    Args:
        faults: who does what.
        is_blind: whether nothing can be evaluated.
        folder: where ``hang`` leaves a file when it begins.
    """

    n_parameters = 1

    def __init__(
        self, schema: Schema, faults: Mapping[str, str] = {}, is_blind: bool = False, folder: Path = Path()
    ) -> None:
        self._faults, self._is_blind, self._folder = faults, is_blind, folder

    def initial(self, seed: int) -> Vector:
        return np.zeros(1, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        value = 1.0
        match self._faults.get(assignment.owner) if assignment.plan.round == 2 else None:
            case "raise":
                raise ValueError(SECRET)
            case "nan":
                value = np.nan
            case "hang":
                (self._folder / "hangs").touch()
                time.sleep(3600)
        if assignment.plan.round > 2:
            time.sleep(0.02)
        return Update(np.full(1, value, np.float32), 1, 1, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        if self._is_blind:
            raise ValueError(SECRET)
        return Tally({"loss": 0.0}, len(examples))


def counting(protection: str = "plain", **settings: Any) -> Experiment:
    """Eight owners, four to each of two pools."""
    raw = {
        "rounds": 3,
        "data": {"name": "synthetic", "owners": 8},
        "task": Counting,
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "protection": protection,
        "simulation": {"name": "pooled", "pools": 2, "at_once": 1},
    }
    return Experiment.model_validate({**raw, **settings})


OWNERS = tuple(f"owner-{number:02d}" for number in range(8))


def outcomes(record: RoundRecord) -> dict[str, str]:
    return {owner.name: owner.outcome for owner in record.owners}


def test_an_owner_that_fails_costs_the_others_of_its_pool_nothing(tmp_path: Path, ray_dir: Path) -> None:
    """Neither in training nor in evaluation; and what it says of itself is a type and a place."""
    task = partial(Counting, faults={"owner-02": "raise", "owner-05": "nan"}, is_blind=True)
    federation = open_pools(counting(task=task), tmp_path)
    records = [record for _, record in federate_overlapping(federation)]
    federation.cohort.close()
    expected = {**dict.fromkeys(OWNERS, "update"), "owner-02": "failed", "owner-05": "rejected"}
    assert [record.n_updates for record in records] == [8, 6, 8]
    assert outcomes(records[1]) == expected
    assert records[1].owners[2].reason.startswith("ValueError at test_pooled_cohort.py:")
    assert [record.metrics for record in records] == [{}] * 3
    assert SECRET not in repr(records)


@pytest.mark.parametrize("protection", ["plain", "masked"])
def test_a_pool_that_is_killed_in_a_round_is_missing_in_it_and_comes_back(
    protection: str, tmp_path: Path, ray_dir: Path
) -> None:
    """One of its owners never ends round 2 by itself. Under masks too few may be left to open that sum, or the next."""
    task = partial(Counting, faults={"owner-02": "hang"}, folder=tmp_path)
    federation = open_pools(counting(protection, task=task, rounds=400), tmp_path / "owners")
    cohort: Any = federation.cohort
    pid = ray.get(cohort._pools[cohort._dealer.home("owner-02")].__ray_call__.remote(lambda _: os.getpid()))

    def kill() -> None:
        assert is_there(tmp_path / "hangs")
        os.kill(pid, signal.SIGKILL)

    records: list[RoundRecord] = []
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill)
        for _, record in federate_overlapping(federation):
            records.append(record)
            if record.round > 2 and record.n_updates == 8:
                break
        killing.result()
    cohort.close()
    assert outcomes(records[0]) == dict.fromkeys(OWNERS, "update")
    lost = {name for name, outcome in outcomes(records[1]).items() if outcome == "absent"}
    assert "owner-02" in lost
    assert len(lost) < len(OWNERS)
    assert all("its pool died" in owner.reason for owner in records[1].owners if owner.name in lost)
    if protection == "plain":
        assert {record.sum.outcome for record in records} == {"opened"}
        assert outcomes(records[1]) == {name: "absent" if name in lost else "update" for name in OWNERS}
        assert records[1].n_updates == 8 - len(lost)
    assert outcomes(records[-1]) == dict.fromkeys(OWNERS, "update"), "the pool did not come back"


def test_a_pool_whose_owners_are_long_past_their_deadlines_is_started_anew(
    tmp_path: Path, ray_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four owners never ends round 2."""
    monkeypatch.setattr(pooled_cohort, "GRACE_S", 0.5)
    task = partial(Counting, faults={"owner-02": "hang"}, folder=tmp_path)
    federation = open_pools(counting("plain", task=task, rounds=400, deadline_s=2.0), tmp_path / "owners")
    records: list[RoundRecord] = []
    for _, record in federate(federation):
        records.append(record)
        if record.round > 2 and record.n_updates == 8:
            break
    federation.cohort.close()
    lost = {name for name, outcome in outcomes(records[1]).items() if outcome == "absent"}
    assert "owner-02" in lost
    assert len(lost) < len(OWNERS)
    assert records[1].n_updates == 8 - len(lost)
    assert outcomes(records[-1]) == dict.fromkeys(OWNERS, "update"), "the pool did not come back"


# What is refused at the start ----------------------------------------------------------------------------------------


def test_an_owner_that_cannot_be_opened_is_one_error_at_the_caller(tmp_path: Path, ray_dir: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("ann", "bob", "cat"):
        pd.DataFrame({"x": np.arange(10) / 7.0, "target": np.arange(10) % 2}).to_parquet(folder / f"{name}.parquet")
    (folder / "cat.parquet").write_bytes(b"PAR1 this is no Parquet")
    asked = counting(data={"name": "tables", "path": folder, "classes": [0, 1]})
    with pytest.raises(DataError, match="cat"):
        open_pools(asked, tmp_path / "owners")


def test_a_model_whose_owners_cannot_be_trained_together_is_one_error_at_the_caller(
    tmp_path: Path, ray_dir: Path
) -> None:
    model = {"name": "cnn", "channels": [2], "hidden": 4, "norm": "batch"}
    data = {"name": "images", "owners": 8, "shape": [1, 8, 8], "rows": 40, "spread": 0.0}
    asked = Experiment.model_validate({"model": model, "data": data})
    with pytest.raises(ConfigError, match="owners cannot be trained together"):
        open_pools(pooled(asked, 1, at_once=8), tmp_path)


def test_too_many_owners_for_an_actor_each_are_told_of_pools(tmp_path: Path, ray_dir: Path) -> None:
    raw = {"data": {"name": "images", "owners": 100_000}, "cohort": {"name": "fixed", "size": 50}}
    asked = Experiment.model_validate({**raw, "protection": "plain"})
    with pytest.raises(ResourcesError, match="simulation: pooled") as error:
        list(fedray.run(asked, tmp_path / "run"))
    assert "100,000 owners" in error.value.found
    assert not (tmp_path / "run").exists()


def test_pools_on_gpus_that_are_not_there_are_refused(tmp_path: Path, ray_dir: Path) -> None:
    with pytest.raises(ResourcesError, match="1 GPU"):
        list(fedray.run(pooled(SMALL, 2, pool_gpus=0.5), tmp_path / "run"))


def test_more_pools_than_processors_are_refused(tmp_path: Path, ray_dir: Path) -> None:
    with pytest.raises(ResourcesError, match="99 pools on 4 CPUs"):
        list(fedray.run(pooled(SMALL, 99), tmp_path / "run"))


def test_pools_that_do_not_start_in_time_are_refused(tmp_path: Path, ray_dir: Path) -> None:
    """There is no GPU, so that it would be waited for."""
    raw = {**dict(SMALL), "resources": {"start_timeout_s": 0.5}}
    asked = pooled(Experiment.model_validate(raw), 1, pool_gpus=1)
    with pytest.raises(ResourcesError, match=r"1 of 1 pools did not start within 0\.5 s"):
        PooledCohort(openers(torch_task, SHARDS), asked, 4.0, SinglePools())


# Comparisons, and rounds that are begun before they are asked for ----------------------------------------------------


def test_simulations_can_be_compared(tmp_path: Path, ray_dir: Path) -> None:
    asked = pooled(Experiment.model_validate({**dict(SMALL), "name": "cmp", "search": {"max_concurrent": 1}}), 1)
    result = compare(asked, {"seed": [0, 1]}, tmp_path / "out")
    assert result.n_failed == 0
    assert [len(run.rounds) for run in result.runs] == [2, 2]
    for run in result.runs:
        alone = Experiment.model_validate({**dict(SMALL), "seed": run.experiment["seed"]})
        expected = figures_here(alone, tmp_path / f"alone-{alone.seed}")
        assert [one.parameters_sha256 for one in run.rounds] == [one.parameters_sha256 for one in expected]


class Called:
    """A server actor that only counts how often it was asked for a round."""

    def __init__(self) -> None:
        self.n_asked = 0
        self.advance = SimpleNamespace(remote=self._advance)

    def _advance(self) -> ray.ObjectRef[int]:
        self.n_asked += 1
        return ray.put(self.n_asked)


def server_of(experiment: Experiment) -> tuple[RayServer, Called]:
    server, called = object.__new__(RayServer), Called()
    server._experiment, server._begun, server._server = experiment, None, called
    return server, called


@pytest.mark.parametrize("name", VARIANTS)
def test_a_round_is_begun_ahead_once_and_never_under_privacy(name: str, ray_dir: Path) -> None:
    experiment = Experiment.model_validate({**dict(SMALL), **VARIANTS[name]})
    server, called = server_of(experiment)
    assert server.advance() == 1  # type: ignore[comparison-overlap]
    server.begin()
    server.begin()
    is_private = experiment.privacy.name != "none"
    assert called.n_asked == (1 if is_private else 2)
    assert server.advance() == 2  # type: ignore[comparison-overlap]
    assert server.advance() == 3  # type: ignore[comparison-overlap]
    assert called.n_asked == 3
