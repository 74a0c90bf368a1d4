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
from fedray.report.variant import Variant, final, over_seeds, spent

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
        ("delta", pa.float64()),
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


def as_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Heading to text, a row a variant, in the order of the comparison; all rows have the same headings."""
    return [_row(comparison, variant) for variant in comparison.variants]


def _row(comparison: Comparison, variant: Variant) -> dict[str, str]:
    row = {
        "variant": variant.label,
        "strategy": variant.strategy,
        "epsilon": numbers.epsilon(variant.epsilon) if variant.is_private else "no DP",
        comparison.metric: numbers.with_interval(variant.utility),
        "seeds": str(len(variant.seeds)),
        "Pareto": "yes" if comparison.on_front(variant) else "",
        "status": variant.status,
    }
    return row | _costs(variant) if _protections_differ(comparison) else row


def _costs(variant: Variant) -> dict[str, str]:
    return {"sent up": numbers.size(variant.bytes_up()), "time": numbers.duration(sum(variant.seconds().values()))}


def _protections_differ(comparison: Comparison) -> bool:
    return len({str(variant.experiment.get("protection")) for variant in comparison.variants}) > 1


def write_summary(path: Path, comparison: Comparison) -> None:
    """Write a Parquet file with a row a variant; readers see the whole file or none.

    Keep it out of folders named ``trials``, where every Parquet file is taken for a run's records.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [_summary(comparison, variant) for variant in comparison.variants]
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=_SUMMARY), partial)
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
        "delta": variant.experiment.get("privacy", {}).get("delta") if variant.is_private else None,
        "pareto": comparison.on_front(variant),
        "bytes_up": variant.bytes_up(),
        "bytes_down": variant.bytes_down(),
        "seconds": sum(variant.seconds().values()),
    }
