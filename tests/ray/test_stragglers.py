"""Real actors that are slow, hang or are killed: rounds are closed without them, and buffers fill without them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import toys
from ray import cloudpickle
from toys import PLAIN, is_there, make_fixed_point, make_protection, make_sealer, shard

from fedray.actors import late
from fedray.actors.cohort import RayCohort
from fedray.config import Experiment
from fedray.federation import Federation
from fedray.owners import Owner
from fedray.privacy.plain_mean import PlainMean
from fedray.rounds import federate
from fedray.scheduling import rounds_of
from fedray.strategies import FedAvg
from fedray.values import Assignment, Examples, RoundRecord, Shard, Tally, Update, Vector, Work

cloudpickle.register_pickle_by_value(toys)
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NAMES = [f"owner-{place}" for place in range(5)]
SLOW = NAMES[0]


class Waits:
    """Adds one to the model; waits for a file before, if it is told to.

    Args:
        awaited: what training waits for; None for nothing.
        trains: made when training begins.
    """

    n_parameters = 3

    def __init__(self, awaited: Path | None, trains: Path) -> None:
        self._awaited = awaited
        self._trains = trains

    def initial(self, seed: int) -> Vector:
        return np.zeros(3, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        self._trains.touch()
        if self._awaited:
            is_there(self._awaited, timeout_s=300)
        return Update(np.ones(3, np.float32), 1, 1, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": float(vector[0])}, 1)


def opened(name: str, awaited: Path | None, trains: Path) -> Owner:
    fixed_point = make_fixed_point(PLAIN, 3, len(NAMES))
    return Owner(name, shard(4, 2), Waits(awaited, trains), make_sealer(PLAIN, name, fixed_point), 0)


class Actors:
    """Five owners in actors, of which the first waits for a file whenever it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        openers = {
            name: partial(opened, name, self.gate if name == SLOW else None, folder / f"{name} trains")
            for name in NAMES
        }
        resources = {"owner_cpus": 0.1, "start_timeout_s": 200.0}
        self.cohort = RayCohort(openers, Experiment(resources=resources, protection="plain"), cpus=2.0)

    def federation(self, **settings: Any) -> Federation:
        experiment = Experiment.model_validate({"rounds": 4, "protection": PLAIN, **settings})
        fixed_point = make_fixed_point(PLAIN, 3, len(NAMES))
        return Federation(
            experiment=experiment,
            task=Waits(None, self.folder / "server"),
            strategy=FedAvg(Work(1, "epochs"), weighting="uniform"),
            protection=make_protection(PLAIN, fixed_point, 1),
            mechanism=PlainMean(),
            cohort=self.cohort,
            central_test=None,
            weight_bound=1,
            cohort_seed=0,
        )

    def let_go(self) -> None:
        """Let the slow owner end what it trains, and wait until it has."""
        self.gate.touch()
        wait_until(lambda: not self.cohort._late.is_busy(SLOW))
        self.gate.unlink()


@pytest.fixture(scope="module")
def started(ray_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actors]:
    actors = Actors(tmp_path_factory.mktemp("actors"))
    yield actors
    actors.gate.touch()
    actors.cohort.close()


@pytest.fixture
def actors(started: Actors) -> Iterator[Actors]:
    yield started
    started.let_go()


def line(record: RoundRecord, name: str) -> tuple[str, str]:
    return next((owner.outcome, owner.reason) for owner in record.owners if owner.name == name)


BUSY = ("absent", "it is still busy with an earlier round")


def test_a_round_is_closed_by_the_clock_and_goes_on_when_the_late_owner_is_done(actors: Actors) -> None:
    """The slow owner would take 300 s; it is not evaluated either, and is back once it is done."""
    made = actors.federation(schedule={"name": "synchronous", "close_after_s": 8.0})
    rounds = federate(made)
    began = time.monotonic()
    first, second = (next(rounds)[1] for _ in range(2))
    assert time.monotonic() - began < 60
    assert (first.n_updates, second.n_updates) == (4, 4)
    assert line(first, SLOW) == ("dropped", "the round was closed after 8 s")
    assert line(second, SLOW) == BUSY
    assert [owner.name for owner in second.owners if owner.n_holdout] == NAMES[1:]
    actors.let_go()
    actors.gate.touch()
    third = next(rounds)[1]
    actors.gate.unlink()
    assert third.n_updates == 5
    assert third.metrics == {"loss": 3.0}


