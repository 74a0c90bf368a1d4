"""From runs to variants, and which of them nothing else beats in both privacy and utility.

Pure analysis of records, and its rows for the terminal and for Parquet. No plotting: ``html`` shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fedray.errors import RecordsError
from fedray.records import RunRecords
from fedray.report import labels, numbers
from fedray.report.cost import SearchCost, as_metadata, search_cost
from fedray.report.variant import (
    Judge,
    Variant,
    accountant_of,
    by_evaluation,
    by_server,
    final,
    over_seeds,
    spent,
)

Mode = Literal["max", "min"]

SMALLER_IS_BETTER = ("loss", "squared_error", "absolute_error")

_SUMMARY = pa.schema(
    [
        ("variant", pa.string()),
        ("strategy", pa.string()),
        ("level", pa.string()),
        ("settings", pa.string()),
        ("status", pa.string()),
        ("n_runs", pa.int64()),
        ("n_complete", pa.int64()),
        ("n_seeds", pa.int64()),
        ("metric", pa.string()),
        ("mode", pa.string()),
        ("utility", pa.float64()),
        ("half_width", pa.float64()),
        ("epsilon", pa.float64()),
        ("epsilon_rdp", pa.float64()),
        ("accountant", pa.string()),
        ("delta", pa.float64()),
        ("kind", pa.string()),
        ("measured_by", pa.string()),
        ("pareto", pa.bool_()),
        ("bytes_up", pa.float64()),
        ("bytes_down", pa.float64()),
        ("seconds", pa.float64()),
    ]
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a set of runs says.

    Attributes:
        metric: the metric that says which variant is better.
        mode: whether more of it is better.
        variants: by kind and level of privacy, the smallest epsilon first and no DP last; then the better first.
        front: the variants that are on the Pareto front of privacy and utility.
        varied: dotted keys that differ between variants.
        unevaluated: runs that hold no evaluated round.
        judge: which means all variants are judged by.
        cost: what all private runs cost together; None without any.
    """

    metric: str
    mode: Mode
    variants: tuple[Variant, ...]
    front: tuple[Variant, ...]
    varied: tuple[str, ...]
    unevaluated: tuple[RunRecords, ...]
    judge: Judge = by_evaluation
    cost: SearchCost | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of differential privacy among the variants, by name."""
        return tuple(sorted({variant.kind for variant in self.variants if variant.is_private}))

    @property
    def best_private(self) -> Variant | None:
        """The private variant with the best utility; None where none has any."""
        scored = [v for v in self.variants if v.is_private and v.utility is not None and v.utility.is_finite]
        return max(scored, key=lambda variant: goodness(variant, self.mode), default=None)

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
    names = _Names(labels.varied(settings), labels.telling(settings), len(labels.kinds(settings)) > 1)
    judge = judge_of(runs, metric)
    found = [
        _variant(tuple(group), own, names, metric, judge) for group, own in zip(groups.values(), settings, strict=True)
    ]
    variants = tuple(sorted(found, key=lambda variant: _order(variant, found, mode)))
    unevaluated = tuple(run for run in runs if final(run, metric, judge) is None)
    front = front_of_each_kind(variants, mode)
    return Comparison(metric, mode, variants, front, names.varied, unevaluated, judge, search_cost(runs))


def judge_of(runs: Sequence[RunRecords], metric: str) -> Judge:
    """The server's own test set where every run has it and some have nothing else: all are judged by the same rows."""
    evaluated = [run for run in runs if final(run, metric) is not None]
    have_central = all(final(run, metric, by_server) is not None for run in evaluated)
    some_lack = any(not any(metric in record.metrics for record in run.rounds) for run in evaluated)
    return by_server if have_central and some_lack else by_evaluation


def metric_and_mode(runs: Sequence[RunRecords]) -> tuple[str, Mode]:
    """The first experiment's search metric; where no run has it, the first that there is, or the loss."""
    experiment = runs[0].experiment
    search = experiment.get("search", {})
    metric = str(search.get("metric", "accuracy"))
    recorded = dict.fromkeys(name for run in runs for record in run.rounds for name in record.evaluation)
    mode: Mode = "min" if search.get("mode") == "min" else "max"
    if recorded and metric not in recorded:
        metric = next((name for name in recorded if name != "loss"), "loss")
    return metric, "min" if metric in SMALLER_IS_BETTER else mode


def front_of_each_kind(variants: Sequence[Variant], mode: Mode = "max") -> tuple[Variant, ...]:
    """The Pareto front, where epsilons of different kinds of privacy are not compared: they bound different things."""
    kinds = {variant.kind for variant in variants if variant.is_private}
    if len(kinds) < 2:
        return pareto_front(variants, mode)
    fronts = [pareto_front([v for v in variants if v.kind in (kind, "none")], mode) for kind in sorted(kinds)]
    overall = pareto_front(variants, mode)
    private = tuple(variant for front in fronts for variant in front if variant.is_private)
    return (*private, *(variant for variant in overall if not variant.is_private))


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


