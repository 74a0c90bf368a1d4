"""Metrics as Prometheus reads them: scraped from Ray's own export and held against records, and what Grafana asks for.

Without ``ray[default]`` Ray exports nothing, and there is nothing to scrape.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from urllib.request import urlopen

import pytest
import ray
from conftest_ray import own_ray

import fedray
from fedray.actors.metrics import COUNTERS, GAUGES, HISTOGRAM, SECONDS, Metrics, exported_names
from fedray.config import Experiment
from fedray.values import Outcome, OwnerRecord, RoundRecord

ROOT = Path(__file__).parents[2]
BOARD: dict[str, Any] = json.loads((ROOT / "clusters" / "grafana" / "fedray.json").read_text())
RUN = "metered 3f2a"
REPORTED_MS = 500

Series = tuple[str, frozenset[tuple[str, str]]]
"""A sample's name, and its tags without those that Ray adds."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundRecord, RoundRecord]:
    """Two rounds of a run, of which the second lost an owner, was not evaluated and cost privacy."""
    experiment = Experiment(rounds=2, data={"name": "digits", "owners": 3}, model="logistic")
    first, second = fedray.run(experiment, tmp_path_factory.mktemp("run"), in_process=True)
    gone = OwnerRecord("owner-02", "absent", "its actor died", 0, 0.0, None, None, 0)
    owners = (*second.owners[:2], gone)
    return first, replace(second, n_updates=2, owners=owners, metrics={}, epsilon=1.25)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    pytest.importorskip("prometheus_client", reason="ray[default] is not installed: Ray exports no metrics")
    with own_ray(1, _system_config={"metrics_report_interval_ms": REPORTED_MS}):
        yield


@ray.remote(num_cpus=0)
class Reporter:
    """Stands in for the server: reports from a process of its own."""

    def __init__(self) -> None:
        self._metrics = Metrics(RUN)

    def report(self, record: RoundRecord) -> None:
        self._metrics.report(record)

    def restarted(self) -> None:
        self._metrics.restarted()


@pytest.fixture
def reporter(ray_here: None) -> Iterator[Any]:
    reporter = Reporter.remote()
    yield reporter
    ray.kill(reporter)


def page() -> str:
    """What the node's agent exports, as Prometheus gets it."""
    (node,) = ray.nodes()
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def scraped() -> dict[Series, float]:
    """All series of ``RUN`` that the node's agent exports now."""
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(page()))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("run") == RUN]
    return {(sample.name, _tags(sample.labels)): sample.value for sample in samples}


def _tags(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    ours = {"le", *(tag for tags in GAUGES.values() for tag in tags)}
    return frozenset((name, value) for name, value in labels.items() if name in ours)


def until(holds: Callable[[dict[Series, float]], bool], timeout_s: float = 60.0) -> dict[Series, float]:
    """What is scraped once it holds, or at last."""
    deadline = time.monotonic() + timeout_s
    while not holds(found := scraped()) and time.monotonic() < deadline:
        time.sleep(REPORTED_MS / 1000)
    return found


def series(name: str, /, **tags: str) -> Series:
    return f"ray_{name}", frozenset(tags.items())


def test_what_prometheus_scrapes_is_what_the_records_say(
    reporter: Any, records: tuple[RoundRecord, RoundRecord]
) -> None:
    first, second = records
    ray.get(reporter.report.remote(first))
    found = until(lambda found: found.get(series("fedray_round")) == 1)
    assert found[series("fedray_updates")] == first.n_updates == 3
    assert found[series("fedray_owners", outcome="update")] == 3
    assert found[series("fedray_owners", outcome="absent")] == 0
    assert series("fedray_epsilon") not in found
    assert series("fedray_server_restarts_total") not in found

    ray.get([reporter.restarted.remote(), reporter.report.remote(second)])
    found = until(lambda found: found.get(series("fedray_round")) == 2)
    assert found[series("fedray_updates")] == 2
    outcomes = {dict(tags)["outcome"]: value for (name, tags), value in found.items() if name == "ray_fedray_owners"}
    assert outcomes == {**dict.fromkeys(outcomes, 0), "update": 2, "absent": 1}
    assert set(outcomes) == {name for literal in get_args(Outcome) for name in get_args(literal)}
    assert found[series("fedray_epsilon")] == 1.25
    for phase in ("train", "open", "evaluate"):
        assert found[series("fedray_round_seconds", phase=phase)] == second.seconds[phase]
    assert series("fedray_round_seconds", phase="total") not in found
    for name, mean in first.metrics.items():
        assert found[series("fedray_metric", name=name, measured_on="owners")] == mean
    assert found[series("fedray_bytes_up_total")] == first.bytes_up + second.bytes_up
    assert found[series("fedray_bytes_down_total")] == first.bytes_down + second.bytes_down
    assert found[series("fedray_server_restarts_total")] == 1
    durations = [record.seconds["total"] for record in records]
    for bound in SECONDS:
        counted = found[series("fedray_round_duration_seconds_bucket", le=str(bound))]
        assert counted == sum(duration <= bound for duration in durations)
    assert {name for name, _ in found} == exported_names()
    assert not any(owner.name in page() for owner in second.owners), "a million owners would be a million series"


def panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_every_panel_asks_for_series_and_tags_that_are_reported() -> None:
    asked = [set(re.findall(r"\b(?:ray_)?fedray_\w+", expression)) for expression in expressions()]
    assert all(asked)
    assert set().union(*asked) <= exported_names()
    bare = {re.sub(r"_(?:total|bucket|count|sum)$", "", name.removeprefix("ray_")) for name in set().union(*asked)}
    assert bare == {*GAUGES, *COUNTERS, HISTOGRAM}, "a metric that no panel shows"
    tags = {"run", "le", *(tag for tags in GAUGES.values() for tag in tags)}
    for expression in expressions():
        chosen = re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression)
        grouped = [word for by in re.findall(r"by \(([^)]*)\)", expression) for word in re.split(r",\s*", by)]
        assert {*chosen, *grouped} <= tags, expression
        assert 'run=~"$run"' in expression


def test_the_dashboard_has_what_grafana_needs_to_import_it() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert set(re.findall(r"ray_fedray_\w+", variables["run"]["query"]["query"])) <= exported_names()
    ours = {"type": "prometheus", "uid": "${datasource}"}
    for part in (variables["run"], *panels(), *(target for panel in panels() for target in panel["targets"])):
        assert part["datasource"] == ours
    assert BOARD["id"] is None
    assert re.fullmatch(r"[a-z0-9-]{1,40}", BOARD["uid"])
    assert BOARD["schemaVersion"] >= 39
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    assert all(panel["title"] for panel in panels())


def test_no_two_panels_overlap() -> None:
    taken = [
        (column, row)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) < 24
