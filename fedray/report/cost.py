"""What all private runs of a comparison cost together: composed, and with the best one alone published.

Composition is proper where records hold what owners were charged: run by run, owner by owner. Where they do not, or
where runs are on different data, epsilons and deltas are added up, which is a safe bound for one kind of unit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray.privacy.events import Charge, Event, Unit, at_example_level
from fedray.privacy.tuning import Charges, RandomStopping, composed, decoded, selected
from fedray.records import RunRecords
from fedray.report.kinds import is_correlated, kind_of, section_of, unit_of
from fedray.report.variant import largest, spent
from fedray.values import Spent


@dataclass(frozen=True)
class SearchCost:
    """What a set of private runs costs.

    Attributes:
        n_runs: private runs.
        unit: what epsilon is about.
        composed: for whoever learns of all runs.
        is_plain_sum: whether ``composed`` has epsilons that were added up; its accountant then says nothing.
        selected: for whoever sees the best run alone; None where that is not known, or would save nothing.
        stopping: how the number of runs was drawn, or might have been.
        was_drawn: whether it was.
    """

    n_runs: int
    unit: Unit
    composed: Spent
    is_plain_sum: bool
    selected: Spent | None
    stopping: RandomStopping | None
    was_drawn: bool

    @property
    def published(self) -> Spent:
        """What the best run costs with the search that found it."""
        return self.selected if self.was_drawn and self.selected else self.composed


def search_cost(runs: Iterable[RunRecords]) -> SearchCost | None:
    """What all private runs cost together; None where there is none."""
    private = [run for run in runs if kind_of(run.experiment) != "none"]
    if not private:
        return None
    unit: Unit = "owner" if all(unit_of(run.experiment) == "owner" for run in private) else "example"
    found = [_charges(run, unit) for run in private]
    total, is_plain_sum = _composed(private, found, unit)
    stopping, was_drawn = _stopping(private)
    known = [charges for charges in found if charges is not None]
    best = None
    if stopping is not None and len(known) == len(found) and len(_groups(private)) == 1:
        best = selected(known, stopping, _delta(private))
    if best is not None and not was_drawn and best.epsilon >= total.epsilon:
        best = None
    return SearchCost(len(private), unit, total, is_plain_sum, best, stopping, was_drawn)


def _composed(runs: Sequence[RunRecords], found: Sequence[Charges | None], unit: Unit) -> tuple[Spent, bool]:
    """All runs together, and whether figures had to be added up."""
    known = [(run, charges) for run, charges in zip(runs, found, strict=True) if charges is not None]
    unknown = [run for run, charges in zip(runs, found, strict=True) if charges is None]
    groups = _groups([run for run, _ in known])
    parts = [
        composed([one for run, one in known if any(run is member for member in group)], _delta(group))
        for group in groups
    ]
    parts += [_alone(run, unit) for run in unknown]
    if len(parts) == 1:
        return parts[0], bool(unknown)
    epsilon, epsilon_rdp = sum(part.epsilon for part in parts), sum(part.epsilon_rdp for part in parts)
    return Spent(epsilon, "RDP", epsilon_rdp, sum(part.delta for part in parts)), True


def _groups(runs: Sequence[RunRecords]) -> list[list[RunRecords]]:
    """Runs on the same data: only there does an owner's name mean the same rows."""
    groups: dict[str, list[RunRecords]] = {}
    for run in runs:
        groups.setdefault(_text(run.experiment.get("data")), []).append(run)
    return list(groups.values())


def _delta(runs: Sequence[RunRecords]) -> float:
    return min(float(section_of(run.experiment).get("delta", 0.0)) for run in runs)


def _alone(run: RunRecords, unit: Unit) -> Spent:
    """A run by its epsilon: on record, or planned if that is more and the run did not complete."""
    section = section_of(run.experiment)
    planned = section.get("epsilon") if run.status != "complete" else None
    epsilon, epsilon_rdp = (largest([value, planned]) or 0.0 for value in spent([run]))
    if unit_of(run.experiment) != unit:
        epsilon = epsilon_rdp = math.inf
    return Spent(epsilon, "RDP", epsilon_rdp, float(section.get("delta", 0.0)))


def _charges(run: RunRecords, unit: Unit) -> Charges | None:
    """What each owner was charged; None where records do not say. A run that was cut off may have begun a round."""
    last = run.rounds[-1] if run.rounds else None
    if last is None or len(last.owners) < last.n_owners:
        return None
    found = {line.name: decoded(line.charges) for line in last.owners}
    if any(line.epsilon is None or not math.isfinite(line.epsilon) for line in last.owners):
        return None
    if run.status not in ("complete", "exhausted") and not is_correlated(run.experiment):
        further = _one_more_round(run)
        found = {name: None if one is None else (*one, *further.get(name, ())) for name, one in found.items()}
    charges = {name: one for name, one in found.items() if one is not None}
    if len(charges) < len(found):
        return None
    if unit_of(run.experiment) == unit:
        return charges
    return {name: tuple(map(_of_one_row, one)) for name, one in charges.items()}


def _of_one_row(charge: Charge) -> Charge:
    return Charge(at_example_level(charge.event), charge.count)


def _one_more_round(run: RunRecords) -> dict[str, tuple[Charge, ...]]:
    """The most that any one round on record has added to each owner's charges."""
    before: dict[tuple[str, Event], int] = {}
    most: dict[tuple[str, Event], int] = {}
    for record in run.rounds:
        now = {
            (line.name, charge.event): charge.count for line in record.owners for charge in decoded(line.charges) or ()
        }
        for key, count in now.items():
            most[key] = max(most.get(key, 0), count - before.get(key, 0))
        before = now
    names = {name for name, _ in most}
    return {name: tuple(Charge(event, n) for (owner, event), n in most.items() if owner == name) for name in names}


def _stopping(runs: Sequence[RunRecords]) -> tuple[RandomStopping | None, bool]:
    """How the number of runs was drawn; or how it might have been, where all have the same privacy."""
    draws: list[Mapping[str, Any]] = [run.experiment.get("search", {}).get("draws") or {} for run in runs]
    if draws[0].get("name") == "random_stopping" and all(one == draws[0] for one in draws):
        return RandomStopping(draws[0]["distribution"], float(draws[0]["mean"])), True
    alike = {_text(section_of(run.experiment)) for run in runs}
    return (RandomStopping("geometric", float(len(runs))) if len(runs) > 1 and len(alike) == 1 else None), False


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def as_metadata(cost: SearchCost) -> str:
    """The same as JSON, for a summary's metadata; an epsilon that nothing bounds is null."""
    return json.dumps(
        {
            "n_runs": cost.n_runs,
            "unit": cost.unit,
            "composed": _as_json(cost.composed, "sum" if cost.is_plain_sum else cost.composed.accountant),
            "selected": _as_json(cost.selected, cost.selected.accountant) if cost.selected else None,
            "draws": {"distribution": cost.stopping.distribution, "mean": cost.stopping.mean}
            if cost.stopping
            else None,
            "was_drawn": cost.was_drawn,
        }
    )


def _as_json(spent: Spent, accountant: str) -> dict[str, Any]:
    epsilon = spent.epsilon if math.isfinite(spent.epsilon) else None
    return {"epsilon": epsilon, "accountant": accountant, "delta": spent.delta}
