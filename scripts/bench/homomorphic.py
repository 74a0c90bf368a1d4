"""What homomorphic sums cost in CPU time and bytes, a million parameters, beside plain protection in the same run.

CPU time of the process (one thread), medians over rounds; bytes are payloads over the update in float32. ``ahead`` is
what an owner does while it trains, ``online`` what it does after: encode, add to the encryptions of zero, sign, and
later answer the probe.

    .venv/bin/python scripts/bench/homomorphic.py                  # a minute; prints, and writes runs/bench
    .venv/bin/python scripts/bench/homomorphic.py --values 10000000 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedray.config.learning import KEY_HOLDER
from fedray.environment import environment
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic.key_holder import KeyHolderRole
from fedray.protection.homomorphic.owner import HomomorphicSealer
from fedray.protection.homomorphic.parameters import choose
from fedray.protection.homomorphic.server import HomomorphicProtection
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.protocols import Protection, Sealer
from fedray.values import Assignment, RoundPlan, Sealed, Total, Update, Work

CLIP, PRECISION, SEED, WEIGHT = 8.0, 1e-5, 7, 100
AIMS = {"bfv": {"bytes": 3.1, "owner": 0.55, "online": 0.12}, "ckks": {"bytes": 6.2, "owner": 1.1, "online": 0.25}}


class Clock:
    """CPU seconds by name, a list a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._round: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        start, before = time.process_time(), sum(self._round.values())
        yield
        inner = sum(self._round.values()) - before
        self._round[name] += time.process_time() - start - inner

    def lap(self) -> None:
        for name, seconds in self._round.items():
            self.seconds[name].append(seconds)
        self._round.clear()


class Timed:
    """A key holder whose work is on its own account."""

    def __init__(self, role: KeyHolderRole, clock: Clock) -> None:
        self._role, self._clock = role, clock
        self.identity = role.identity

    def answer(self, message: bytes) -> bytes:
        with self._clock.on("key holder"):
            return self._role.answer(message)


def parties(
    scheme: str, point: FixedPoint, names: list[str], clock: Clock, folder: Path
) -> tuple[Protection, dict[str, Sealer]]:
    """Both halves of a protection."""
    if scheme == "plain":
        return PlainProtection(point, WEIGHT), {name: PlainSealer(point, SEED) for name in names}
    identities = {name: Identity() for name in [*names, KEY_HOLDER]}
    trust = Trust({name: identity.public for name, identity in identities.items()})
    parameters = choose("bfv" if scheme == "bfv" else "ckks", point)
    role = KeyHolderRole(identities[KEY_HOLDER], trust, parameters, point, 3, 100)
    sealers: dict[str, Sealer] = {
        name: HomomorphicSealer(
            name,
            identities[name],
            trust,
            parameters,
            point,
            SEED,
            3,
            Journal(folder / scheme / name),
        )
        for name in names
    }
    return HomomorphicProtection(parameters, point, WEIGHT, bytes(16), 3, Timed(role, clock), trust), sealers


def one_round(
    number: int, protection: Protection, sealers: Mapping[str, Sealer], update: Update, clock: Clock
) -> tuple[Total, int]:
    """A round's total, and the bytes of one payload."""
    account = ["ahead"]

    def ask(messages: Mapping[str, bytes]) -> dict[str, bytes]:
        with clock.on(account[0]):
            return {name: sealers[name].answer(message) for name, message in messages.items()}

    plan = RoundPlan(number, Work(1, "epochs"), 0.0, False, "examples")
    with clock.on("server"):
        combiner = protection.combiner(number, list(sealers), ask)
    for name, sealer in sealers.items():
        with clock.on("online"):
            payload, proof = sealer.seal(update, Assignment(name, plan, plan.work, None, WEIGHT), bytes(32))
        with clock.on("server"):
            combiner.add(Sealed(name, number, payload, 1, True, 0.0, None, bytes(32), proof))
    account[0] = "online"
    with clock.on("server"):
        total = combiner.open()
    clock.lap()
    return total, payload.nbytes


def measured(scheme: str, values: int, owners: int, rounds: int, folder: Path) -> dict[str, Any]:
    """CPU seconds a million values, of one owner, of the server an owner, of the key holder in all."""
    point = FixedPoint(values, owners, CLIP, PRECISION)
    names, clock = [f"owner-{number}" for number in range(owners)], Clock()
    protection, sealers = parties(scheme, point, names, clock, folder)
    delta = np.random.default_rng(0).uniform(-CLIP, CLIP, values).astype(np.float32)
    update = Update(delta, WEIGHT, 1, True)
    totals = [one_round(number, protection, sealers, update, clock) for number in range(1, rounds + 1)]
    millions = values / 1e6
    cost = {name: median(seconds) / millions for name, seconds in clock.seconds.items()}
    mean = totals[0][0].mean
    return {
        "bytes": totals[0][1] / delta.nbytes,
        "owner": (cost.get("ahead", 0.0) + cost["online"]) / owners,
        "online": cost["online"] / owners,
        "server": cost["server"] / owners,
        "key holder": cost.get("key holder", 0.0),
        "error": float(np.abs(mean - delta).max() / CLIP),
        "sum": totals[0][0].weighted_sum.tobytes(),
    }


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    columns = ("bytes", "owner", "online", "server", "key holder")
    print(f"{'':8}" + "".join(f"{column:>12}" for column in columns) + f"{'error':>12}  same bits as plain")
    for scheme, row in rows.items():
        cells = "".join(f"{row[column]:12.3f}" for column in columns)
        print(f"{scheme:8}{cells}{row['error']:12.1e}  {row['exact']}")
        if scheme in AIMS:
            print(f"{'  aim':8}" + "".join(f"{AIMS[scheme].get(column, float('nan')):12.2f}" for column in columns))
    print(
        "bytes: over float32. CPU seconds a million values: owner = ahead + online, server an owner, key holder in all"
    )


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--values", type=int, default=1_000_000)
    reader.add_argument("--owners", type=int, default=5)
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--out", type=Path, default=Path("runs/bench/homomorphic.json"))
    given = reader.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            scheme: measured(scheme, given.values, given.owners, given.rounds, Path(folder))
            for scheme in ("plain", "bfv", "ckks")
        }
    exact = rows["plain"]["sum"]
    for row in rows.values():
        row["exact"] = row.pop("sum") == exact
    show(rows)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"environment": environment(), "given": vars(given), "rows": rows}, default=str))


if __name__ == "__main__":
    main()
