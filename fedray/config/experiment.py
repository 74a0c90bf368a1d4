"""The experiment: one validated object that says all that a run needs, in Python or in YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from fedray.config.cluster import Checkpoints, Faults, OwnActors, Placement, Pooled, Resources, Simulation
from fedray.config.data import Data, Digits, Images, OwnerScaling, Simulated, Synthetic
from fedray.config.fields import Reference, Section, reference_name
from fedray.config.learning import (
    Bfv,
    Ckks,
    Cyclic,
    EveryOwner,
    FedAvg,
    FixedSize,
    Masked,
    Mlp,
    Model,
    Plain,
    PoissonSampling,
    Protection,
    Selection,
    Stragglers,
    Strategy,
    Train,
)
from fedray.config.privacy import (
    AdaptiveClip,
    DistributedPrivacy,
    ExamplePrivacy,
    GaussianNoise,
    LocalPrivacy,
    NoPrivacy,
    OwnerLevel,
    OwnerPrivacy,
    Privacy,
)
from fedray.config.schedule import Buffered, Schedule, Synchronous
from fedray.config.search import Search
from fedray.values import Work


class Evaluation(Section):
    """When and on what the global model is evaluated."""

    every: PositiveInt = 1
    """Evaluate after every so many rounds, and after the last."""
    owners: PositiveInt | None = None
    """At most so many owners each time, drawn anew; all of them when left out."""
    train: bool = False
    """Also on owners' training rows (refused under DP: those figures would be released without noise)."""
    noise_multiplier: PositiveFloat | None = None
    """Under DP: deviation of the noise on each metric's sum over held-out rows, where one row (example level) or one
    owner's mean (owner level) moves it by at most one; charged to the owners' ledgers. Without it, held-out figures
    are not covered by epsilon (example level) or not taken (owner level)."""


