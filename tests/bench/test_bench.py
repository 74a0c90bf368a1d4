"""The benchmarks' floors do what fedray does, and their figures are what they say. Nothing is timed."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedray
from fedray.places import InProcessServer
from fedray.rounds import initial_state

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))

import memory
from contest import Measured, Turn, Weight
from crew import BareLoop, Crew, dealt
from floors import Floor, Rows, write_rows
from long_run import compared
from memory import MIB, Memory
from summary import summarised, table

LOGISTIC = {"name": "logistic"}
CNN = {"name": "cnn", "channels": [4, 8], "hidden": 16}


def experiment(model: dict[str, object]) -> fedray.Experiment:
    """Owners of very different sizes, so that steps and last batches differ; some have less than a batch."""
    return fedray.Experiment(
        rounds=3,
        data={"name": "images", "owners": 12, "rows": 25, "spread": 1.0, "shape": [1, 8, 8]},
        model=model,
        train={"batch_size": 10, "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}},
        protection={"name": "plain", "precision": 1e-7},
        cohort={"name": "fixed", "size": 7},
        evaluation={"every": 3},
    )


@pytest.fixture(params=[LOGISTIC, CNN], ids=["logistic", "cnn"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> fedray.Experiment:
    found = experiment(request.param)
    write_rows(found, tmp_path)
    return found


@pytest.mark.parametrize("is_vectorised", [False, True])
def test_a_bare_loop_learns_the_model_that_fedray_learns(
    config: fedray.Experiment, tmp_path: Path, is_vectorised: bool
) -> None:
    server = InProcessServer(config, tmp_path / "owners")
    start = initial_state(server.federation).vector
    after = [server.advance() for _ in range(2)][-1]
    assert after is not None
    with closing(BareLoop(config, tmp_path, 1, "cpu", is_vectorised)) as loop:
        np.testing.assert_array_equal(loop.vector(), start)
        loop.advance(2)
        moved = np.abs(after[0].vector - start).max()
        assert moved > 0.01
        np.testing.assert_allclose(loop.vector(), after[0].vector, atol=1e-3 * moved, rtol=0)


def test_groups_of_any_size_give_the_sum_of_owners_trained_alone(config: fedray.Experiment, tmp_path: Path) -> None:
    floor = Floor(config, Rows.read(tmp_path, "cpu"), "cpu")
    vector = np.random.default_rng(0).normal(0, 0.1, floor.n_values).astype(np.float32)
    alone = sum(floor.train(vector, 4, [owner], 1) for owner in range(12))
    for at_once in (1, 2, 5, 12, 50):
        together = floor.train(vector, 4, range(12), at_once)
        np.testing.assert_allclose(together, alone, atol=1e-4 * float(abs(alone).max()), rtol=0)


def test_two_processes_give_the_mean_that_one_gives(tmp_path: Path) -> None:
    config = experiment(LOGISTIC)
    write_rows(config, tmp_path)
    means = []
    for processes in (1, 2):
        with closing(Crew(config, tmp_path, processes, "cpu")) as crew:
            crew.vector[:] = np.linspace(-1, 1, len(crew.vector))
            means.append([crew.train(1, [0, 3, 4, 9, 11], at_once) for at_once in (1, 4)])
    assert np.abs(means[0]).max() > 1e-3
    np.testing.assert_allclose(means[0], means[1], atol=1e-6)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8))
def test_every_owner_is_dealt_once_and_no_part_is_longer_than_another_by_more_than_one_owner(
    costs: list[int], n_parts: int
) -> None:
    parts = dealt(range(len(costs)), costs.__getitem__, n_parts)
    assert sorted(owner for part in parts for owner in part) == list(range(len(costs)))
    loads = [sum(costs[owner] for owner in part) for part in parts]
    assert len(parts) == n_parts
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_memory_of_a_tree_holds_children_and_what_they_hold() -> None:
    script = "block = bytearray(64 * 2**20)\nprint(flush=True)\ninput()"
    with Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = {one.pid: one for one in memory.of_tree(child.pid)}
        mine = {one.pid for one in memory.of_tree(os.getpid())}
        child.communicate(b"\n")
    assert child.pid in mine
    assert 64 <= found[child.pid].pss / MIB <= found[child.pid].rss / MIB < 120


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (b"ray::PoolActor.train\0", "ray::PoolActor"),
        (b"/x/bin/python3.11\0-u\0/x/dashboard/agent.py\0--a=b", "dashboard/agent.py"),
        (b"/x/gcs_server\0--log_dir=/y/z.py", "gcs_server"),
        (b"/x/python\0-c\0from multiprocessing.spawn import spawn_main", "python"),
        (b"", "?"),
    ],
)
def test_processes_are_named_by_what_they_do(command: bytes, name: str) -> None:
    assert memory._name(command) == name


def measured(seconds: list[float], evaluated: tuple[int, ...] = (), apart: float = 0.0) -> Measured:
    turns = [
        Turn(value, 4, {"loss": float(place)} if place in evaluated else {}, {"train": value / 2}, {"train": value})
        for place, value in enumerate(seconds)
    ]
    return Measured(2.0, Turn(9.0, 4), turns, Weight({"PSS": 10.0, "RSS": 20.0}, {}, None), apart, None)


def test_evaluated_rounds_and_those_that_train_meanwhile_are_left_out_of_medians() -> None:
    found = summarised(
        [
            {
                "bare, 1 process": measured([2.0, 2.0, 70.0, 70.0, 4.0]),
                "vectorised, 1 process": measured([1.0, 1.0, 70.0, 70.0, 1.0]),
                "fedray, pooled": measured([3.0, 3.0, 8.0, 0.5, 3.0], evaluated=(2,), apart=0.01),
            }
        ]
    )
    pooled, against = found["loops"]["fedray, pooled"], found["fedray"]["fedray, pooled"]
    assert pooled["seconds a round, median"] == 3.0
    assert pooled["rounds"] == 3
    assert found["loops"]["bare, 1 process"]["least and most"] == [2.0, 4.0]
    assert pooled["an evaluation adds, mean s"] == pytest.approx(8.0 + 0.5 - 2 * 3.0)
    assert found["loops"]["bare, 1 process"]["an evaluation adds, mean s"] is None
    assert against["over the best of bare loops"] == 1.5
    assert against["over the best of all floors"] == 3.0
    assert against["last metrics"] == {"loss": 2.0}
    assert "1.50 over the best of bare loops" in table("case", {"what": "x", **found})


def test_the_process_that_grows_is_named_and_the_passing_one_is_left_out() -> None:
    def sample(round: int) -> list[Memory]:
        steady, growing = Memory(1, "steady", 100 * MIB, 150 * MIB), 50 * MIB + round * MIB // 10
        late = [Memory(3, "late", MIB, MIB)] if round > 150 else []
        return [steady, Memory(2, "leaks", growing, 2 * growing), *late]

    leaks, steady = compared([sample(round) for round in range(1, 301)])
    assert (leaks["name"], leaks["grows"]) == ("leaks", True)
    assert (steady["name"], steady["grows"], steady["ratio"]["PSS"]) == ("steady", False, 1.0)
    assert leaks["early"]["PSS"] == pytest.approx(50 + 6.05, abs=0.01)  # rounds 21 to 100
    assert leaks["late"]["PSS"] == pytest.approx(50 + 25.05, abs=0.01)  # rounds 201 to 300
