"""Small shards, modules, plans and owners for tests; imported as ``toys`` (``tests`` is on the path of pytest)."""

from __future__ import annotations

import importlib.util
import sys
import time
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
from fedray.errors import ProtocolError
from fedray.federation import Federation
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.privacy.plain_mean import PlainMean
from fedray.protection.encoding import Encoding
from fedray.protection.fixed_point import FixedPoint, power_of_two_from
from fedray.protection.identity import Identity, Trust
from fedray.protection.journal import Journal
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.owner import MaskedSealer
from fedray.protection.masked.server import MaskedProtection
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.protocols import Mechanism, Protection, Sealer, Strategy, Task
from fedray.strategies import FedAvg
from fedray.tasks.descent import Descent, ShuffledDescent
from fedray.tasks.losses import accuracy, cross_entropy
from fedray.tasks.modules import build_module
from fedray.tasks.torch_task import TorchTask
from fedray.values import (
    Absent,
    Assignment,
    Examples,
    Part,
    Payload,
    Population,
    RoundPlan,
    Schema,
    Sealed,
    Shard,
    Tally,
    Update,
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


WEIGHT_BOUND = 32
"""What weights of toy updates are scaled by, where a test names nothing else."""


def assignment(
    plan: RoundPlan,
    owner: str = "a",
    amount: int | None = None,
    deadline_s: float | None = None,
    *,
    weight_bound: int = WEIGHT_BOUND,
    briefing: bytes = b"",
) -> Assignment:
    work = Work(amount or plan.work.amount, plan.work.unit)
    return Assignment(owner, plan, work, deadline_s, weight_bound, briefing)


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


PLAIN = config.Plain(precision=1e-7)
"""Finer than the default, so that results can be held against plain torch: the ring still holds 15 owners' sum."""
MASKED = config.Masked(precision=1e-7)
"""The same integers as ``PLAIN``."""


def make_fixed_point(section: config.Plain | config.Masked, n_values: int, n_owners: int) -> FixedPoint:
    return FixedPoint(n_values, n_owners, section.clip, section.precision)


def make_rules(section: config.Masked) -> Rules:
    return Rules(section.min_owners, section.server, section.corrupt, section.dropouts)


def make_sealer(
    section: config.Plain | config.Masked, name: str, encoding: Encoding, seed: int = 0, folder: Path | None = None
) -> Sealer:
    """One owner's half; under masks with a fresh identity, and its journal in ``folder``."""
    if isinstance(section, config.Plain):
        return PlainSealer(encoding, seed)
    assert folder is not None, "a masked sealer keeps a journal"
    journal = Journal(folder / f"{name.encode().hex()}.json")
    return MaskedSealer(name, Identity(), Trust({}), make_rules(section), encoding, seed, journal)


def make_protection(section: config.Plain | config.Masked, encoding: Encoding, weight_bound: int) -> Protection:
    """The server's half; under masks of a run that is always called the same."""
    if isinstance(section, config.Plain):
        return PlainProtection(encoding, weight_bound)
    return MaskedProtection(make_rules(section), encoding, weight_bound, b"run of the toys!", {})


def openers(
    make_task: Callable[[], Task],
    shards: Mapping[str, Shard],
    seed: int = 0,
    section: config.Plain | config.Masked = PLAIN,
    folder: Path | None = None,
) -> dict[str, Callable[[], Owner]]:
    """Owners, as ``fedray.build`` would open them."""

    def opened(name: str) -> Owner:
        task = make_task()
        fixed_point = make_fixed_point(section, len(task.initial(0)), len(shards))
        return Owner(name, shards[name], task, make_sealer(section, name, fixed_point, seed, folder), seed)

    return {name: partial(opened, name) for name in shards}


def federation(
    make_task: Callable[[], Task],
    shards: Mapping[str, Shard],
    strategy: Strategy | None = None,
    *,
    mechanism: Mechanism | None = None,
    around: Callable[[Any], Any] = lambda cohort: cohort,
    section: config.Plain | config.Masked = PLAIN,
    folder: Path | None = None,
    weight_bound: int | None = None,
    **settings: Any,
) -> Federation:
    """A federation in this process.

    Args:
        mechanism: the server's half of owner-level privacy; none when left out.
        around: wraps the cohort, e.g. in a ``Meddling``.
        section: how updates are protected.
        folder: where owners under masks keep their journals.
        weight_bound: when left out, the power of two from the largest shard, or one where all weigh alike.
        settings: of the experiment; its data section stands for nothing here.
    """
    task = make_task()
    fixed_point = make_fixed_point(section, len(task.initial(0)), len(shards))
    strategy = strategy or FedAvg(Work(1, "epochs"))
    heaviest = 1 if strategy.plan({}, 1).weighting == "uniform" else max(len(one.train) for one in shards.values())
    bound = weight_bound or power_of_two_from(heaviest)
    experiment = Experiment.model_validate({"rounds": 1, "protection": section, **settings})
    return Federation(
        experiment=experiment,
        task=task,
        strategy=strategy,
        protection=make_protection(section, fixed_point, bound),
        mechanism=mechanism or PlainMean(),
        cohort=around(InProcessCohort(openers(make_task, shards, section=section, folder=folder))),
        central_test=None,
        weight_bound=bound,
        cohort_seed=experiment.seed,
    )


class Meddling:
    """A cohort whose answers pass through a function before the server sees them."""

    def __init__(self, cohort: Any, meddle: Callable[[list[Sealed | Absent]], Iterable[Sealed | Absent]]) -> None:
        self._cohort = cohort
        self._meddle = meddle

    at_once = 1
    notes = ()

    @property
    def population(self) -> Population:
        return self._cohort.population

    def work(self) -> Mapping[str, float]:
        return self._cohort.work()

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterable[Sealed | Absent]:
        return self._meddle(list(self._cohort.train(vector, assignments)))

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        return self._cohort.ask(round, messages)

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        return self._cohort.evaluate(vector, part, owners)

    def close(self) -> None:
        self._cohort.close()


class Talkative:
    """A sealer with a protocol: says its owner's name and the message, and refuses what begins with ``no``.

    Args:
        heard: made when it is asked.
    """

    def __init__(self, owner: str, heard: Path | None = None) -> None:
        self._owner = owner
        self._heard = heard

    def answer(self, message: bytes) -> bytes:
        if self._heard:
            self._heard.touch()
        if message.startswith(b"no"):
            raise ProtocolError("a request for what must not be given", "another", "ask for something else")
        return f"{self._owner}: ".encode() + message

    def seal(self, update: Update, assignment: Assignment, terms: bytes) -> tuple[Payload, bytes]:
        return np.zeros(3, np.uint32), b"signed"


class Patient:
    """A task whose training ends once a file is there.

    Args:
        trains: made when training begins.
        awaited: what training waits for.
    """

    n_parameters = 3

    def __init__(self, trains: Path, awaited: Path) -> None:
        self._trains = trains
        self._awaited = awaited

    def initial(self, seed: int) -> Vector:
        return np.zeros(3, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        self._trains.touch()
        return Update(np.ones(3, np.float32), 1, 1, is_complete=is_there(self._awaited))

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": 0.0}, len(examples))


def is_there(path: Path, timeout_s: float = 60.0) -> bool:
    """Wait until a file is there; False where it did not come in time."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


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
