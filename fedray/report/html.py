"""One self-contained HTML page about a set of runs. Owns the page's contents; ``template.html`` owns its form.

Owners' names, settings and reasons are untrusted text: the template escapes everything but the figures, which are
made here. The page fetches nothing and runs no script. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedray.records import RunRecords
from fedray.report import bars, numbers, plots, wording
from fedray.report.canvas import N_PHASES, Drawing, Series, series_of
from fedray.report.comparison import Comparison, compare
from fedray.report.intervals import Interval
from fedray.report.labels import LEVEL
from fedray.report.listing import yaml_lines
from fedray.report.variant import MISSED, OwnerSummary, Variant, final, largest, seed_of

MAX_OWNER_ROWS = 200
MAX_REASONS = 10


def write_report(runs: Sequence[RunRecords], path: Path) -> Path:
    """Write the page about one run or many; returns its path. Readers see the whole file or none.

    Raises:
        RecordsError: there are no runs.
    """
    page = render(compare(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def render(comparison: Comparison) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("fedray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=numbers.number, epsilon=numbers.epsilon, size=numbers.size, duration=numbers.duration
    )
    style = Markup(environment.loader.get_source(environment, "style.css")[0])  # type: ignore[union-attr]
    return environment.get_template("template.html").render(style=style, **_contents(comparison))


def _contents(comparison: Comparison) -> dict[str, Any]:
    series = series_of(comparison)
    phases = _phases(comparison)
    return {
        "title": _title(comparison),
        "subtitle": _subtitle(comparison),
        "facts": _facts(comparison),
        "metric": comparison.metric,
        "mode": comparison.mode,
        "single": len(comparison.variants) == 1,
        "answer": wording.answer(comparison),
        "caveats": wording.caveats(comparison),
        "is_replayable": wording.is_replayable(comparison),
        "promises": wording.promises(comparison),
        "variants": [_variant(comparison, variant, phases) for variant in comparison.variants],
        "has_epsilon": any(variant.is_private for variant in comparison.variants),
        "has_central": any(variant.central() for variant in comparison.variants),
        "figures": _figures(comparison, series, phases),
        "series": list(series.values()),
        "phases": phases,
        "runs": [_run(comparison, variant, run) for variant in comparison.variants for run in variant.runs],
        "environment": _environment(comparison.runs),
        "max_owner_rows": MAX_OWNER_ROWS,
    }


def _title(comparison: Comparison) -> str:
    names = dict.fromkeys(str(run.experiment.get("name", "experiment")) for run in comparison.runs)
    return next(iter(names)) if len(names) == 1 else f"{next(iter(names))} and {len(names) - 1} more"


def _subtitle(comparison: Comparison) -> str:
    if len(comparison.runs) == 1:
        return f"One run: {comparison.variants[0].label}"
    variants = numbers.share(len(comparison.variants), "variant")
    return f"{variants}, {numbers.share(len(comparison.runs), 'run')}"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What all runs share; a fact that differs between them says so."""

    def shared(*keys: str) -> str:
        values = dict.fromkeys(str(_lookup(run.experiment, keys)) for run in comparison.runs)
        return next(iter(values)) if len(values) == 1 else "varies"

    owners = {len(record.owners) for run in comparison.runs for record in run.rounds}
    return [
        ("Data", shared("data", "name")),
        ("Owners", f"{max(owners):,}" if owners else numbers.NONE),
        ("Rounds", shared("rounds")),
        ("Model", shared("model", "name")),
        ("Cohort", shared("cohort", "name")),
        ("Protection", shared("protection", "name")),
    ]


