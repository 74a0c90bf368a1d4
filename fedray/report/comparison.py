"""From runs to variants, and which of them nothing else beats in both privacy and utility.

Pure analysis of records: no plotting, no files. ``tables`` and ``html`` show what is found here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedray.errors import RecordsError
from fedray.records import RunRecords
from fedray.report import labels
from fedray.report.variant import Variant, final, over_seeds, spent

Mode = Literal["max", "min"]

SMALLER_IS_BETTER = ("loss", "squared_error", "absolute_error")


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a set of runs says.

    Attributes:
        metric: the metric that says which variant is better.
        mode: whether more of it is better.
        variants: by level of privacy, the smallest epsilon first and no DP last; then the better first.
        front: the variants that are on the Pareto front of privacy and utility.
        varied: dotted keys that differ between variants.
        unevaluated: runs that hold no evaluated round.
    """

    metric: str
    mode: Mode
    variants: tuple[Variant, ...]
    front: tuple[Variant, ...]
    varied: tuple[str, ...]
    unevaluated: tuple[RunRecords, ...]

    @property
    def runs(self) -> tuple[RunRecords, ...]:
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels of privacy, in the order of the variants."""
        return tuple(dict.fromkeys(variant.level for variant in self.variants))

    @property
    def families(self) -> tuple[str, ...]:
        """Families of variants that differ in the level of privacy only, by name."""
        return tuple(sorted({variant.family for variant in self.variants}))

    def on_front(self, variant: Variant) -> bool:
        return any(variant is member for member in self.front)


def compare(runs: Sequence[RunRecords]) -> Comparison:
    """Group runs into variants and find the Pareto front.

    Raises:
        RecordsError: there are no runs.
    """
    if not runs:
        raise RecordsError("no runs to compare", "records of at least one", "name a directory of runs")
    metric, mode = metric_and_mode(runs)
    groups: dict[str, list[RunRecords]] = {}
    for run in runs:
        groups.setdefault(labels.identity(labels.compared(run.experiment)), []).append(run)
    settings = [labels.compared(group[0].experiment) for group in groups.values()]
    varied, telling = labels.varied(settings), labels.telling(settings)
    found = [
        _variant(tuple(group), own, varied, telling, metric)
        for group, own in zip(groups.values(), settings, strict=True)
    ]
    variants = tuple(sorted(found, key=lambda variant: _order(variant, found, mode)))
    unevaluated = tuple(run for run in runs if final(run, metric) is None)
    return Comparison(metric, mode, variants, pareto_front(variants, mode), varied, unevaluated)


def metric_and_mode(runs: Sequence[RunRecords]) -> tuple[str, Mode]:
    """The first experiment's search metric; where no run has it, the first that there is, or the loss."""
    experiment = runs[0].experiment
    search = experiment.get("search", {})
    metric = str(search.get("metric", "accuracy"))
    recorded = dict.fromkeys(name for run in runs for record in run.rounds for name in record.metrics)
    mode: Mode = "min" if search.get("mode") == "min" else "max"
    if recorded and metric not in recorded:
        metric = next((name for name in recorded if name != "loss"), "loss")
    return metric, "min" if metric in SMALLER_IS_BETTER else mode


def pareto_front(variants: Sequence[Variant], mode: Mode = "max") -> tuple[Variant, ...]:
    """Variants that no other beats or equals in both epsilon and utility while beating it in one.

    No differential privacy counts as an infinite epsilon. Variants without a finite utility are left out.
    Compares means: whether a difference is established is another question.
    """
    sign = 1.0 if mode == "max" else -1.0
    scored = [(v, v.utility) for v in variants if v.utility is not None and v.utility.is_finite]
    points = [(cost(variant), sign * utility.mean, variant) for variant, utility in scored]
    front: list[tuple[float, float, Variant]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1] or point[:2] == front[-1][:2]:
            front.append(point)
    return tuple(variant for _, _, variant in front)


def cost(variant: Variant) -> float:
    """Epsilon spent; infinite without differential privacy, or where none is on record."""
    return variant.epsilon if variant.epsilon is not None else math.inf


def is_better(a: Variant, b: Variant, mode: Mode) -> bool:
    """Whether the mean utility of ``a`` beats that of ``b``."""
    return goodness(a, mode) > goodness(b, mode)


def goodness(variant: Variant, mode: Mode) -> float:
    """Mean utility, negated where smaller is better; minus infinity where there is none."""
    if variant.utility is None or not variant.utility.is_finite:
        return -math.inf
    return variant.utility.mean if mode == "max" else -variant.utility.mean


def _variant(
    runs: tuple[RunRecords, ...],
    settings: Mapping[str, Any],
    varied: Sequence[str],
    telling: Sequence[str],
    metric: str,
) -> Variant:
    counted = tuple(run for run in runs if run.status == "complete") or runs
    strategy, others = labels.strategy_label(settings, telling), labels.other_labels(settings, telling)
    level = labels.level_label(settings, telling)
    epsilon, epsilon_rdp = spent(counted)
    return Variant(
        label=labels.SEPARATOR.join([strategy, level, *others]),
        strategy=str(settings.get("strategy.name", "?")),
        family=labels.SEPARATOR.join([strategy, *others]),
        level=level,
        settings={key: settings[key] for key in varied if key in settings},
        runs=runs,
        counted=counted,
        metric=metric,
        utility=over_seeds(counted, lambda run: final(run, metric)),
        epsilon=epsilon,
        epsilon_rdp=epsilon_rdp,
    )


def _order(variant: Variant, among: Sequence[Variant], mode: Mode) -> tuple[Any, ...]:
    level = [other for other in among if other.level == variant.level]
    planned = variant.experiment.get("privacy", {}).get("epsilon")
    epsilon = planned if planned is not None else min(map(cost, level))
    return (variant.level == "no DP", epsilon, variant.level, -goodness(variant, mode), variant.label)
