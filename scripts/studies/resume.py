"""Drivers, servers and owners killed at random points of runs on Ray, and what the runs come to.

A run whose driver or server is killed must end with the SHA-256 of a run that nobody touched. Where owners are killed
the sums are other sums, so each is done again in this process over the owners that are on record as being in it. Under
differential privacy nothing is repeated: every update on record must stand in its owner's ledger.

Half of the kills come within two seconds of a round that ended, half within eight of the start, wherever that is.

    .venv/bin/python scripts/studies/resume.py                  # 50 kills, about ten minutes
    .venv/bin/python scripts/studies/resume.py --kills 6 --only server
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from breaking import Driver, Machines, kill, machines, processes, rounds_done, until
from replaying import charges, wrong_rounds

import fedray
from fedray.records import read_run

SETTINGS: dict[str, Any] = {
    "name": "resume",
    "rounds": 150,
    "data": {"name": "digits", "owners": 4, "split": "iid"},
    "model": "logistic",
    "train": {"epochs": 2, "batch_size": 16},
    "strategy": {"name": "fedavg", "server_momentum": 0.9},
    "evaluation": {"every": 1000},
    "resources": {"owner_cpus": 0.25},
    "faults": {"server_restarts": 10, "wait_s": 30},
}
PRIVATE = {**SETTINGS, "rounds": 60, "privacy": {"name": "example", "noise_multiplier": 2.0}}
KINDS = ("driver", "server", "owner")
AT_MOST = 7
"""Kills in one run."""


@dataclass
class Found:
    """What became of runs.

    Attributes:
        kills: processes that were killed.
        runs: runs.
        finished: runs that ended with all rounds.
        same: runs with the final SHA-256 of a run that nobody touched.
        wrong: rounds with another model than the owners on record give.
        lost: rounds without a sum.
        updates: updates on record.
        uncharged: of these, those that are in no ledger.
        again: charges of rounds that were charged before.
    """

    kills: int = 0
    runs: int = 0
    finished: int = 0
    same: int = 0
    wrong: int = 0
    lost: int = 0
    updates: int = 0
    uncharged: int = 0
    again: int = 0


def broken_run(
    kinds: tuple[str, ...],
    n_kills: int,
    settings: Mapping[str, Any],
    directory: Path,
    address: str,
    draw: random.Random,
) -> tuple[int, bool]:
    """Run to the end, and kill on the way; how often, and whether it finished."""
    driver = Driver(settings, directory, address)
    done = 0
    while done < n_kills and _next_moment(driver, draw):
        done += _killed(draw.choice(kinds), driver, draw)
    driver.wait()
    return done, driver.is_finished


def _next_moment(driver: Driver, draw: random.Random) -> bool:
    """Wait for a random moment; whether the driver still runs then."""
    if draw.random() < 0.5:
        before = rounds_done(driver.directory)
        until(lambda: rounds_done(driver.directory) > before or not driver.is_running, 60)
        time.sleep(draw.uniform(0, 2))
    else:
        time.sleep(draw.uniform(0, 8))
    return driver.is_running


def _killed(kind: str, driver: Driver, draw: random.Random) -> bool:
    """Kill a process of a kind; False where there is none at the moment."""
    if kind == "driver":
        driver.kill()
        driver.resume()
        return True
    found = processes(kind)
    return bool(found) and kill(draw.choice(sorted(found.values())))


def studied(
    kinds: tuple[str, ...],
    n_kills: int,
    settings: Mapping[str, Any],
    folder: Path,
    nodes: Machines,
    draw: random.Random,
) -> Found:
    """As many runs as it takes."""
    found = Found()
    experiment = fedray.Experiment(**settings)
    *_, whole = fedray.run(experiment, folder / "whole", in_process=True)
    while found.kills < n_kills:
        directory = folder / f"run-{found.runs}"
        kills, is_finished = broken_run(
            kinds, min(AT_MOST, n_kills - found.kills), settings, directory, nodes.address, draw
        )
        records = read_run(directory).rounds
        found.kills += kills
        found.runs += 1
        found.finished += is_finished and len(records) == experiment.rounds
        found.same += records[-1].parameters_sha256 == whole.parameters_sha256
        found.lost += sum(record.sum.outcome != "opened" for record in records)
        if experiment.privacy.name == "none":
            found.wrong += len(wrong_rounds(experiment, records))
        else:
            _hold_against_ledgers(found, records, directory / "owners")
    return found


def _hold_against_ledgers(found: Found, records: tuple[fedray.RoundRecord, ...], owners: Path) -> None:
    for name in records[-1].cohort:
        charged = charges(owners / name / "ledger.jsonl")
        mine = [one for record in records for one in record.owners if one.name == name]
        in_a_sum = {record.round for record, one in zip(records, mine, strict=True) if one.outcome == "update"}
        found.updates += len(in_a_sum)
        found.uncharged += len(in_a_sum - charged.keys())
        found.again += charged.total() - len(charged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", choices=[*KINDS, "private"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    share = options.kills if options.only else -(-options.kills // 4)
    rows: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {kind: ((kind,), SETTINGS) for kind in KINDS}
    rows["private"] = (KINDS, PRIVATE)
    print(
        f"{'killed':<9}{'kills':>6}{'runs':>6}{'finished':>10}{'same SHA-256':>14}{'wrong sums':>12}{'no sum':>8}",
        end="",
    )
    print(f"{'updates':>9}{'uncharged':>11}{'charged again':>15}{'minutes':>9}", flush=True)
    with machines() as nodes, tempfile.TemporaryDirectory() as folder:
        for name, (kinds, settings) in rows.items():
            if options.only in (None, name):
                started = time.monotonic()
                target = Path(folder) / name
                target.mkdir()
                found = studied(kinds, share, settings, target, nodes, random.Random(f"{options.seed} {name}"))
                _print(name, found, (time.monotonic() - started) / 60)


def _print(name: str, found: Found, minutes: float) -> None:
    is_private = name == "private"
    same = "-" if is_private or name == "owner" else f"{found.same} of {found.runs}"
    cells = [
        f"{name:<9}{found.kills:>6}{found.runs:>6}{found.finished:>10}{same:>14}",
        f"{'-' if is_private else found.wrong:>12}{found.lost:>8}",
        f"{found.updates if is_private else '-':>9}{found.uncharged if is_private else '-':>11}",
        f"{found.again if is_private else '-':>15}{minutes:>9.1f}",
    ]
    print("".join(cells), flush=True)


if __name__ == "__main__":
    main()
