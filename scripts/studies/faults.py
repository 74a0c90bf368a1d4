"""The table of faults: each injected again and again at random moments into runs on Ray, and what becomes of them.

A fault comes within 1.5 seconds after all owners were in a round, and the next once they are again: once a round that
began after the fault has ended with all of them in it. Sums are under masks. Each round is done again in this process,
unprotected, over the owners that are on record as being in it: a round with another model is a wrong result.

    .venv/bin/python scripts/studies/faults.py                       # 20 times each
    .venv/bin/python scripts/studies/faults.py --times 3 --only crash node

crash    an owner's process gets SIGKILL
hang     an owner's process is stopped for two to six seconds; rounds are closed after two
garbage  an owner's training gives NaN, infinity, another shape, or raises
node     an owner's node is lost with all its processes, and is started again within three seconds
server   the server's process gets SIGKILL
store    the object store is filled twice over, for one to three seconds
driver   the driver gets SIGKILL, and is resumed on the same Ray, which outlives it
head     the driver gets SIGKILL and takes its own Ray with it; the run is resumed on a new one

Ray tells of lost nodes in between; the whole table comes last.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import garbage
import numpy as np
import ray
from breaking import Driver, Machines, kill, machines, processes, until, whole_again
from replaying import wrong_rounds

import fedray
from fedray.records import read_run

OWNERS = [f"owner-{number:02}" for number in range(4)]
PINNED = OWNERS[:2]
STORE_BYTES = 100_000_000
TO_RECOVER_S = 180.0
"""Who takes longer is taken for never being whole again."""
ROUNDS_A_FAULT = 30

SETTINGS: dict[str, Any] = {
    "name": "faults",
    "data": {"name": "digits", "owners": len(OWNERS), "split": "iid"},
    "train": {"epochs": 4, "batch_size": 16},
    "strategy": {"name": "fedavg", "server_momentum": 0.5},
    "evaluation": {"every": 100_000},
    "resources": {"owner_cpus": 0.25},
    "faults": {"server_restarts": 10},
}
LOGISTIC = {"model": "logistic"}
CHANGES: Mapping[str, dict[str, Any]] = {
    "hang": {**LOGISTIC, "schedule": {"name": "synchronous", "close_after_s": 2}},
    "garbage": {"task": "garbage:Softmax", "search": {"metric": "loss"}},
    "node": {
        **LOGISTIC,
        "placement": {name: {"labels": {"fedray.owner": name}} for name in PINNED},
        "resources": {**SETTINGS["resources"], "server": {"labels": {"fedray.role": "head"}}},
    },
}


@dataclass(frozen=True)
class Target:
    """What a fault is injected into.

    Attributes:
        driver: of the run.
        nodes: the Ray under it; None where the driver has its own.
        draw: chance.
    """

    driver: Driver
    nodes: Machines | None
    draw: random.Random

    def owner(self) -> int:
        """Process of some owner that is there."""
        return self.draw.choice([pid for _, pid in sorted(processes("owner").items())])


def crash(target: Target) -> None:
    kill(target.owner())


def hang(target: Target) -> None:
    pid = target.owner()
    kill(pid, signal.SIGSTOP)
    time.sleep(target.draw.uniform(2, 6))
    kill(pid, signal.SIGCONT)


def give_garbage(target: Target) -> None:
    garbage.tell(target.draw.choice(OWNERS), target.draw.choice(garbage.KINDS))


def lose_node(target: Target) -> None:
    assert target.nodes is not None
    owner = target.draw.choice(PINNED)
    target.nodes.lose(owner)
    time.sleep(target.draw.uniform(0, 3))
    target.nodes.join(owner)


def lose_server(_: Target) -> None:
    until(lambda: bool(processes("server")), TO_RECOVER_S)
    kill(processes("server")["server"])


def fill_store(target: Target) -> None:
    """Objects that are read are pinned: they cannot be spilled to disk."""
    held = [ray.put(np.ones(STORE_BYTES // 10, np.uint8)) for _ in range(20)]
    pinned = [ray.get(one) for one in held[-5:]]
    time.sleep(target.draw.uniform(1, 3))
    del held, pinned


def lose_driver(target: Target) -> None:
    target.driver.kill()
    target.driver.resume()


FAULTS: Mapping[str, Callable[[Target], None]] = {
    "crash": crash,
    "hang": hang,
    "garbage": give_garbage,
    "node": lose_node,
    "server": lose_server,
    "store": fill_store,
    "driver": lose_driver,
    "head": lose_driver,
}


@dataclass(frozen=True)
class Found:
    """What became of the runs into which one fault was injected.

    Attributes:
        recoveries_s: seconds of each fault until the run was whole again.
        stuck: faults after which it never was.
        runs: runs.
        finished: runs that ended with all rounds.
        rounds: rounds on record.
        lost: rounds without a sum.
        updates_lost: updates that were asked for and are in no sum.
        wrong: rounds with another model than the owners on record give.
    """

    recoveries_s: tuple[float, ...] = ()
    stuck: int = 0
    runs: int = 0
    finished: int = 0
    rounds: int = 0
    lost: int = 0
    updates_lost: int = 0
    wrong: int = 0

    @property
    def times(self) -> int:
        return len(self.recoveries_s) + self.stuck


def study(name: str, times: int, folder: Path, draw: random.Random) -> Found:
    """Inject one fault so often, into as many runs as that takes."""
    if name == "head":
        with tempfile.TemporaryDirectory(prefix="fs", dir="/tmp", ignore_cleanup_errors=True) as temp_dir:
            return _runs(name, times, folder, None, Path(temp_dir), draw)
    with machines(PINNED if name == "node" else (), STORE_BYTES) as nodes:
        return _runs(name, times, folder, nodes, None, draw)


def _runs(
    name: str, times: int, folder: Path, nodes: Machines | None, temp_dir: Path | None, draw: random.Random
) -> Found:
    found = Found()
    settings = {**SETTINGS, **CHANGES.get(name, LOGISTIC), "rounds": ROUNDS_A_FAULT * times + 20}
    while found.times < times:
        driver = Driver(settings, folder / f"{name}-{found.runs}", nodes.address if nodes else None, temp_dir)
        found = _injected(FAULTS[name], times, found, Target(driver, nodes, draw))
        driver.wait()
        found = _counted(found, driver, fedray.Experiment(**settings))
    return found


def _injected(fault: Callable[[Target], None], times: int, found: Found, target: Target) -> Found:
    """Inject until it was often enough, or the run has ended."""
    driver, since = target.driver, time.time()
    until(lambda: _is_whole(driver, since) or not driver.is_running, TO_RECOVER_S)
    while found.times < times and driver.is_running:
        time.sleep(target.draw.uniform(0, 1.5))
        since = time.time()
        fault(target)
        until(lambda since=since: _is_whole(driver, since) or not driver.is_running, TO_RECOVER_S)
        whole = whole_again(driver.directory, since)
        if whole is not None:
            found = replace(found, recoveries_s=(*found.recoveries_s, whole - since))
        elif driver.is_running or not driver.is_finished:
            return replace(found, stuck=found.stuck + 1)
    return found


def _is_whole(driver: Driver, since: float) -> bool:
    return whole_again(driver.directory, since) is not None


def _counted(found: Found, driver: Driver, experiment: fedray.Experiment) -> Found:
    records = read_run(driver.directory).rounds
    is_finished = driver.is_finished and len(records) == experiment.rounds
    return replace(
        found,
        runs=found.runs + 1,
        finished=found.finished + is_finished,
        rounds=found.rounds + len(records),
        lost=found.lost + sum(record.sum.outcome != "opened" for record in records),
        updates_lost=found.updates_lost + sum(len(record.cohort) - record.n_updates for record in records),
        wrong=found.wrong + len(wrong_rounds(experiment, records)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = [
        f"{'fault':<9}{'times':>6}{'runs finished':>15}{'rounds':>8}{'no sum':>8}{'updates lost':>14}"
        f"{'wrong':>7}{'median s':>10}{'worst s':>9}{'minutes':>9}"
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ[garbage.FOLDER] = folder
        for name in options.only:
            started = time.monotonic()
            found = study(name, options.times, Path(folder), random.Random(f"{options.seed} {name}"))
            table.append(_row(name, found, (time.monotonic() - started) / 60))
            print(table[-1], flush=True)
    print("\n".join(table))


def _row(name: str, found: Found, minutes: float) -> str:
    ended = f"{found.finished} of {found.runs}"
    seconds = found.recoveries_s or (float("nan"),)
    worst = "never" if found.stuck else f"{max(seconds):.1f}"
    return (
        f"{name:<9}{found.times:>6}{ended:>15}{found.rounds:>8}{found.lost:>8}{found.updates_lost:>14}"
        f"{found.wrong:>7}{statistics.median(seconds):>10.1f}{worst:>9}{minutes:>9.1f}"
    )


if __name__ == "__main__":
    main()