@dataclass(frozen=True)
class _Names:
    """What the names of variants are made from.

    Attributes:
        varied: dotted keys that differ between variants.
        telling: those of them that tell variants apart.
        has_kinds: whether kinds of privacy are mixed.
    """

    varied: tuple[str, ...]
    telling: tuple[str, ...]
    has_kinds: bool


def _variant(
    runs: tuple[RunRecords, ...], settings: Mapping[str, Any], names: _Names, metric: str, judge: Judge
) -> Variant:
    counted = tuple(run for run in runs if run.status == "complete") or runs
    strategy, others = labels.strategy_label(settings, names.telling), labels.other_labels(settings, names.telling)
    kind = str(settings["privacy.name"]) if names.has_kinds and labels.is_private(settings) else ""
    level = labels.level_label(settings, names.telling, kind)
    epsilon, epsilon_rdp = spent(counted)
    return Variant(
        label=labels.SEPARATOR.join([strategy, level, *others]),
        strategy=str(settings.get("strategy.name", "?")),
        family=labels.SEPARATOR.join([strategy, *([kind] if kind else []), *others]),
        level=level,
        settings={key: settings[key] for key in names.varied if key in settings},
        runs=runs,
        counted=counted,
        metric=metric,
        utility=over_seeds(counted, lambda run: final(run, metric, judge)),
        epsilon=epsilon,
        epsilon_rdp=epsilon_rdp,
        accountant=accountant_of(counted),
        judge=judge,
    )


def _order(variant: Variant, among: Sequence[Variant], mode: Mode) -> tuple[Any, ...]:
    level = [other for other in among if other.level == variant.level]
    kind = variant.kind if len({other.kind for other in among if other.is_private}) > 1 else ""
    planned = variant.experiment.get("privacy", {}).get("epsilon")
    epsilon = planned if planned is not None else min(map(cost, level))
    return (variant.level == "no DP", kind, epsilon, variant.level, -goodness(variant, mode), variant.label)


def as_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Heading to text, a row a variant, in the order of the comparison; all rows have the same headings."""
    return [_row(comparison, variant) for variant in comparison.variants]


def _row(comparison: Comparison, variant: Variant) -> dict[str, str]:
    row = {
        "variant": variant.label,
        "strategy": variant.strategy,
        "epsilon": epsilon_shown(variant),
        comparison.metric: numbers.with_interval(variant.utility),
        "seeds": str(len(variant.seeds)),
        "Pareto": "yes" if comparison.on_front(variant) else "",
        "status": variant.status,
    }
    return row | _costs(variant) if _protections_differ(comparison) else row


def epsilon_shown(variant: Variant) -> str:
    """The epsilon spent with the accountant whose figure it is: ``3.99 (PLD)``."""
    if not variant.is_private:
        return "no DP"
    return numbers.epsilon(variant.epsilon) + (f" ({variant.accountant})" if variant.accountant else "")


def _costs(variant: Variant) -> dict[str, str]:
    return {"sent up": numbers.size(variant.bytes_up()), "time": numbers.duration(sum(variant.seconds().values()))}


def _protections_differ(comparison: Comparison) -> bool:
    return len({str(variant.experiment.get("protection")) for variant in comparison.variants}) > 1


def write_summary(path: Path, comparison: Comparison) -> None:
    """Write a Parquet file with a row a variant; readers see the whole file or none.

    What all private runs cost together is in the schema's metadata, as JSON under ``fedray.search``.
    Keep it out of folders named ``trials``, where every Parquet file is taken for a run's records.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_summary(comparison, variant) for variant in comparison.variants]
    partial = path.with_suffix(".partial")
    metadata = {"fedray.search": as_metadata(comparison.cost)} if comparison.cost else {}
    pq.write_table(pa.Table.from_pylist(rows, schema=_SUMMARY).replace_schema_metadata(metadata), partial)
    partial.replace(path)


def _summary(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    utility = variant.utility
    return {
        "variant": variant.label,
        "strategy": variant.strategy,
        "level": variant.level,
        "settings": json.dumps(variant.settings, default=str),
        "status": variant.status,
        "n_runs": len(variant.runs),
        "n_complete": variant.n_complete,
        "n_seeds": len(variant.seeds),
        "metric": comparison.metric,
        "mode": comparison.mode,
        "utility": utility.mean if utility else None,
        "half_width": utility.half_width if utility else None,
        "epsilon": variant.epsilon,
        "epsilon_rdp": variant.epsilon_rdp,
        "accountant": variant.accountant,
        "kind": variant.kind,
        "measured_by": "owners" if variant.is_judged_by_owners else "server",
        "delta": variant.experiment.get("privacy", {}).get("delta") if variant.is_private else None,
        "pareto": comparison.on_front(variant),
        "bytes_up": variant.bytes_up(),
        "bytes_down": variant.bytes_down(),
        "seconds": sum(variant.seconds().values()),
    }
