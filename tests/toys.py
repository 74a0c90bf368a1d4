"""Small shards, modules, plans and owners for tests; imported as ``toys`` (``tests`` is on the path of pytest)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from fedray.config import Experiment
from fedray.config import learning as config
from fedray.owners import InProcessCohort, Owner
from fedray.protection.plain import PlainProtection
from fedray.protocols import Strategy, Task
from fedray.rounds import Federation
from fedray.strategies import FedAvg
from fedray.tasks.descent import Descent, ShuffledDescent
from fedray.tasks.losses import accuracy, cross_entropy
from fedray.tasks.modules import build_module
from fedray.tasks.torch_task import TorchTask
from fedray.values import (
    Absent,
    Assignment,
    Examples,
    OwnerInfo,
    Part,
    RoundPlan,
    Schema,
    Sealed,
    Shard,
    Tally,
    Vector,
    Work,
)

ROOT = Path(__file__).parents[1]

TABLE = Schema((5,), "float32", (), 3)
IMAGE = Schema((1, 4, 4), "float32", (), 3)
TOKENS = Schema((6,), "int64", (), 3)
NEXT_TOKEN = Schema((6,), "int64", (6,), 3)


def examples(n: int, schema: Schema = TABLE, seed: int = 0) -> Examples:
    """``n`` rows that fit a schema."""
    draw = np.random.default_rng([n, seed])
    if schema.feature_dtype == "float32":
        features = draw.normal(size=(n, *schema.feature_shape)).astype(np.float32)
    else:
        features = draw.integers(0, 7, size=(n, *schema.feature_shape))
    return Examples(features, draw.integers(0, schema.n_classes, size=(n, *schema.target_shape)))


def shard(n_train: int = 12, n_holdout: int = 5, schema: Schema = TABLE, seed: int = 0) -> Shard:
    return Shard(examples(n_train, schema, seed), examples(n_holdout, schema, seed + 1000))


def plan(
    amount: int = 1,
    unit: Any = "epochs",
    *,
    mu: float = 0.0,
    partial_work: bool = False,
    weighting: Any = "examples",
    round: int = 1,
) -> RoundPlan:
    return RoundPlan(round, Work(amount, unit), mu, partial_work, weighting)


def assignment(
    plan: RoundPlan, owner: str = "a", amount: int | None = None, deadline_s: float | None = None
) -> Assignment:
    return Assignment(owner, plan, Work(amount or plan.work.amount, plan.work.unit), deadline_s)


MODELS: Mapping[str, tuple[Any, Schema]] = {
    "logistic": (config.Logistic(), TABLE),
    "mlp": (config.Mlp(hidden=(6,)), TABLE),
    "cnn": (config.Cnn(channels=(2, 3), hidden=5), IMAGE),
    "batchnorm": (config.Cnn(channels=(2,), hidden=5, norm="batch"), IMAGE),
    "lstm": (config.Lstm(vocabulary=7, embedding=3, hidden=4), TOKENS),
    "lstm every step": (config.Lstm(vocabulary=7, embedding=3, hidden=4), NEXT_TOKEN),
}


def make_module(name: str) -> nn.Module:
    model, schema = MODELS[name]
    return build_module(model, schema, 3)


def torch_task(
    module: str | Callable[[], nn.Module] = "mlp",
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    *,
    batch_size: int = 4,
    descent: Descent | None = None,
) -> TorchTask:
    return TorchTask(
        partial(make_module, module) if isinstance(module, str) else module,
        cross_entropy,
        {"accuracy": accuracy},
        optimizer or partial(torch.optim.SGD, lr=0.1),
        descent or ShuffledDescent(batch_size),
    )


def openers(
    make_task: Callable[[], Task], shards: Mapping[str, Shard], seed: int = 0
) -> dict[str, Callable[[], Owner]]:
    """Owners under plain protection, as ``fedray.build`` would open them."""

    def opened(name: str) -> Owner:
        task = make_task()
        return Owner(name, shards[name], task, PlainProtection(len(task.initial(0))).sealer(name), seed)

    return {name: partial(opened, name) for name in shards}


def federation(
    make_task: Callable[[], Task],
    shards: Mapping[str, Shard],
    strategy: Strategy | None = None,
    *,
    around: Callable[[Any], Any] = lambda cohort: cohort,
    **settings: Any,
) -> Federation:
    """A federation in this process.

    Args:
        around: wraps the cohort, e.g. in a ``Meddling``.
        settings: of the experiment; its data section stands for nothing here.
    """
    task = make_task()
    return Federation(
        experiment=Experiment.model_validate({"rounds": 1, **settings}),
        task=task,
        strategy=strategy or FedAvg(Work(1, "epochs")),
        protection=PlainProtection(len(task.initial(0))),
        cohort=around(InProcessCohort(openers(make_task, shards))),
        central_test=None,
    )


class Meddling:
    """A cohort whose answers pass through a function before the server sees them."""

    def __init__(self, cohort: Any, meddle: Callable[[list[Sealed | Absent]], Iterable[Sealed | Absent]]) -> None:
        self._cohort = cohort
        self._meddle = meddle

    @property
    def owners(self) -> Sequence[OwnerInfo]:
        return self._cohort.owners

    def train(self, vector: Vector, assignments: Sequence[Assignment]) -> Iterable[Sealed | Absent]:
        return self._meddle(list(self._cohort.train(vector, assignments)))

    def evaluate(self, vector: Vector, part: Part) -> Iterator[tuple[str, Tally]]:
        return self._cohort.evaluate(vector, part)

    def close(self) -> None:
        self._cohort.close()


def changed(sealed: Sealed | Absent, **values: Any) -> Sealed:
    assert isinstance(sealed, Sealed)
    return replace(sealed, **values)


def study(name: str) -> ModuleType:
    """A script under ``scripts/studies``, imported."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "studies" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