def test_over_selection_leaves_the_last_ones_behind(actors: Actors) -> None:
    """Five are asked for four updates, without any clock; the models are those of four updates each."""
    made = actors.federation(cohort={"name": "fixed", "size": 4, "over_select": 0.25}, rounds=2)
    (first, second) = federate(made)
    assert line(first[1], SLOW) == ("dropped", "the round was closed after 4 updates")
    assert line(second[1], SLOW) == BUSY
    assert [(record.n_updates, state.vector.tolist()) for state, record in (first, second)] == [
        (4, [1.0] * 3),
        (4, [2.0] * 3),
    ]


def test_where_all_are_late_the_next_round_waits_for_one_of_them(actors: Actors) -> None:
    """Otherwise all rounds would pass before anyone was done."""
    made = actors.federation(cohort={"name": "fixed", "size": 4, "over_select": 0.25})
    next(federate(made))
    closing = {"name": "synchronous", "close_after_s": 2.0}
    alone = actors.federation(schedule=closing).cohort
    plan = FedAvg(Work(1, "epochs"), weighting="uniform").plan({}, 7)
    asked = [Assignment(SLOW, plan, plan.work, None)]
    began = time.monotonic()
    (answer,) = alone.train(np.zeros(3, np.float32), asked, 2.0)
    assert time.monotonic() - began >= 2.0
    assert answer.reason == BUSY[1]
    actors.gate.touch()
    (answer,) = alone.train(np.zeros(3, np.float32), asked, 60.0)
    assert answer.owner == SLOW
    assert not hasattr(answer, "reason")


def test_an_owner_that_hangs_is_started_anew_and_takes_part_again(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late, "HUNG_S", 1.0)
    monkeypatch.setattr(late, "TIMES", 1)
    over = {"name": "fixed", "size": 4, "over_select": 0.25}
    next(federate(actors.federation(cohort=over)))
    before = pid_of(actors, SLOW)
    assert line(next(federate(actors.federation(cohort=over)))[1], SLOW) == BUSY
    wait_until(lambda: not actors.cohort._late.is_busy(SLOW))
    actors.gate.touch()
    wait_until(lambda: next(federate(actors.federation()))[1].n_updates == 5)
    assert pid_of(actors, SLOW) != before


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def pid_of(actors: Actors, name: str) -> int:
    """Process of an owner's actor, also while it trains."""
    from ray._private.state import actors as found

    return int(found()[actors.cohort._actors[name]._actor_id.hex()]["Pid"])


def test_a_buffer_fills_without_the_slow_and_the_stale_is_thrown_away(actors: Actors) -> None:
    schedule = {"name": "buffered", "size": 3, "max_staleness": 2}
    made = actors.federation(schedule=schedule, rounds=8)
    records = [record for _, record in rounds_of(made.experiment)(made, None)]
    assert [record.n_updates for record in records] == [3] * 8
    dropped = [(record.round, line(record, SLOW)) for record in records if SLOW in record.cohort]
    assert dropped[0] == (4, ("dropped", "its model is more than 2 rounds old"))
    assert {what for _, what in dropped[1:]} == {BUSY}
    assert max(owner.staleness for record in records for owner in record.owners) <= 2


def test_a_buffered_owner_that_is_killed_is_replaced_and_comes_back(actors: Actors) -> None:
    """Killed while it trains: the others fill the buffers, and it is drawn again until it answers."""
    trains = actors.folder / f"{SLOW} trains"
    trains.unlink(missing_ok=True)
    schedule = {"name": "buffered", "size": 2, "max_staleness": 10**6}
    made = actors.federation(schedule=schedule, rounds=10**6, evaluation={"every": 10**6})
    rounds = rounds_of(made.experiment)(made, None)
    next(rounds)
    assert is_there(trains)
    ray.kill(actors.cohort._actors[SLOW], no_restart=False)
    seen: list[tuple[str, str]] = []

    def is_seen() -> bool:
        _, record = next(rounds)
        assert record.n_updates == 2
        seen.extend([line(record, SLOW)] if SLOW in record.cohort else [])
        return bool(seen)

    wait_until(is_seen)
    actors.gate.touch()
    wait_until(lambda: is_seen() and ("update", "") in seen)
    rounds.close()
    assert seen[0] == ("absent", "its actor died; it is restarted where it can be")
    assert seen[-1] == ("update", "")
