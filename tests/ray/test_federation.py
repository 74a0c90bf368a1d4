"""Federations of real Ray actors: the same bits as in process, faults survived, rows that stay where they are."""

from __future__ import annotations

import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from conftest_ray import own_ray
from ray import cloudpickle
from safetensors.numpy import load_file

import fedray
from fedray import build, data
from fedray.actors import calls as calls_module
from fedray.actors.cohort import RayCohort
from fedray.actors.session import RayServer
from fedray.config import Experiment, replaced
from fedray.errors import DataError, ResourcesError, RunError
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.plain import PlainSealer
from fedray.rounds import federate
from fedray.selection import assignments
from fedray.values import Absent, Assignment, Examples, RoundPlan, Schema, Sealed, Shard, Tally, Update, Vector

cloudpickle.register_pickle_by_value(sys.modules[__name__])

DIGITS = Experiment(
    name="digits",
    seed=3,
    rounds=3,
    data={"name": "digits", "owners": 3},
    strategy={"name": "fedprox", "mu": 0.1},
    train={"batch_size": 32, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.5}},
    stragglers={"fraction": 0.5},
)


def final_digest(experiment: Experiment, directory: Path, **where: object) -> str:
    records = list(fedray.run(experiment, directory, **where))
    assert {record.sum.outcome for record in records} == {"opened"}, "bits that never moved would be alike too"
    return records[-1].parameters_sha256


VARIANTS = {
    "mlp": {},
    "private": {"privacy": {"name": "example", "epsilon": 4, "unsafe_replay_seed": 1}},
    "batchnorm": {
        "model": {"name": "cnn", "channels": [4], "norm": "batch"},
        "strategy": "fedavg",
        "data.owners": 5,
        "cohort": {"name": "fixed", "size": 4},
        "stragglers.fraction": 0.25,
    },
}


@pytest.mark.timeout(600)
def test_one_two_and_four_workers_and_no_ray_give_the_same_bits(tmp_path: Path) -> None:
    """Under masks, whose keys differ from run to run; the bits are those of plain protection too."""
    experiments = {name: replaced(DIGITS, changes) for name, changes in VARIANTS.items()}
    assert {experiment.protection.name for experiment in experiments.values()} == {"masked"}
    expected = {
        name: final_digest(experiment, tmp_path / name, in_process=True) for name, experiment in experiments.items()
    }
    assert len(set(expected.values())) == len(VARIANTS)
    for name, experiment in experiments.items():
        plain = replaced(experiment, {"protection": "plain"})
        assert final_digest(plain, tmp_path / f"{name}-plain", in_process=True) == expected[name]
    for cpus in (1, 2, 4):
        with own_ray(cpus):
            found = {
                name: final_digest(experiment, tmp_path / f"{name}-{cpus}") for name, experiment in experiments.items()
            }
        assert found == expected, f"{cpus} workers"


