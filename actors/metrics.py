"""Metrics of a run for Prometheus, by ``ray.util.metrics``: the server's process reports them once a round.

Ray's agents export them beside Ray's own where ``ray[default]`` is installed; elsewhere they go nowhere. Every series
has the tag ``run``. None has a tag for the owner: a federation may have a million of them, and Prometheus keeps every
combination of tags as a series of its own. What single owners did is in records and in the event log.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Final, get_args

from ray.util.metrics import Counter, Gauge, Histogram

from fedray.values import Outcome, RoundRecord

SECONDS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Upper bounds of the buckets of a round's wall time."""

GAUGES: Final[Mapping[str, tuple[str, ...]]] = {
    "fedray_round": (),
    "fedray_updates": (),
    "fedray_owners": ("outcome",),
    "fedray_round_seconds": ("phase",),
    "fedray_epsilon": (),
    "fedray_metric": ("name", "measured_on"),
}
"""Names to the tags that they have besides ``run``."""

COUNTERS: Final = ("fedray_bytes_up", "fedray_bytes_down", "fedray_server_restarts")
HISTOGRAM: Final = "fedray_round_duration_seconds"

_OUTCOMES: Final = tuple(name for literal in get_args(Outcome) for name in get_args(literal))
_ABOUT: Final = {
    "fedray_round": "Number of the round that ended last, from 1.",
    "fedray_updates": "Updates in the last round's sum.",
    "fedray_owners": "Owners of the last round by what became of them.",
    "fedray_round_seconds": "Wall time of the last round by phase, in seconds.",
    "fedray_epsilon": "Largest epsilon that any owner has spent.",
    "fedray_metric": "Means of the last evaluation, over owners' rows or the server's own.",
    "fedray_bytes_up": "Sealed updates and protocol messages received, in bytes.",
    "fedray_bytes_down": "Models and protocol messages sent, in bytes.",
    "fedray_server_restarts": "How often the server was started again.",
    "fedray_round_duration_seconds": "Wall time of rounds, in seconds.",
}


def exported_names() -> frozenset[str]:
    """Names under which Prometheus finds the series."""
    counters = {f"ray_{name}_total" for name in COUNTERS}
    parts = {f"ray_{HISTOGRAM}_{part}" for part in ("bucket", "count", "sum")}
    return frozenset({f"ray_{name}" for name in GAUGES} | counters | parts)


class Metrics:
    """One run's metrics, reported by this process.

    Args:
        run: the tag ``run`` of all of them: the experiment's name and what tells its runs apart.
    """

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._gauges = {name: Gauge(name, _ABOUT[name], ("run", *tags)) for name, tags in GAUGES.items()}
        self._counters = {name: Counter(name, _ABOUT[name], ("run",)) for name in COUNTERS}
        self._durations = Histogram(HISTOGRAM, _ABOUT[HISTOGRAM], list(SECONDS), ("run",))

    def report(self, record: RoundRecord) -> None:
        """Report what a round gave; its number comes last, so that who reads it finds the rest there."""
        self._set("fedray_updates", record.n_updates)
        if record.epsilon is not None:
            self._set("fedray_epsilon", record.epsilon)
        for outcome, count in _owners(record).items():
            self._set("fedray_owners", count, outcome=outcome)
        for phase, seconds in record.seconds.items():
            if phase != "total":
                self._set("fedray_round_seconds", seconds, phase=phase)
        self._durations.observe(record.seconds["total"], self._run)
        self._add("fedray_bytes_up", record.bytes_up)
        self._add("fedray_bytes_down", record.bytes_down)
        self._report_means(record)
        self._set("fedray_round", record.round)

    def restarted(self) -> None:
        """Count that the server was started again; called once by whoever started it."""
        self._add("fedray_server_restarts", 1)

    def _report_means(self, record: RoundRecord) -> None:
        """A round that was not evaluated leaves the means of the last one that was."""
        measured = {"owners": record.metrics, "train": record.train_metrics, "central": record.central_metrics}
        for measured_on, means in measured.items():
            for name, mean in means.items():
                self._set("fedray_metric", mean, name=name, measured_on=measured_on)

    def _set(self, name: str, value: float, /, **tags: str) -> None:
        self._gauges[name].set(value, {**self._run, **tags})

    def _add(self, name: str, value: float) -> None:
        if value > 0:
            self._counters[name].inc(value, self._run)


def _owners(record: RoundRecord) -> dict[str, int]:
    """How many owners had each outcome: all outcomes, since a gauge that is not set again keeps its value."""
    counts = collections.Counter(owner.outcome for owner in record.owners)
    return {name: counts[name] for name in _OUTCOMES}
