"""Made-up records of runs: what a comparison would have written, without running one."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import yaml

from fedray.config import Experiment, as_yaml, replaced
from fedray.privacy.events import Charge
from fedray.records import RunRecords, Status
from fedray.values import Accountant, OwnerRecord, RoundRecord, SumRecord

ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64",
    "cpus": "8",
    "fedray": "0.1.0",
    "torch": "2.9.0",
}
HOSPITALS = ("charite", "geneva", "leuven", "oslo-north", "porto", "zürich-kispi")


def experiment(**settings: Any) -> dict[str, Any]:
    """A whole experiment as a mapping; ``__`` stands for a dot in keys."""
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return yaml.safe_load(as_yaml(replaced(Experiment(), dotted)))  # type: ignore[no-any-return]


def fake_round(
    number: int,
    metrics: Mapping[str, float],
    *,
    epsilon: float | None = None,
    owners: Sequence[str] = HOSPITALS,
    spread: float = 0.0,
    outcome: str = "update",
    seed: int = 0,
    reason: str = "",
    protection: str = "masked",
    accountant: Accountant = "PLD",
    charges: Sequence[Charge] | None = None,
    central: Mapping[str, float] | None = None,
) -> RoundRecord:
    """One round in which every owner does the same, its metrics scattered by ``spread``."""
    text = "" if charges is None else msgspec.json.encode(charges).decode()
    chance = random.Random(f"{number}/{seed}/{len(owners)}")
    lines = []
    for place, name in enumerate(owners):
        lean = spread * (place / max(len(owners) - 1, 1) - 0.6)
        own = {key: value + lean + chance.gauss(0, spread / 4) for key, value in metrics.items()}
        missed = outcome != "update" and chance.random() < 0.2
        lines.append(
            OwnerRecord(
                name=name,
                outcome=outcome if missed else "update",  # type: ignore[arg-type]
                reason=reason if missed else "",
                n_steps=20,
                seconds=0.4,
                epsilon=epsilon,
                epsilon_rdp=None if epsilon is None else epsilon * 1.12,
                n_holdout=30 + 7 * place,
                metrics=own,
                charges=text,
            )
        )
    seconds = {
        "prepare": 0.01,
        "train": 1.4,
        "combine": 0.05,
        "open": 0.02,
        "step": 0.02,
        "evaluate": 0.4,
        "total": 2.0,
    }
    return RoundRecord(
        round=number,
        n_owners=len(lines),
        cohort=tuple(owners),
        n_updates=len(owners),
        n_rejected=0,
        metrics=dict(metrics),
        train_metrics={},
        central_metrics=dict(central or {}),
        epsilon=epsilon,
        epsilon_rdp=None if epsilon is None else epsilon * 1.12,
        accountant=None if epsilon is None else accountant,
        sum=fake_sum(protection, len(owners), sum(line.outcome == "update" for line in lines)),
        bytes_up=len(owners) * 4810 * 4,
        bytes_down=len(owners) * 4810 * 4,
        seconds=seconds,
        at_once=1,
        work={},
        owners=tuple(lines),
        parameters_sha256=hashlib.sha256(f"{number}/{seed}".encode()).hexdigest(),
    )


def fake_sum(protection: str = "masked", n_owners: int = 6, n_updates: int = 6, **changes: Any) -> SumRecord:
    """How one sum was protected, where all went well."""
    hidden = protection != "plain"
    given: dict[str, Any] = {
        "protection": protection,
        "outcome": "opened",
        "reason": "",
        "stages": {"asked": n_owners, "updates": n_updates},
        "threshold": n_owners // 2 + 1 if protection == "masked" else 0,
        "min_owners": 3 if hidden else 1,
        "neighbours": n_owners - 1 if protection == "masked" else 0,
        "key_bits": 128 if hidden else 0,
        "identities": "first use" if hidden else "none",
        "key_id": "" if protection in ("plain", "masked") else "5" * 16,
        "bytes_up": 900 * n_owners if hidden else 0,
        "bytes_down": 1500 * n_owners if hidden else 0,
    }
    return SumRecord(**{**given, **changes})


def fake_run(
    settings: Mapping[str, Any] | None = None,
    *,
    finals: Mapping[str, float] | None = None,
    rounds: int = 3,
    epsilon: float | None = None,
    label: str = "run",
    status: Status = "complete",
    charge: Charge | None = None,
    **kind: Any,
) -> RunRecords:
    """A run whose metrics rise to ``finals``; its epsilon grows with the root of the rounds, ``charge`` with each."""
    whole = experiment(**(settings or {}))
    target = {"accuracy": 0.9} if finals is None else finals
    chance = random.Random(f"{label}/{whole['seed']}")
    records = [
        fake_round(
            number,
            {
                k: v * (1 - 0.7 * math.exp(-4 * number / rounds)) + _jitter(chance, number, rounds)
                for k, v in target.items()
            },
            epsilon=None if epsilon is None else epsilon * math.sqrt(number / rounds),
            seed=whole["seed"],
            protection=whole["protection"]["name"],
            charges=None if charge is None else [Charge(charge.event, charge.count * number)],
            **kind,
        )
        for number in range(1, rounds + 1)
    ]
    return RunRecords(label, whole, ENVIRONMENT, status, tuple(records))


def _jitter(chance: random.Random, number: int, rounds: int) -> float:
    return 0.0 if number == rounds else chance.gauss(0, 0.008)


def owner_level(kind: str = "owner", **changes: Any) -> dict[str, Any]:
    """Settings of an experiment at the level of owners."""
    strategy = {"name": "fedavg", "weighting": "uniform"}
    return {"privacy": {"name": kind, "epsilon": 4.0}, "strategy": strategy, **changes}


def tradeoff(seeds: int = 3, rounds: int = 20, owners: Sequence[str] = HOSPITALS) -> list[RunRecords]:
    """FedAvg and FedProx at no DP and epsilon 8, 4 and 1."""
    best = {("fedavg", None): 0.93, ("fedavg", 8.0): 0.89, ("fedavg", 4.0): 0.85, ("fedavg", 1.0): 0.70}
    best |= {
        ("fedprox", None): 0.925,
        ("fedprox", 8.0): 0.895,
        ("fedprox", 4.0): 0.87,
        ("fedprox", 1.0): 0.76,
    }
    runs = []
    for (strategy, epsilon), value in best.items():
        privacy = "none" if epsilon is None else {"name": "example", "epsilon": epsilon, "delta": 1e-5}
        for seed in range(seeds):
            moved = value + random.Random(f"{strategy}{epsilon}{seed}").gauss(0, 0.012)
            settings = {
                "name": "hospitals",
                "strategy": strategy,
                "privacy": privacy,
                "seed": seed,
                "rounds": rounds,
            }
            run = fake_run(
                settings,
                finals={"accuracy": moved, "loss": 2 * (1.1 - moved)},
                rounds=rounds,
                epsilon=epsilon,
                label=f"{strategy}-{epsilon or 'open'}-{seed}",
                spread=0.12,
                owners=owners,
            )
            runs.append(run)
    return runs


def many_variants(count: int = 20) -> list[RunRecords]:
    """One strategy at so many learning rates."""
    return [
        fake_run(
            {"name": "rates", "train__optimizer": {"name": "sgd", "lr": 0.01 * (place + 1)}},
            finals={"accuracy": 0.9 - 0.002 * (place - 7) ** 2},
            rounds=8,
            label=f"lr-{place}",
            spread=0.1,
        )
        for place in range(count)
    ]