class Counting:
    """A task of one number that counts: every update is the owner's number of rows; can be told to misbehave."""

    def __init__(self, schema: Schema, fault: str = "", owner_rows: int = 0, after: int = 1) -> None:
        self._fault, self._owner_rows, self._after = fault, owner_rows, after

    @property
    def n_parameters(self) -> int:
        return 1

    def initial(self, seed: int) -> Vector:
        return np.zeros(1, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        if len(shard.train) == self._owner_rows and assignment.plan.round > self._after:
            if self._fault == "raise":
                raise ValueError(f"a secret row: {shard.train.features[0]}")
            if self._fault == "nan":
                return Update(np.full(1, np.nan, np.float32), 1, 1, is_complete=True)
            if self._fault == "misshapen":
                return Update(np.zeros(7, np.float32), 1, 1, is_complete=True)
            if self._fault == "die" and assignment.plan.round == self._after + 1:
                import os

                os._exit(1)
            if self._fault == "hang":
                time.sleep(3600)
        return Update(np.full(1, len(shard.train), np.float32), 1, 1, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": 0.0}, len(examples))


ROWS = {"ann": 10, "bob": 20, "cat": 30, "dan": 40}


def table_experiment(folder: Path, **changes: object) -> Experiment:
    """Four owners with 10 to 40 rows, so that three are left where one is lost."""
    if not folder.exists():
        folder.mkdir()
        for name, rows in ROWS.items():
            frame = pd.DataFrame({"x": np.arange(rows) / 7.0, "target": np.arange(rows) % 2})
            frame.to_parquet(folder / f"{name}.parquet")
    settings = {
        "rounds": 4,
        "data": {"name": "tables", "path": folder, "classes": [0, 1], "holdout": 0.0},
        "task": Counting,
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "protection": {"name": "masked", "clip": 64.0},
        **changes,
    }
    return Experiment(**settings)


@pytest.mark.parametrize(
    ("fault", "outcome"), [("raise", "failed"), ("nan", "rejected"), ("misshapen", "rejected"), ("die", "absent")]
)
def test_a_round_goes_on_without_an_owner_that_fails(fault: str, outcome: str, tmp_path: Path, ray_dir: Path) -> None:
    task = partial(Counting, fault=fault, owner_rows=20)
    experiment = table_experiment(tmp_path / "data", task=task)
    records = list(fedray.run(experiment, tmp_path / "run"))
    assert [record.n_updates for record in records][:2] == [4, 3]
    assert {(record.sum.protection, record.sum.outcome) for record in records} == {("masked", "opened")}
    bob = {record.round: record.owners[1] for record in records}
    assert bob[2].outcome == outcome
    assert records[1].n_rejected == (outcome == "rejected")
    assert "secret" not in "".join(owner.reason for record in records for owner in record.owners)
    if fault == "die":
        assert bob[4].outcome == "update"
    else:
        assert [record.n_updates for record in records] == [4, 3, 3, 3]


@pytest.mark.parametrize("protection", ["masked", "plain"])
def test_an_owner_that_is_killed_after_keys_were_shared_is_left_out_of_one_sum_and_comes_back(
    protection: str, tmp_path: Path, ray_dir: Path
) -> None:
    """The model is the sum of means: 25 of all four, 80 / 3 without bob, who has 20 rows."""
    n_rounds = 6
    task = partial(Slow, fault="die", owner_rows=20)
    settings = {"protection": {"name": protection, "clip": 64.0}, "rounds": n_rounds}
    records = list(fedray.run(table_experiment(tmp_path / "data", task=task, **settings), tmp_path / "run"))
    assert [record.round for record in records] == list(range(1, n_rounds + 1))
    assert {record.sum.outcome for record in records} == {"opened"}
    bob = [record.owners[1] for record in records]
    assert bob[0].outcome == "update"
    assert bob[1].outcome == "absent"
    assert "its actor died" in bob[1].reason
    assert records[1].sum.stages["updates"] == 3
    assert records[1].n_updates == 3
    if protection == "masked":
        assert records[1].sum.stages["receipts"] == 4, "bob was killed before it had shared its keys"
        assert records[1].sum.stages["revealed"] == 3
    back = next(number for number, owner in enumerate(bob) if number > 1 and owner.outcome == "update")
    assert {owner.outcome for owner in bob[back:]} == {"update"}
    assert {owner.outcome for owner in bob[1:back]} <= {"absent", "refused"}
    model = 0.0
    for record, owner in zip(records, bob, strict=True):
        model += 25 if owner.outcome == "update" else 80 / 3
        assert record.n_updates == (4 if owner.outcome == "update" else 3)
    assert load_file(tmp_path / "run" / "model.safetensors")["vector"].tolist() == pytest.approx([model], rel=1e-6)


class Slow(Counting):
    """Rounds of half a second, so that an actor is restarted within a few of them."""

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        time.sleep(0.5)
        return super().train(vector, assignment, shard, seed)


def test_an_owner_that_hangs_past_its_deadline_is_left_behind(
    tmp_path: Path, ray_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "GRACE_S", 0.5)
    task = partial(Counting, fault="hang", owner_rows=20)
    settings = {
        "deadline_s": 0.5,
        "evaluation": {"every": 4},
        "rounds": 2,
        "protection": {"name": "plain", "clip": 64.0},
    }
    experiment = table_experiment(tmp_path / "data", task=task, **settings)
    names = data.owner_names(experiment.data)
    openers = {name: partial(build.open_owner, experiment, name, 2, tmp_path / name, "run") for name in names}
    cohort = RayCohort(openers, experiment, cpus=1.0)
    plan = build.make_strategy(experiment).plan({}, 2)
    started = time.monotonic()
    answers = list(cohort.train(np.zeros(1, np.float32), assignments(plan, names, experiment.stragglers, 0.5, 0)))
    cohort.close()
    assert time.monotonic() - started < 15
    assert sorted(answer.owner for answer in answers if isinstance(answer, Sealed)) == ["ann", "cat", "dan"]
    assert [(answer.owner, answer.outcome) for answer in answers if isinstance(answer, Absent)] == [("bob", "absent")]


def test_a_killed_owner_keeps_its_privacy_account(tmp_path: Path, ray_dir: Path) -> None:
    privacy = {"name": "example", "noise_multiplier": 1.0}
    experiment = replaced(DIGITS, {"privacy": privacy, "stragglers.fraction": 0.0, "protection": "plain"})
    openers = {
        name: partial(build.open_owner, experiment, name, 3, tmp_path / name, "run")
        for name in ("owner-00", "owner-01")
    }
    cohort = RayCohort(openers, experiment, cpus=1.0)
    task = build.make_task(experiment, data.schema_of(experiment.data), build.ShuffledDescent(32))
    strategy = build.make_strategy(experiment)
    vector = task.initial(0)

    def train(round: int) -> dict[str, Sealed]:
        asked = assigned(strategy.plan({}, round), ["owner-00", "owner-01"])
        return {answer.owner: answer for answer in cohort.train(vector, asked) if isinstance(answer, Sealed)}

    first = train(1)
    ray.kill(cohort._actors["owner-00"], no_restart=False)
    deadline = time.monotonic() + 60
    while "owner-00" not in (second := train(2)):
        assert time.monotonic() < deadline, "the actor did not come back"
        time.sleep(0.5)
    cohort.close()
    assert second["owner-00"].spent.epsilon > first["owner-00"].spent.epsilon
    assert second["owner-00"].spent.epsilon >= _fresh(experiment, tmp_path / "fresh", rounds=2) * 0.999


def assigned(plan: RoundPlan, names: list[str]) -> list[Assignment]:
    """Full work for everyone, with weights as of up to 1024 rows."""
    return [Assignment(name, plan, plan.work, None, weight_bound=1024) for name in names]


def _fresh(experiment: Experiment, folder: Path, rounds: int) -> float:
    """Epsilon of an owner that was never interrupted."""
    openers = {"owner-00": partial(build.open_owner, experiment, "owner-00", rounds, folder, "run")}
    cohort = InProcessCohort(openers)
    strategy = build.make_strategy(experiment)
    vector = build.make_task(experiment, data.schema_of(experiment.data), build.ShuffledDescent(32)).initial(0)
    for round in range(1, rounds + 1):
        (answer,) = cohort.train(vector, assigned(strategy.plan({}, round), ["owner-00"]))
    assert answer.spent is not None
    return answer.spent.epsilon


MAGIC = 31415.9265358979


def needles(rows: int) -> list[bytes]:
    """How the first feature of each row would look in a message: float32, float64, and text."""
    values = [MAGIC + 17.25 * row for row in range(rows)]
    return [
        *(np.float32(value).tobytes() for value in values),
        *(np.float64(value).tobytes() for value in values),
        *(f"{value:.4f}"[:8].encode() for value in values),
    ]


def leaked(haystack: bytes, rows: int = 10) -> bool:
    return any(needle in haystack for needle in needles(rows))


def magic_experiment(folder: Path) -> Experiment:
    folder.mkdir()
    for name in ("ann", "bob", "cat"):
        frame = pd.DataFrame(
            {"x": [MAGIC + 17.25 * row for row in range(10)], "y": np.linspace(0, 1, 10), "target": [0, 1] * 5}
        )
        frame.to_parquet(folder / f"{name}.parquet")
    return Experiment(
        rounds=2,
        data={
            "name": "tables",
            "path": folder,
            "classes": [0, 1],
            "scaling": {"name": "fixed", "center": [0], "scale": [1]},
        },
        model="logistic",
        train={"batch_size": 4, "optimizer": {"name": "sgd", "lr": 1e-6}},
        evaluation={"train": True},
    )


def test_no_answer_of_an_actor_holds_a_row(tmp_path: Path, ray_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = magic_experiment(tmp_path / "data")
    shard = data.open_shard(experiment.data, "ann")
    assert leaked(cloudpickle.dumps(shard)), "the search itself must find rows"
    seen: list[bytes] = []
    get, put = ray.get, ray.put

    def watching_get(refs: object, **options: object) -> object:
        value = get(refs, **options)
        seen.append(cloudpickle.dumps(value))
        return value

    def watching_put(value: object) -> object:
        seen.append(cloudpickle.dumps(value))
        return put(value)

    monkeypatch.setattr(ray, "get", watching_get)
    monkeypatch.setattr(ray, "put", watching_put)
    federation = build.open_federation(
        experiment, lambda openers: RayCohort(openers, experiment, cpus=1.0), tmp_path / "owners"
    )
    assert all(record.n_updates == 3 for _, record in federate(federation))
    federation.cohort.close()
    kinds = {type(cloudpickle.loads(message)).__name__ for message in seen}
    assert {"Sealed", "Tally", "OwnerInfo", "ndarray", "bytes"} <= kinds
    assert not any(leaked(message) for message in seen)


def test_neither_server_nor_records_nor_logs_hold_a_row(tmp_path: Path, ray_dir: Path) -> None:
    experiment = magic_experiment(tmp_path / "data")
    server = RayServer(experiment, tmp_path / "owners")
    assert server.advance() is not None
    inside = ray.get(server._server.__ray_call__.remote(_reachable))
    server.close()
    assert len(inside) > 1000
    assert not leaked(inside)
    list(fedray.run(experiment, tmp_path / "run"))
    written = [path for folder in (tmp_path / "run", ray_dir) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "rounds.parquet" for path in written)
    assert not [path for path in written if leaked(path.read_bytes())]


def _reachable(server: object) -> bytes:
    """Everything that the server actor's objects hold, as bytes."""
    import gc

    found: list[bytes] = []
    stack, seen = [server, server._rounds.gi_frame.f_locals], set()
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, type) or len(seen) > 200_000:
            continue
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            found.append(thing.tobytes())
        elif isinstance(thing, torch.Tensor):
            found.append(thing.detach().numpy().tobytes())
        elif isinstance(thing, bytes | str | float | int):
            found.append(repr(thing).encode())
        elif type(thing).__name__ not in ("module", "function", "builtin_function_or_method"):
            stack.extend(gc.get_referents(thing))
    return b"|".join(found)


def test_what_the_cluster_lacks_is_said_at_once(tmp_path: Path, ray_dir: Path) -> None:
    started = time.monotonic()
    for changes, missing in [
        ({"resources": {"owner_cpus": 3}}, "9 CPU"),
        ({"resources": {"owner_gpus": 0.5}}, "GPU"),
        ({"placement": {"owner-01": {"resources": {"owner:owner-01": 1}}}}, "owner:owner-01"),
        ({"placement": {"owner-01": {"labels": {"fedray.owner": "owner-01"}}}}, "fedray.owner=owner-01"),
    ]:
        with pytest.raises(ResourcesError) as caught:
            list(fedray.run(replaced(DIGITS, changes), tmp_path / "run"))
        assert missing in str(caught.value)
    assert time.monotonic() - started < 20
    assert not (tmp_path / "run").exists()


def test_an_owner_that_cannot_be_opened_stops_the_run_before_it_starts(tmp_path: Path, ray_dir: Path) -> None:
    experiment = table_experiment(tmp_path / "data")
    (tmp_path / "data" / "bob.parquet").write_bytes(b"PAR1 this is no Parquet")
    with pytest.raises(DataError):
        list(fedray.run(experiment, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_lost_server_ends_the_run_and_keeps_its_records(tmp_path: Path, ray_dir: Path) -> None:
    federation = fedray.run(replaced(DIGITS, {"rounds": 50, "faults.server_restarts": 0}), tmp_path / "run")
    rounds = iter(federation)
    next(rounds)
    _kill_process("ServerActor")
    with pytest.raises(RunError):
        list(rounds)
    from fedray.records import read_run

    kept = read_run(tmp_path / "run")
    assert kept.status == "failed"
    assert len(kept.rounds) >= 1


def _actors() -> list[dict[str, str]]:
    from ray._private.state import actors

    return [
        {"class_name": str(actor["ActorClassName"]), "name": str(actor["Name"]), "pid": str(actor["Pid"])}
        for actor in actors().values()
        if actor["State"] == "ALIVE"
    ]


def _kill_process(class_name: str) -> None:
    import os
    import signal

    (pid,) = [int(actor["pid"]) for actor in _actors() if actor["class_name"] == class_name]
    os.kill(pid, signal.SIGKILL)


def test_leaving_the_loop_lets_all_actors_go(tmp_path: Path, ray_dir: Path) -> None:
    for record in fedray.run(replaced(DIGITS, {"rounds": 50}), tmp_path / "run"):
        assert record.round == 1
        break
    deadline = time.monotonic() + 20
    while _actors():
        assert time.monotonic() < deadline, _actors()
        time.sleep(0.2)


def test_owners_compute_on_one_thread(tmp_path: Path, ray_dir: Path) -> None:
    class Threads(Counting):
        def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
            assert math.isclose(torch.get_num_threads(), 1)
            return super().train(vector, assignment, shard, seed)

    records = list(fedray.run(table_experiment(tmp_path / "data", task=Threads, rounds=1), tmp_path / "run"))
    assert records[0].n_updates == 4


def test_an_owner_answers_only_what_it_was_asked(tmp_path: Path, ray_dir: Path) -> None:
    class Impostor(Owner):
        def train(self, vector: Vector, assignment: Assignment) -> Sealed | Absent:
            answer = super().train(vector, assignment)
            assert isinstance(answer, Sealed)
            return Sealed("bob", 99, 1, True, 0.0, None, payload=answer.payload)

    experiment = table_experiment(tmp_path / "data")
    shard = data.open_shard(experiment.data, "ann")
    sealer = PlainSealer(FixedPoint(1, 4, 64.0, 1e-5), 0)
    opener = partial(Impostor, "ann", shard, Counting(data.schema_of(experiment.data)), sealer, 0)
    cohort = RayCohort({"ann": opener}, experiment, cpus=1.0)
    plan = build.make_strategy(experiment).plan({}, 1)
    (answer,) = cohort.train(np.zeros(1, np.float32), assigned(plan, ["ann"]))
    cohort.close()
    assert isinstance(answer, Absent)
    assert answer.outcome == "rejected"
