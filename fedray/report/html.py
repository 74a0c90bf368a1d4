"""One self-contained HTML page about a set of runs. Owns its contents; ``template.html`` owns its form.

Owners' names, settings and reasons are untrusted text: the template escapes everything but the figures,
which are made here. The page fetches nothing and runs no script. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedray.records import RunRecords
from fedray.report import bars, numbers, plots, promises, wording
from fedray.report.canvas import N_PHASES, Drawing, Series, legend, series_of
from fedray.report.comparison import Comparison, compare, epsilon_shown
from fedray.report.listing import yaml_lines
from fedray.report.variant import MISSED, OwnerSummary, Variant, final, largest, seed_of

_HERE = Path(__file__).parent
MAX_OWNER_ROWS = 200
MAX_REASONS = 10
_MEANINGS = {
    "update": "the owner did all its work",
    "partial": "it was slow, and sent what it had",
    "absent": "its actor was gone, or it did not get through the protocol's first stages",
    "dropped": "it was too slow, for a strategy that takes no partial work or for the closing of the round",
    "rejected": "its update was not finite or misshapen",
    "refused": "what it was asked breaks a rule, so that it did not do it",
    "exhausted": "its privacy budget is spent",
    "failed": "it raised an error",
    "unopened": "it sent its update, but the round's sum was never opened",
}


_ENDINGS = {"running": "running, or killed", "exhausted": "budgets exhausted"}


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
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))  # ours, and free of '<'
    return environment.get_template("template.html").render(style=style, **_contents(comparison))


def _contents(comparison: Comparison) -> dict[str, Any]:
    series = series_of(comparison)
    phases, outcomes = _phases(comparison), _outcomes(comparison)
    work = _work(comparison, phases)
    return {
        "title": _title(comparison),
        "subtitle": _subtitle(comparison),
        "facts": _facts(comparison),
        "metric": comparison.metric,
        "mode": comparison.mode,
        "single": len(comparison.variants) == 1,
        "answer": wording.answer(comparison),
        "measured": " ".join(wording.measured(comparison)),
        "costs": wording.costs(comparison.cost),
        "caveats": wording.caveats(comparison),
        "is_replayable": promises.is_replayable(comparison),
        "promises": promises.promises(comparison),
        "variants": [_variant(comparison, variant, phases, work, outcomes) for variant in comparison.variants],
        "has_epsilon": any(variant.is_private for variant in comparison.variants),
        "has_central": has_central(comparison),
        "has_kinds": len(comparison.kinds) > 1,
        "figures": _figures(comparison, series, phases, work),
        "series": list(series.values()),
        "n_grey": sum(member.index is None for member in series.values()),
        "legend_entries": legend(series),
        "phases": phases,
        "work": work,
        "outcomes": outcomes,
        "meanings": [f"{outcome.capitalize()}: {_MEANINGS[outcome]}." for outcome in outcomes],
        "runs": [_run(comparison, variant, run) for variant in comparison.variants for run in variant.runs],
        "environment": _environment(comparison.runs),
        "max_owner_rows": MAX_OWNER_ROWS,
    }


def has_central(comparison: Comparison) -> bool:
    """Whether a column of its own for the server's test set tells more than the metric's."""
    by_owners = any(variant.is_judged_by_owners for variant in comparison.variants)
    return by_owners and any(variant.central() for variant in comparison.variants)


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

    owners = {record.n_owners for run in comparison.runs for record in run.rounds}
    return [
        ("Data", shared("data", "name")),
        ("Owners", f"{max(owners):,}" if owners else numbers.NONE),
        ("Rounds", shared("rounds")),
        ("Model", shared("model", "name")),
        ("Cohort", shared("cohort", "name")),
        ("Privacy", shared("privacy", "name")),
        ("Protection", shared("protection", "name")),
    ]


def _lookup(experiment: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = experiment
    for key in keys:
        found = found.get(key, numbers.NONE) if isinstance(found, Mapping) else numbers.NONE
    return found


def _phases(comparison: Comparison) -> dict[str, int]:
    """Phases of a round with their colours, by first appearance; what does not fit the palette is left out."""
    phases = dict.fromkeys(phase for variant in comparison.variants for phase in variant.seconds())
    known = [phase for phase in phases if phase != "other"]
    drawn = [*known[: N_PHASES - 1], *(["other"] if "other" in phases else [])]
    return {phase: colour for colour, phase in enumerate(drawn)}


def _work(comparison: Comparison, phases: Mapping[str, int]) -> dict[str, int]:
    """Kinds of work on record with their colours: that of the phase of the same name, else one that is free."""
    kinds = dict.fromkeys(kind for variant in comparison.variants for kind in variant.work())
    taken = {kind: phases[kind] for kind in kinds if kind in phases}
    free = (colour for colour in range(N_PHASES) if colour not in taken.values())
    colours = taken | dict(zip((kind for kind in kinds if kind not in taken), free, strict=False))
    return {kind: colours[kind] for kind in kinds if kind in colours}


def _outcomes(comparison: Comparison) -> list[str]:
    """Outcomes that happened, ``update`` in any case; owners that were not asked do not count."""
    happened = set().union(*(variant.outcomes() for variant in comparison.variants)) | {"update"}
    return [outcome for outcome in _MEANINGS if outcome in happened]


def _figures(
    comparison: Comparison, series: Mapping[str, Series], phases: Mapping[str, int], work: Mapping[str, int]
) -> list[dict[str, Any]]:
    drawn = [
        plots.privacy_utility(comparison, series),
        plots.learning(comparison, series),
        plots.privacy_spent(comparison, series),
        bars.owners(comparison, series),
        bars.seconds(comparison, phases),
        bars.work(comparison, work),
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


def _variant(
    comparison: Comparison, variant: Variant, phases: Iterable[str], work: Iterable[str], outcomes: Iterable[str]
) -> dict[str, Any]:
    seconds, counts, worked = variant.seconds(), variant.outcomes(), variant.work()
    owners = variant.owners()
    return {
        "label": variant.label,
        "strategy": wording.display_name(variant),
        "level": variant.level,
        "epsilon": epsilon_shown(variant),
        "epsilon_rdp": numbers.epsilon(variant.epsilon_rdp) if variant.is_private else "no DP",
        "utility": numbers.with_interval(variant.utility),
        "central": numbers.with_interval(variant.central()),
        "on_front": comparison.on_front(variant),
        "seeds": ", ".join(map(str, variant.seeds)),
        "n_seeds": len(variant.seeds),
        "status": variant.status,
        "is_complete": variant.n_complete == len(variant.runs),
        "owners": [_owner(owner) for owner in _worst(comparison, owners)],
        "n_owners": len(owners),
        "outcomes": {outcome: counts[outcome] for outcome in outcomes},
        "is_secret": variant.has_secret_cohorts,
        "is_buffered": any(owner.staleness for owner in owners),
        "reasons": variant.reasons()[:MAX_REASONS],
        "bytes_up": numbers.size(variant.bytes_up()),
        "bytes_down": numbers.size(variant.bytes_down()),
        "seconds": {phase: numbers.duration(seconds.get(phase, 0.0)) for phase in phases},
        "total": numbers.duration(sum(seconds.values())),
        "work": {kind: numbers.duration(worked[kind]) if kind in worked else numbers.NONE for kind in work},
        "yaml": list(yaml_lines(variant.experiment, comparison.varied)),
    }


def _worst(comparison: Comparison, owners: Sequence[OwnerSummary]) -> Sequence[OwnerSummary]:
    """All owners by name; where there are too many for a page, those that fared worst."""
    if len(owners) <= MAX_OWNER_ROWS:
        return owners
    sign = 1.0 if comparison.mode == "max" else -1.0
    scored = [(sign * owner.utility.mean, owner.name, owner) for owner in owners if owner.utility is not None]
    return [owner for _, _, owner in sorted(scored, key=lambda entry: entry[:2])[:MAX_OWNER_ROWS]]


def _owner(owner: OwnerSummary) -> dict[str, Any]:
    return {
        "name": owner.name,
        "n_holdout": f"{owner.n_holdout:,}",
        "utility": numbers.with_interval(owner.utility),
        "epsilon": numbers.epsilon(owner.epsilon),
        "updates": f"{owner.outcomes.get('update', 0) + owner.outcomes.get('partial', 0):,}",
        "missed": ", ".join(f"{owner.outcomes[o]} {o}" for o in MISSED if owner.outcomes.get(o)) or numbers.NONE,
        "seconds": numbers.duration(owner.seconds),
        "staleness": f"{owner.staleness:.1f}" if owner.staleness else numbers.NONE,
    }


def _run(comparison: Comparison, variant: Variant, run: RunRecords) -> dict[str, Any]:
    return {
        "label": run.label,
        "variant": variant.label,
        "seed": str(seed_of(run)),
        "status": _ENDINGS.get(run.status, run.status),
        "is_complete": run.status == "complete",
        "rounds": f"{len(run.rounds)} of {run.experiment.get('rounds', '?')}",
        "utility": numbers.number(final(run, comparison.metric, comparison.judge)),
        "epsilon": numbers.epsilon(largest(record.epsilon for record in run.rounds)) if variant.is_private else "no DP",
        "digest": run.rounds[-1].parameters_sha256[:12] if run.rounds else numbers.NONE,
    }


def _environment(runs: Sequence[RunRecords]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    return [(key, " / ".join(dict.fromkeys(run.environment.get(key, "?") for run in runs))) for key in keys]
