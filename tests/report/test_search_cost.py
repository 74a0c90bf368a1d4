"""What a comparison's private runs cost together: against the ledger's own composition, and against plain sums."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from report_fakes import fake_run, owner_level

from fedray.config import Experiment
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian, SampledGaussian
from fedray.privacy.tuning import RandomStopping, selected
from fedray.records import RunRecords
from fedray.report.comparison import compare, write_summary
from fedray.report.cost import SearchCost, search_cost
from fedray.report.html import write_report
from fedray.report.wording import costs

PRIVATE = {"name": "example", "epsilon": 4.0}
SGD = Charge(SampledGaussian(0.1, 1.5), 10)
ALONE = spent([Charge(SGD.event, 30)], 1e-5).epsilon
STOPPING = {"name": "random_stopping", "mean": 6.0, "distribution": "geometric"}


def run(seed: int = 0, **changes: Any) -> RunRecords:
    settings = {"privacy": PRIVATE, "seed": seed, **changes.pop("settings", {})}
    return fake_run(settings, epsilon=ALONE, charge=SGD, rounds=3, label=f"run-{seed}", **changes)


def cost_of(runs: list[RunRecords]) -> SearchCost:
    found = search_cost(runs)
    assert found is not None
    return found


def test_runs_with_charges_on_record_are_composed() -> None:
    cost = cost_of([run(seed) for seed in range(4)])
    assert cost.composed == spent([Charge(SGD.event, 120)], 1e-5)
    assert not cost.is_plain_sum
    assert cost.unit == "example"


def test_runs_without_privacy_cost_nothing_and_are_left_out() -> None:
    assert search_cost([fake_run()]) is None
    assert cost_of([fake_run(), run()]).n_runs == 1


def test_runs_on_different_data_are_added_up() -> None:
    other = {"data": {"name": "digits", "seed": 7}}
    cost = cost_of([run(0), run(1), run(2, settings=other)])
    two, one = spent([Charge(SGD.event, 60)], 1e-5), spent([Charge(SGD.event, 30)], 1e-5)
    assert cost.composed.epsilon == pytest.approx(two.epsilon + one.epsilon)
    assert cost.composed.delta == pytest.approx(2e-5)
    assert cost.is_plain_sum
    assert cost.selected is None


def test_charges_that_cannot_be_read_give_way_to_the_epsilon_on_record() -> None:
    last = run(1)
    lines = tuple(replace(line, charges="{") for line in last.rounds[-1].owners)
    forged = replace(last, rounds=(*last.rounds[:-1], replace(last.rounds[-1], owners=lines)))
    cost = cost_of([run(0), forged])
    assert cost.composed.epsilon == pytest.approx(2 * ALONE)


def test_a_run_that_was_cut_off_counts_with_one_more_round() -> None:
    cut_off = run(status="interrupted")
    assert cost_of([cut_off]).composed == spent([Charge(SGD.event, 40)], 1e-5)
    assert cost_of([run(status="exhausted")]).composed == spent([Charge(SGD.event, 30)], 1e-5)


def test_what_protects_owners_and_what_protects_rows_are_composed_for_one_row() -> None:
    noise = Charge(Gaussian(8.0))
    of_owner = fake_run(owner_level(), epsilon=4.0, charge=noise, rounds=3, label="owner")
    cost = cost_of([run(), of_owner])
    assert cost.unit == "example"
    assert cost.composed == spent([Charge(SGD.event, 30), Charge(Gaussian(4.0), 3)], 1e-5)
    assert cost_of([of_owner]).unit == "owner"
    unknown = fake_run(owner_level(), epsilon=4.0, rounds=3)
    assert math.isinf(cost_of([run(), unknown]).composed.epsilon)


def test_random_stopping_is_reported_where_the_number_of_trials_was_drawn() -> None:
    trials = [run(seed, settings={"search": {"draws": STOPPING}}) for seed in range(3)]
    cost = cost_of(trials)
    expected = selected([{"a": (Charge(SGD.event, 30),)}], RandomStopping("geometric", 6.0), 1e-5)
    assert cost.was_drawn
    assert cost.selected == expected
    assert cost.published == expected
    said = " ".join(costs(cost))
    assert "geometric, 6 expected" in said
    assert "not how many" in said


def test_one_trial_of_a_random_search_costs_more_than_a_run_of_its_own() -> None:
    cost = cost_of([run(settings={"search": {"draws": STOPPING}})])
    assert cost.selected is not None
    assert cost.selected.epsilon > cost.composed.epsilon
    assert cost.published == cost.selected


def test_a_search_with_fixed_draws_says_what_random_stopping_would_have_cost() -> None:
    cost = cost_of([run(seed) for seed in range(12)])
    assert not cost.was_drawn
    assert cost.selected is not None
    assert cost.published == cost.composed
    assert cost.selected.epsilon < cost.composed.epsilon
    assert "Had their number been drawn at random" in " ".join(costs(cost))
    assert len(costs(cost_of([run(0), run(1, settings={"privacy": {**PRIVATE, "epsilon": 2.0}})]))) == 1
    assert costs(cost_of([run()])) == []


def test_the_page_and_the_summary_hold_the_cost_of_the_search(tmp_path: Path) -> None:
    trials = [run(seed, settings={"train__optimizer__lr": 0.1 * (seed + 1)}) for seed in range(3)]
    comparison = compare(trials)
    page = write_report(trials, tmp_path / "report.html").read_text()
    assert "All 3 private runs together" in page
    assert "that of the whole search" in page
    write_summary(tmp_path / "summary.parquet", comparison)
    kept = json.loads(pq.read_schema(tmp_path / "summary.parquet").metadata[b"fedray.search"])
    assert comparison.cost is not None
    assert kept["composed"]["epsilon"] == pytest.approx(comparison.cost.composed.epsilon)
    assert kept["composed"]["accountant"] == comparison.cost.composed.accountant
    assert kept["draws"] == {"distribution": "geometric", "mean": 3.0}
    assert kept["was_drawn"] is False


def test_records_hold_how_trials_were_drawn() -> None:
    experiment = Experiment.model_validate({"search": {"draws": "random_stopping"}})
    assert experiment.search.draws.name == "random_stopping"
    kept = fake_run({"search": {"draws": "random_stopping"}}).experiment["search"]["draws"]
    assert kept == {"name": "random_stopping", "mean": 10.0, "distribution": "geometric"}
