"""A comparison as rows: for the terminal and for a Parquet file, one row a variant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedray.report import numbers
from fedray.report.comparison import Comparison
from fedray.report.variant import Variant

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


def as_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Heading to text, a row a variant, in the order of the comparison; all rows have the same headings."""
    return [_row(comparison, variant) for variant in comparison.variants]


def _row(comparison: Comparison, variant: Variant) -> dict[str, str]:
    return {
        "variant": variant.label,
        "strategy": variant.strategy,
        "epsilon": numbers.epsilon(variant.epsilon) if variant.is_private else "no DP",
        comparison.metric: numbers.with_interval(variant.utility),
        "seeds": str(len(variant.seeds)),
        "Pareto": "yes" if comparison.on_front(variant) else "",
        "status": variant.status,
    }


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