def _lookup(experiment: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = experiment
    for key in keys:
        found = found.get(key, numbers.NONE) if isinstance(found, Mapping) else numbers.NONE
    return found


def _phases(comparison: Comparison) -> list[str]:
    """Phases of a round, by their first appearance; what does not fit the palette is left to the table."""
    phases = dict.fromkeys(phase for variant in comparison.variants for phase in variant.seconds())
    known = [phase for phase in phases if phase != "other"]
    return [*known[: N_PHASES - 1], *(["other"] if "other" in phases else [])]


def _figures(comparison: Comparison, series: Mapping[str, Series], phases: Sequence[str]) -> list[dict[str, Any]]:
    drawn = [
        plots.privacy_utility(comparison, series),
        plots.learning(comparison, series),
        bars.owners(comparison, series),
        plots.privacy_spent(comparison, series),
        bars.seconds(comparison, phases),
    ]
    return [_figure(drawing) for drawing in drawn if drawing is not None]


def _figure(drawing: Drawing) -> dict[str, Any]:
    """The drawing for the template; its SVG is ours, with all text in it escaped by matplotlib."""
    return {
        "key": drawing.key,
        "title": drawing.title,
        "svg": Markup(drawing.svg),
        "description": drawing.description,
        "note": drawing.note,
        "legend": drawing.legend,
    }


def _variant(comparison: Comparison, variant: Variant, phases: Sequence[str]) -> dict[str, Any]:
    utility, seconds = variant.utility, variant.seconds()
    owners = variant.owners()
    varied = set(comparison.varied) | (set(LEVEL) & set(comparison.varied))
    return {
        "label": variant.label,
        "strategy": wording.display_name(variant),
        "level": variant.level,
        "epsilon": numbers.epsilon(variant.epsilon) if variant.is_private else "no DP",
        "epsilon_rdp": numbers.epsilon(variant.epsilon_rdp) if variant.is_private else "no DP",
        "utility": numbers.with_interval(utility),
        "bar": _share_of_best(comparison, utility),
        "central": numbers.with_interval(variant.central()),
        "on_front": comparison.on_front(variant),
        "seeds": ", ".join(map(str, variant.seeds)),
        "n_seeds": len(variant.seeds),
        "status": variant.status,
        "is_complete": variant.n_complete == len(variant.runs),
        "owners": [_owner(owner) for owner in _worst(comparison, owners)],
        "n_owners": len(owners),
        "outcomes": {outcome: variant.outcomes()[outcome] for outcome in ("update", "partial", *MISSED)},
        "reasons": variant.reasons()[:MAX_REASONS],
        "bytes_up": numbers.size(variant.bytes_up()),
        "bytes_down": numbers.size(variant.bytes_down()),
        "seconds": {phase: numbers.duration(seconds.get(phase, 0.0)) for phase in phases},
        "total": numbers.duration(sum(seconds.values())),
        "yaml": list(yaml_lines(variant.experiment, varied)),
    }


def _share_of_best(comparison: Comparison, utility: Interval | None) -> float | None:
    """Length of the bar in the table: the mean as a share of the largest, for metrics from 0 up."""
    means = [v.utility.mean for v in comparison.variants if v.utility is not None and v.utility.is_finite]
    if utility is None or not utility.is_finite or not means or min(means) < 0 or max(means) <= 0:
        return None
    return 100 * utility.mean / max(means)


def _worst(comparison: Comparison, owners: Sequence[OwnerSummary]) -> Sequence[OwnerSummary]:
    """All owners by name; where there are too many for a page, those that fared worst."""
    if len(owners) <= MAX_OWNER_ROWS:
        return owners
    sign = 1.0 if comparison.mode == "max" else -1.0
    scored = [owner for owner in owners if owner.utility is not None]
    return sorted(scored, key=lambda owner: (sign * owner.utility.mean, owner.name))[:MAX_OWNER_ROWS]  # type: ignore[union-attr]


def _owner(owner: OwnerSummary) -> dict[str, Any]:
    return {
        "name": owner.name,
        "n_holdout": f"{owner.n_holdout:,}",
        "utility": numbers.with_interval(owner.utility),
        "epsilon": numbers.epsilon(owner.epsilon),
        "updates": f"{owner.outcomes.get('update', 0) + owner.outcomes.get('partial', 0):,}",
        "missed": ", ".join(f"{owner.outcomes[o]} {o}" for o in MISSED if owner.outcomes.get(o)) or numbers.NONE,
        "seconds": numbers.duration(owner.seconds),
    }


def _run(comparison: Comparison, variant: Variant, run: RunRecords) -> dict[str, Any]:
    return {
        "label": run.label,
        "variant": variant.label,
        "seed": str(seed_of(run)),
        "status": "running, or killed" if run.status == "running" else run.status,
        "is_complete": run.status == "complete",
        "rounds": f"{len(run.rounds)} of {run.experiment.get('rounds', '?')}",
        "utility": numbers.number(final(run, comparison.metric)),
        "epsilon": numbers.epsilon(largest(record.epsilon for record in run.rounds)) if variant.is_private else "no DP",
        "digest": run.rounds[-1].parameters_sha256[:12] if run.rounds else numbers.NONE,
    }


def _environment(runs: Sequence[RunRecords]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    return [(key, " / ".join(dict.fromkeys(run.environment.get(key, "?") for run in runs))) for key in keys]
