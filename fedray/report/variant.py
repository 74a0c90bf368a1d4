"""A variant: runs whose experiments are equal but for the seed, and what can be said of them together.

Figures are means over seeds. Where some runs of a variant completed and others did not, figures are taken
from the completed ones (``counted``); where none completed, from what there is. Repeats of one seed are
averaged first, so that they do not pass for more seeds than there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedray.records import RunRecords
from fedray.report.intervals import Interval, interval
from fedray.report.kinds import Kind, has_secret_cohorts, kind_of
from fedray.report.profile import named
from fedray.values import Accountant, OwnerRecord, RoundRecord

TOTALS = ("total", "round")
"""Keys of ``RoundRecord.seconds`` that are a round's total and no phase."""
MISSED = ("absent", "dropped", "rejected", "refused", "exhausted", "failed", "unopened")
"""Outcomes of an owner that was asked and whose update entered no opened sum."""

Judge = Callable[[RoundRecord], Mapping[str, float]]
"""The means by which a round is judged."""


def by_evaluation(record: RoundRecord) -> Mapping[str, float]:
    """Owners' held-out figures; the server's own where owners gave none."""
    return record.evaluation


def by_server(record: RoundRecord) -> Mapping[str, float]:
    """Figures on the server's own test set."""
    return record.central_metrics


@dataclass(frozen=True, slots=True)
class OwnerSummary:
    """One owner over all counted runs of a variant.

    Attributes:
        n_holdout: held-out rows; the largest number seen.
        utility: final metric on the owner's held-out rows, over seeds; None where it has none.
        epsilon: largest epsilon that it spent in one run; None without differential privacy.
        outcomes: how often each outcome befell it, over all rounds and runs.
        seconds: mean seconds of training in a run.
        staleness: rounds that its updates were old, on the mean; 0 where rounds wait for their owners.
    """

    name: str
    n_holdout: int
    utility: Interval | None
    epsilon: float | None
    epsilon_rdp: float | None
    outcomes: Mapping[str, int]
    seconds: float
    staleness: float = 0.0


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: human name, unique in its comparison: ``fedprox mu=0.1 · epsilon=4``.
        strategy: name of the strategy: ``fedprox``.
        family: the label without the level of privacy: ``fedprox mu=0.1``.
        level: the level of privacy that was planned: ``epsilon=4``, ``noise=1.1``, ``owner epsilon=4`` where kinds are
            mixed, or ``no DP``.
        settings: the settings that differ between the variants of the comparison.
        runs: all runs.
        counted: the runs that figures are taken from.
        metric: the metric that says which variant is better.
        utility: its final value over seeds; None where no round was evaluated.
        epsilon: largest epsilon that any owner spent in any counted run; None without DP.
        epsilon_rdp: the same by Renyi DP.
        accountant: whose figure ``epsilon`` is.
        judge: which means ``utility`` and curves are taken from.
    """

    label: str
    strategy: str
    family: str
    level: str
    settings: Mapping[str, Any]
    runs: tuple[RunRecords, ...]
    counted: tuple[RunRecords, ...]
    metric: str
    utility: Interval | None
    epsilon: float | None
    epsilon_rdp: float | None
    accountant: Accountant | None = None
    judge: Judge = by_evaluation

    @property
    def experiment(self) -> Mapping[str, Any]:
        return self.runs[0].experiment

    @property
    def is_private(self) -> bool:
        return self.kind != "none"

    @property
    def kind(self) -> Kind:
        return kind_of(self.experiment)

    @property
    def has_secret_cohorts(self) -> bool:
        """Whether its epsilon counts on it that nobody learns who took part when."""
        return any(has_secret_cohorts(run) for run in self.runs)

    @property
    def is_judged_by_owners(self) -> bool:
        """Whether its figures are means over owners' held-out rows, and not of the server's own test set."""
        has_any = any(self.metric in record.metrics for run in self.counted for record in run.rounds)
        return self.judge is by_evaluation and has_any

    @property
    def seeds(self) -> tuple[int, ...]:
        """Distinct seeds of the counted runs."""
        return tuple(sorted({seed_of(run) for run in self.counted}))

    @property
    def n_complete(self) -> int:
        return sum(run.status == "complete" for run in self.runs)

    @property
    def status(self) -> str:
        """How the runs ended, in words: ``complete``, ``failed`` or ``2 of 3 complete``."""
        endings = {run.status for run in self.runs}
        return endings.pop() if len(endings) == 1 else f"{self.n_complete} of {len(self.runs)} complete"

    def curve(self, metric: str | None = None) -> list[tuple[int, Interval]]:
        """The metric per evaluated round, over seeds."""
        name = metric or self.metric
        by_round: dict[int, list[tuple[int, float]]] = {}
        for run in self.counted:
            for record in run.rounds:
                if name in self.judge(record):
                    by_round.setdefault(record.round, []).append((seed_of(run), self.judge(record)[name]))
        points = [(number, _interval_by_seed(pairs)) for number, pairs in sorted(by_round.items())]
        return [(number, point) for number, point in points if point is not None]

    def epsilon_curve(self) -> list[tuple[int, float]]:
        """Largest epsilon of any counted run after each round."""
        rounds = sorted({record.round for run in self.counted for record in run.rounds})
        spent = [(number, largest(_epsilons_at(self.counted, number))) for number in rounds]
        return [(number, epsilon) for number, epsilon in spent if epsilon is not None]

    def central(self) -> Interval | None:
        """Final metric on the server's own test set, over seeds."""
        return over_seeds(self.counted, lambda run: final(run, self.metric, by_server))

    def seconds(self) -> dict[str, float]:
        """Mean seconds of a run by phase; ``other`` is what the round's total holds beyond its phases."""
        phases = dict.fromkeys(key for run in self.counted for record in run.rounds for key in record.seconds)
        sums = {phase: self._mean_sum(partial(_phase, phase)) for phase in phases}
        total = max((sums.pop(key) for key in TOTALS if key in sums), default=0.0)
        rest = total - sum(sums.values())
        return {**sums, **({"other": rest} if rest > 1e-9 else {})}

    def work(self) -> dict[str, float]:
        """Mean seconds of a run that all processes of owners together spent, by kind of work; empty where unknown."""
        kinds = dict.fromkeys(kind for run in self.counted for record in run.rounds for kind in record.work)
        return named({kind: self._mean_sum(partial(_kind, kind)) for kind in kinds})

    def bytes_up(self) -> float:
        """Mean bytes of sealed updates that the server received in a run."""
        return self._mean_sum(lambda record: record.bytes_up)

    def bytes_down(self) -> float:
        """Mean bytes of models sent in a run."""
        return self._mean_sum(lambda record: record.bytes_down)

    def outcomes(self) -> Counter[str]:
        """How often each outcome befell any owner, over all rounds of all runs."""
        return Counter(o.outcome for run in self.runs for record in run.rounds for o in record.owners)

    def reasons(self) -> list[tuple[str, str, int]]:
        """(outcome, reason, how often) of owners that gave no update, most frequent first."""
        lines = (line for run in self.runs for record in run.rounds for line in record.owners)
        counts = Counter((line.outcome, line.reason) for line in lines if line.outcome in MISSED)
        return [(outcome, reason, count) for (outcome, reason), count in counts.most_common()]

    def owners(self) -> list[OwnerSummary]:
        """Every owner that any counted run has a line of, by name."""
        lines: dict[str, list[OwnerRecord]] = {}
        for line in (line for run in self.counted for record in run.rounds for line in record.owners):
            lines.setdefault(line.name, []).append(line)
        finals = [(seed_of(run), _final_owners(run, self.metric)) for run in self.counted]
        return [_owner(name, lines[name], finals, len(self.counted)) for name in sorted(lines)]

    def _mean_sum(self, value: Callable[[RoundRecord], float]) -> float:
        total = sum(value(record) for run in self.counted for record in run.rounds)
        return total / len(self.counted) if self.counted else 0.0