_NEED_SINGLE_UPDATES = frozenset({"median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "bulyan"})
"""Robust aggregation rules that cannot work on a sum."""
_BOUNDED = frozenset({"accuracy", "binary_accuracy"})
"""Metrics of which one row adds between 0 and 1."""
_SMALLER_IS_BETTER = frozenset({"loss", "squared_error", "absolute_error"})


class Experiment(Section):
    """One federation: data, model, local training, strategy, cohort, privacy and protection.

    Raises:
        pydantic.ValidationError: a value or a combination is wrong; ``fedray.load`` and the command line turn it
            into a ``ConfigError``.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "experiment"
    """Names the run directory."""
    seed: int = 0
    """Seed of initial parameters, cohorts, batches and stragglers; never of privacy noise or keys."""
    rounds: PositiveInt = 20
    """Number of rounds."""
    data: Data = Digits()
    """Whose data, and how it is split and scaled."""
    model: Model = Mlp()
    """The model; a callable that returns a module is taken as a custom model."""
    loss: Literal["cross_entropy", "binary_cross_entropy", "mse"] | Reference = "cross_entropy"
    """Loss: a name, or ``loss(outputs, targets) -> scalar``, the mean over the batch."""
    metrics: tuple[Literal["accuracy", "binary_accuracy", "squared_error", "absolute_error"] | Reference, ...] = (
        "accuracy",
    )
    """Metrics: names, or ``metric(outputs, targets) -> (n,)``, a value an example; their mean is reported."""
    task: Reference | None = None
    """Instead of model, loss and metrics: ``task(schema) -> fedray.protocols.Task``."""
    train: Train = Train()
    """Local training."""
    strategy: Strategy = FedAvg()
    """The algorithm at the server."""
    cohort: Selection = EveryOwner()
    """Who takes part in a round."""
    stragglers: Stragglers = Stragglers()
    """Simulated slow owners."""
    deadline_s: PositiveFloat | None = None
    """Seconds an owner may train in a round; it then returns the iterate that it has."""
    privacy: Privacy = NoPrivacy()
    """What bounds what the result reveals."""
    protection: Protection = Masked()
    """What hides updates from the server."""
    evaluation: Evaluation = Evaluation()
    """When and on what to evaluate."""
    resources: Resources = Resources()
    """What Ray reserves for each actor."""
    simulation: Simulation = OwnActors()
    """Whether owners are simulated, many to a process."""
    schedule: Schedule = Synchronous()
    """When a round is closed, and whether owners wait for each other."""
    faults: Faults = Faults()
    """What is done about processes and nodes that are lost."""
    checkpoints: Checkpoints = Checkpoints()
    """Which states are kept, and where."""
    placement: dict[str, Placement] = {}
    """Owner's name to the place where its actor must run."""
    search: Search = Search()
    """How ``fedray compare`` runs trials."""

    @field_validator("model", mode="before")
    @classmethod
    def _callable_is_a_custom_model(cls, value: Any) -> Any:
        is_factory = callable(value) and not isinstance(value, Section)
        return {"name": "custom", "factory": value} if is_factory else value

    @field_validator("strategy", mode="before")
    @classmethod
    def _strategies_take_sums(cls, value: Any) -> Any:
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str) and name in _NEED_SINGLE_UPDATES:
            raise ValueError(
                f"strategy {name!r} needs every single update, which no fedray server has: protections give it sums "
                "only; take fedavg or fedprox"
            )
        return value

    @property
    def work(self) -> Work:
        """The full local work of a round."""
        if self.train.steps is not None:
            return Work(self.train.steps, "steps")
        return Work(self.train.epochs or 1, "epochs")

    def gpus_of(self, owner: str) -> float:
        """GPUs, or the share of one, that an owner computes on."""
        if isinstance(self.simulation, Pooled):
            return self.simulation.pool_gpus
        placed = self.placement.get(owner, Placement()).gpus
        return self.resources.owner_gpus if placed is None else placed

    def most_in_a_round(self, n_owners: int) -> int:
        """Most owners that any round asks for an update, of a federation of so many."""
        return self.cohort.n_asked if isinstance(self.cohort, FixedSize) else self.most_in_a_sum(n_owners)

    def most_in_a_sum(self, n_owners: int) -> int:
        """Updates with which a round is closed, of a federation of so many owners."""
        if isinstance(self.schedule, Buffered):
            return self.schedule.size
        return self.cohort.size if isinstance(self.cohort, FixedSize | Cyclic) else n_owners

    @property
    def close_after_s(self) -> float | None:
        """Seconds of training after which a round is closed; None where it waits for all."""
        return self.schedule.close_after_s if isinstance(self.schedule, Synchronous) else None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names under which metrics are reported; the last part of an import path."""
        return tuple(reference_name(metric).rpartition(":")[2].rpartition(".")[2] for metric in self.metrics)

    @model_validator(mode="after")
    def _rules_that_span_sections(self) -> Self:
        for broken, message in self._broken_rules():
            if broken:
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _search_has_an_objective(self) -> Self:
        metric = self.search.metric or (self.metric_names or ("loss",))[0]
        if metric not in {"loss", *self.metric_names} and self.task is None:
            raise ValueError(
                f"search.metric is {metric!r}, but the metrics are {['loss', *self.metric_names]}; name one of them"
            )
        mode = self.search.mode or ("min" if metric in _SMALLER_IS_BETTER else "max")
        values = {**dict(self.search), "metric": metric, "mode": mode}
        search = Search.model_construct(_fields_set=self.search.model_fields_set, **values)
        object.__setattr__(self, "search", search)
        return self

    def _broken_rules(self) -> list[tuple[bool, str]]:
        return [
            *self._broken_rules_of_cohorts(),
            *self._broken_rules_of_closing(),
            *self._broken_rules_of_buffers(),
            *self._broken_rules_of_simulations(),
            *self._broken_rules_of_privacy(),
            *self._broken_rules_of_owner_level(),
            *self._broken_rules_of_tasks(),
        ]

    def _broken_rules_of_cohorts(self) -> list[tuple[bool, str]]:
        owners = self.data.owners if isinstance(self.data, Simulated | Synthetic | Images) else None
        asked = self.most_in_a_round(0)
        smallest = 1 if isinstance(self.protection, Plain) else self.protection.min_owners
        largest = self.most_in_a_sum(0) or owners
        return [
            (
                owners is not None and asked > owners,
                f"{self._size_of_a_round()} is {asked}, but data.owners is {owners}; ask for at most {owners} owners "
                "a round",
            ),
            (
                largest is not None and largest < smallest,
                f"protection is {self.protection.name!r}, which opens sums of at least {smallest} owners, but a round "
                f"has at most {largest}; take more owners, or let the server read updates with protection: plain",
            ),
            (
                isinstance(self.protection, Masked)
                and self.protection.server == "may_lie"
                and not self.protection.identities,
                "protection.server is may_lie, but protection.identities is empty: a server that lies could pass off "
                "its own keys as owners' keys; run fedray enrol at each owner and list the public keys",
            ),
            (
                self.stragglers.fraction > 0 and self.work.amount < 2,
                f"stragglers need a round of at least 2 epochs or steps to fall short of, found {self.work.amount} "
                f"{self.work.unit}; raise train.{self.work.unit}",
            ),
        ]

    def _size_of_a_round(self) -> str:
        """The settings that say how many owners a round asks."""
        if isinstance(self.schedule, Buffered):
            return "schedule.size"
        is_more = isinstance(self.cohort, FixedSize) and self.cohort.over_select > 0
        return "cohort.size with cohort.over_select" if is_more else "cohort.size"

    def _broken_rules_of_closing(self) -> list[tuple[bool, str]]:
        over_selects = isinstance(self.cohort, FixedSize) and self.cohort.over_select > 0
        pools = isinstance(self.simulation, Pooled)
        return [
            (
                pools and self.close_after_s is not None,
                "schedule.close_after_s is given, but simulation is 'pooled': simulated owners share processors, so "
                "that time says nothing of them; take stragglers: {fraction: ...}, or simulation: none",
            ),
            (
                pools and over_selects,
                "cohort.over_select is given, but simulation is 'pooled': simulated owners share processors, so that "
                "who is first says nothing of them; take stragglers: {fraction: ...}, or simulation: none",
            ),
            (
                isinstance(self.privacy, OwnerLevel) and over_selects,
                f"cohort.over_select is given under privacy {self.privacy.name!r}: to be among the first is not to be "
                "drawn, and an owner that is displaces another, which moves the sum by more than the noise covers; "
                "take schedule: {name: synchronous, close_after_s: ...}",
            ),
        ]

    def _broken_rules_of_buffers(self) -> list[tuple[bool, str]]:
        if not isinstance(self.schedule, Buffered):
            return []
        return [
            (
                not isinstance(self.cohort, EveryOwner),
                f"cohort is {self.cohort.name!r}, but the schedule is 'buffered', which draws an owner whenever one is "
                "done, and has no cohorts; leave out cohort",
            ),
            (
                self.stragglers.fraction > 0,
                "stragglers.fraction is given, but the schedule is 'buffered': slow owners are a share of a cohort, "
                "which it has not, and it waits for nobody; leave out stragglers, or take schedule: synchronous",
            ),
            (
                isinstance(self.simulation, Pooled),
                "the schedule is 'buffered', but simulation is 'pooled', whose owners share processes and train in "
                "turn; take simulation: none",
            ),
            (
                isinstance(self.privacy, OwnerLevel),
                f"the schedule is 'buffered' under privacy {self.privacy.name!r}: who takes part is not sampled, how "
                "often is not bounded, and an update late by rounds has another clip; take privacy: example, or "
                "schedule: synchronous",
            ),
            (
                isinstance(self.protection, Masked) and self.protection.server == "may_lie",
                "the schedule is 'buffered', but protection.server is may_lie: owners of one sum train from different "
                "models by design, so that none could tell that the server gave some of them a model that makes "
                "their updates vanish; take schedule: synchronous, or protection.server: honest",
            ),
        ]

    def _broken_rules_of_simulations(self) -> list[tuple[bool, str]]:
        if not isinstance(self.simulation, Pooled):
            return []
        at_once = self.simulation.at_once
        is_batched = at_once != "auto" and at_once > 1
        return [
            (
                bool(self.placement),
                f"placement pins {', '.join(sorted(self.placement))}, but simulation is 'pooled': owners in pools have "
                "no node of their own; leave out placement, or take simulation: none",
            ),
            (
                self.resources.owner_gpus > 0,
                f"resources.owner_gpus is {self.resources.owner_gpus:g}, but simulation is 'pooled'; give pools their "
                "GPUs by simulation.pool_gpus",
            ),
            (
                is_batched and self.deadline_s is not None,
                f"simulation.at_once is {at_once}, but deadline_s is given: owners that are trained together stop "
                "together; take at_once: 1, or leave out deadline_s",
            ),
            (
                is_batched and self.task is not None,
                f"simulation.at_once is {at_once}, but the task is your own, which trains one owner at a time; take "
                "at_once: 1",
            ),
        ]

    def _broken_rules_of_privacy(self) -> list[tuple[bool, str]]:
        privacy = self.privacy
        return [
            (
                isinstance(privacy, ExamplePrivacy) and isinstance(self.data.scaling, OwnerScaling),
                "data.scaling is 'owner' under example-level privacy: means and deviations of private rows would shape "
                "every example without being accounted for; give data.scaling as {name: fixed, center: [...], "
                "scale: [...]} with public constants, or 'none'",
            ),
            (
                not isinstance(privacy, NoPrivacy) and self.evaluation.train,
                f"evaluation.train is on under privacy {privacy.name!r}: figures on training rows would be released "
                "without noise; switch it off",
            ),
            (
                isinstance(privacy, ExamplePrivacy) and self.task is not None,
                "a task of your own is combined with example-level privacy, which fedray cannot account for; "
                "give model, loss and metrics instead, or privacy: none",
            ),
            (
                isinstance(privacy, ExamplePrivacy)
                and self.evaluation.noise_multiplier is not None
                and not set(self.metrics) <= _BOUNDED,
                "evaluation.noise_multiplier is given under example-level privacy, but nothing bounds what one row "
                f"adds to all of the metrics {list(self.metric_names)}; take {' or '.join(sorted(_BOUNDED))}",
            ),
        ]

    def _broken_rules_of_owner_level(self) -> list[tuple[bool, str]]:
        privacy, name = self.privacy, self.privacy.name
        is_correlated = isinstance(privacy, OwnerPrivacy) and not isinstance(privacy.noise, GaussianNoise)
        is_bounded = isinstance(privacy, OwnerPrivacy) and privacy.weight_bound is not None
        return [
            (
                isinstance(privacy, OwnerLevel) and self.strategy.weighting == "examples" and not is_bounded,
                f"strategy.weighting is 'examples' under privacy {name!r}: an owner with many rows would move the mean "
                "by more than the noise covers; take strategy.weighting: uniform, or bound weights by "
                "privacy.weight_bound (privacy 'owner' only)",
            ),
            (
                is_bounded and self.strategy.weighting == "uniform",
                "privacy.weight_bound is given, but strategy.weighting is 'uniform', which weighs all owners alike; "
                "leave one of them out",
            ),
            (
                is_correlated and not isinstance(self.cohort, Cyclic),
                "privacy.noise 'tree' and 'banded' need owners that take part in turn, at a known distance; "
                "give cohort: {name: cyclic, size: ...}",
            ),
            (
                is_correlated and isinstance(privacy, OwnerPrivacy) and isinstance(privacy.clipping, AdaptiveClip),
                "privacy.clipping is 'adaptive' with noise that is correlated over rounds: it only cancels where the "
                "clip stays; take privacy.clipping: fixed",
            ),
            (
                isinstance(privacy, DistributedPrivacy) and not isinstance(self.protection, Masked),
                f"privacy 'distributed' with protection {self.protection.name!r}: one owner's share of the noise does "
                "not protect it alone, only a masked sum does; take protection: masked, or privacy: local",
            ),
            (
                isinstance(privacy, LocalPrivacy) and isinstance(self.protection, Ckks | Bfv),
                f"privacy 'local' with protection {self.protection.name!r}: sums of noisy integers wrap around, which "
                "these schemes do not carry; take protection: plain or masked",
            ),
            (
                isinstance(privacy, DistributedPrivacy | LocalPrivacy) and isinstance(self.cohort, PoissonSampling),
                f"privacy {name!r} with cohort 'poisson': the noise of a round would depend on who was drawn; "
                "take cohort: all, fixed or cyclic",
            ),
        ]

    def _broken_rules_of_tasks(self) -> list[tuple[bool, str]]:
        fields = type(self).model_fields
        given = self.model_fields_set & {"model", "loss", "metrics"}
        return [
            (
                self.task is not None and any(getattr(self, key) != fields[key].default for key in given),
                "task is given together with model, loss or metrics; a task brings its own, so leave those out",
            ),
            (
                self.loss in ("binary_cross_entropy", "mse") and "accuracy" in self.metrics,
                f"the metric 'accuracy' needs a score a class, but loss {self.loss!r} has one output; "
                "use binary_accuracy, squared_error or absolute_error",
            ),
            (
                len(set(self.metric_names) | {"loss", "unclipped"}) != len(self.metric_names) + 2,
                f"metrics have the names {list(self.metric_names)}: each must differ, and 'loss' is taken, "
                "as is 'unclipped'; "
                "rename the function",
            ),
        ]