def seed_of(run: RunRecords) -> int:
    return int(run.experiment.get("seed", 0))


def over_seeds(runs: Iterable[RunRecords], value: Callable[[RunRecords], float | None]) -> Interval | None:
    """Mean and interval over seeds of a value of each run; repeats of a seed are averaged first."""
    return _interval_by_seed((seed_of(run), value(run)) for run in runs)


def _interval_by_seed(pairs: Iterable[tuple[int, float | None]]) -> Interval | None:
    by_seed: dict[int, list[float]] = {}
    for seed, value in pairs:
        if value is not None:
            by_seed.setdefault(seed, []).append(value)
    return interval([sum(values) / len(values) for values in by_seed.values()])


def final(run: RunRecords, metric: str, judge: Judge = by_evaluation) -> float | None:
    """The metric's value in the last round that has it; None where none has."""
    found = (judge(record) for record in reversed(run.rounds) if metric in judge(record))
    return next((values[metric] for values in found), None)


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of the values that there are."""
    return max((value for value in values if value is not None), default=None)


def spent(runs: Iterable[RunRecords]) -> tuple[float | None, float | None]:
    """Largest epsilon that any owner spent in any of the runs, and largest by RDP."""
    records = [record for run in runs for record in run.rounds]
    lines = [line for record in records for line in record.owners]
    return (
        largest([*(r.epsilon for r in records), *(o.epsilon for o in lines)]),
        largest([*(r.epsilon_rdp for r in records), *(o.epsilon_rdp for o in lines)]),
    )


def accountant_of(runs: Iterable[RunRecords]) -> Accountant | None:
    """Whose figure the largest epsilon of the runs is; None where none is on record."""
    records = [record for run in runs for record in run.rounds if record.epsilon is not None]
    most = max(records, key=lambda record: record.epsilon or 0.0, default=None)
    return most.accountant if most else None


def _phase(phase: str, record: RoundRecord) -> float:
    return record.seconds.get(phase, 0.0)


def _kind(kind: str, record: RoundRecord) -> float:
    return record.work.get(kind, 0.0)


def _epsilons_at(runs: Iterable[RunRecords], number: int) -> list[float | None]:
    return [record.epsilon for run in runs for record in run.rounds if record.round == number]


def _final_owners(run: RunRecords, metric: str) -> dict[str, float]:
    record = next((record for record in reversed(run.rounds) if metric in record.metrics), None)
    return {o.name: o.metrics[metric] for o in record.owners if metric in o.metrics} if record else {}


def _owner(
    name: str, lines: Sequence[OwnerRecord], finals: Sequence[tuple[int, Mapping[str, float]]], n_runs: int
) -> OwnerSummary:
    return OwnerSummary(
        name=name,
        n_holdout=max(line.n_holdout for line in lines),
        utility=_interval_by_seed((seed, values.get(name)) for seed, values in finals),
        epsilon=largest(line.epsilon for line in lines),
        epsilon_rdp=largest(line.epsilon_rdp for line in lines),
        outcomes=Counter(line.outcome for line in lines),
        seconds=sum(line.seconds for line in lines) / n_runs,
        staleness=_mean([line.staleness for line in lines if line.outcome in ("update", "partial")]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
