"""Grouping of runs into variants, their labels, intervals over seeds, and the Pareto front."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fakes import fake_round, fake_run, many_variants, tradeoff

from fedray.errors import RecordsError
from fedray.records import RunRecords
from fedray.report.comparison import as_rows, compare, pareto_front, write_summary
from fedray.report.intervals import Interval, interval
from fedray.report.variant import Variant
from fedray.report.wording import answer, caveats

PRIVATE = {"name": "example", "epsilon": 4.0}
RUN = fake_run(rounds=1)


def variant(utility: float | None, epsilon: float | None) -> Variant:
    found = None if utility is None else Interval(utility, None, 1)
    return Variant("v", "fedavg", "v", "no DP", {}, (RUN,), (RUN,), "accuracy", found, epsilon, epsilon)


def test_runs_that_differ_in_the_seed_only_are_one_variant() -> None:
    settings: list[dict[str, Any]] = [
        {"seed": 0, "name": "a"},
        {"seed": 1, "name": "b", "search__samples": 3},
        {"seed": 2, "resources__owner_cpus": 2.0, "placement": {"x": {"labels": {"a.b": "c"}}}},
    ]
    comparison = compare([fake_run(setting) for setting in settings])
    assert [v.label for v in comparison.variants] == ["fedavg · no DP"]
    assert comparison.variants[0].seeds == (0, 1, 2)
    assert comparison.varied == ()


def test_labels_name_what_differs_and_nothing_else() -> None:
    settings: list[dict[str, Any]] = [
        {"strategy": "fedavg"},
        {"strategy": {"name": "fedprox", "mu": 0.1}, "privacy": PRIVATE},
        {"strategy": {"name": "fedprox", "mu": 1.0}, "privacy": {"name": "example", "noise_multiplier": 1.1}},
    ]
    comparison = compare([fake_run(setting) for setting in settings])
    assert {v.label for v in comparison.variants} == {
        "fedavg · no DP",
        "fedprox mu=0.1 · epsilon=4",
        "fedprox mu=1 · noise=1.1",
    }


def test_labels_of_nested_sections_name_the_section_and_its_own_settings() -> None:
    adam = {"name": "adam", "lr": 0.001}
    settings: list[dict[str, Any]] = [
        {},
        {"train__optimizer": adam},
        {"train__optimizer": {"name": "sgd", "lr": 0.5}},
        {"privacy": PRIVATE},
        {"privacy": {**PRIVATE, "clip": 0.5}},
        {"data": {"name": "digits", "seed": 7}},
    ]
    found = {v.label for v in compare([fake_run(setting) for setting in settings]).variants}
    tail = "optimizer=sgd · lr=0.1"
    assert found == {
        f"fedavg · no DP · data.seed=0 · {tail}",
        "fedavg · no DP · data.seed=0 · optimizer=adam · lr=0.001",
        "fedavg · no DP · data.seed=0 · optimizer=sgd · lr=0.5",
        f"fedavg · epsilon=4 · data.seed=0 · {tail} · clip=1",
        f"fedavg · epsilon=4 · data.seed=0 · {tail} · clip=0.5",
        f"fedavg · no DP · data.seed=7 · {tail}",
    }


def test_every_variant_has_a_label_of_its_own() -> None:
    for runs in (tradeoff(seeds=1, rounds=1), many_variants(20)):
        labels = [v.label for v in compare(runs).variants]
        assert len(set(labels)) == len(labels)


def test_the_interval_is_students() -> None:
    # by hand: mean 0.8, s = 0.1, t(2, 0.975) = 4.302653 from printed tables, 4.302653 * 0.1 / sqrt(3)
    found = interval([0.7, 0.8, 0.9])
    assert found is not None
    assert found.mean == pytest.approx(0.8)
    assert found.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert interval([0.5]) == Interval(0.5, None, 1)
    assert interval([]) is None


def test_values_that_are_not_finite_have_no_interval() -> None:
    found = interval([0.5, math.inf])
    assert found is not None
    assert not found.is_finite
    assert found.half_width is None


def test_utility_is_that_of_the_last_evaluated_round() -> None:
    run = fake_run(finals={"accuracy": 0.6}, rounds=2)
    unevaluated = fake_round(3, {})
    found = compare([RunRecords("x", run.experiment, {}, "complete", (*run.rounds, unevaluated))]).variants[0]
    assert found.utility is not None
    assert found.utility.mean == pytest.approx(run.rounds[1].metrics["accuracy"])
    assert [number for number, _ in found.curve()] == [1, 2]


def test_repeats_of_a_seed_do_not_pass_for_more_seeds() -> None:
    runs = [fake_run({"seed": seed}, label=f"{seed}{repeat}") for seed in (0, 1) for repeat in "ab"]
    found = compare(runs).variants[0]
    assert found.utility is not None
    assert found.utility.n == 2
    assert len(found.runs) == 4


def test_epsilon_is_the_largest_of_all_owners_and_seeds() -> None:
    runs = [fake_run({"seed": n, "privacy": PRIVATE}, epsilon=epsilon) for n, epsilon in enumerate((3.9, 4.0))]
    found = compare(runs).variants[0]
    assert found.epsilon == pytest.approx(4.0)
    assert found.epsilon_rdp == pytest.approx(4.48)
    assert compare([fake_run()]).variants[0].epsilon is None


def test_figures_come_from_completed_runs_and_the_others_are_marked() -> None:
    stopped = fake_run({"seed": 1}, finals={"accuracy": 0.1}, status="interrupted")
    found = compare([fake_run({"seed": 0}), stopped]).variants[0]
    assert found.status == "1 of 2 complete"
    assert found.utility is not None
    assert found.utility.n == 1
    alone = compare([stopped]).variants[0]
    assert alone.status == "interrupted"
    assert alone.utility is not None


def test_runs_without_an_evaluated_round_are_listed() -> None:
    empty = RunRecords("empty", fake_run().experiment, {}, "failed", ())
    comparison = compare([empty])
    assert comparison.unevaluated == (empty,)
    assert comparison.variants[0].utility is None
    assert comparison.front == ()
    assert answer(comparison) == ["No run holds an evaluated round yet, so there is nothing to compare."]
    assert "empty (seed 0)" in caveats(comparison)[-1]


def test_no_runs_are_refused() -> None:
    with pytest.raises(RecordsError, match="no runs"):
        compare([])


@pytest.mark.parametrize("metric", ["loss", "squared_error"])
def test_smaller_is_better_for_losses(metric: str) -> None:
    runs = [fake_run({"strategy": name}, finals={metric: value}) for name, value in (("fedavg", 0.5), ("fedprox", 0.2))]
    searches = [{**run.experiment, "search": {"metric": metric, "mode": "max"}} for run in runs]
    comparison = compare([replace(run, experiment=search) for run, search in zip(runs, searches, strict=True)])
    assert (comparison.metric, comparison.mode) == (metric, "min")
    assert [v.strategy for v in comparison.variants] == ["fedprox", "fedavg"]
    assert [v.strategy for v in comparison.front] == ["fedprox"]


def test_a_metric_that_no_run_has_gives_way_to_one_that_they_have() -> None:
    comparison = compare([fake_run(finals={"loss": 0.4, "absolute_error": 1.5})])
    assert (comparison.metric, comparison.mode) == ("absolute_error", "min")


POINTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 0.5, 0.50001, 0.9, math.nan, None]),
        st.sampled_from([None, 0.5, 1.0, 4.0, math.inf]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(POINTS, st.sampled_from(["max", "min"]))
def test_the_front_holds_what_nothing_dominates(points: list[tuple[float | None, float | None]], mode: Any) -> None:
    variants = [variant(utility, epsilon) for utility, epsilon in points]
    sign = 1 if mode == "max" else -1
    scored = [
        (place, sign * utility, math.inf if epsilon is None else epsilon)
        for place, (utility, epsilon) in enumerate(points)
        if utility is not None and math.isfinite(utility)
    ]
    expected = {
        place
        for place, utility, epsilon in scored
        if not any(u >= utility and e <= epsilon and (u > utility or e < epsilon) for _, u, e in scored)
    }
    front = pareto_front(variants, mode)
    assert {place for place, v in enumerate(variants) if any(v is member for member in front)} == expected


def test_rows_have_one_heading_for_all() -> None:
    comparison = compare(tradeoff(seeds=2, rounds=2))
    rows = as_rows(comparison)
    assert len(rows) == 8
    assert {tuple(row) for row in rows} == {("variant", "strategy", "epsilon", "accuracy", "seeds", "Pareto", "status")}
    assert rows[0]["variant"] == "fedprox mu=0.1 · epsilon=1"
    assert rows[-1]["epsilon"] == "no DP"


def test_the_summary_has_a_row_a_variant(tmp_path: Path) -> None:
    comparison = compare(tradeoff(seeds=2, rounds=2))
    write_summary(tmp_path / "new" / "summary.parquet", comparison)
    rows = pq.read_table(tmp_path / "new" / "summary.parquet").to_pylist()
    assert [row["variant"] for row in rows] == [v.label for v in comparison.variants]
    assert rows[0]["epsilon"] == pytest.approx(1.0)
    assert rows[-1]["epsilon"] is None
    assert sum(row["pareto"] for row in rows) == len(comparison.front)
    assert rows[0]["seconds"] == pytest.approx(4.0)


def test_seconds_of_a_round_beyond_its_phases_are_other() -> None:
    seconds = compare([fake_run(rounds=10)]).variants[0].seconds()
    phases = {"prepare": 0.1, "train": 14.0, "combine": 0.5, "open": 0.2, "step": 0.2, "evaluate": 4.0}
    assert seconds == pytest.approx({**phases, "other": 1.0})


def test_private_runs_whose_charges_are_not_on_record_cost_the_sum() -> None:
    cost = compare(tradeoff(seeds=3, rounds=2)).cost
    assert cost is not None
    assert cost.composed.epsilon == pytest.approx(2 * 3 * (1 + 4 + 8))
    assert cost.composed.delta == pytest.approx(18e-5)
    assert cost.n_runs == 18
    assert cost.is_plain_sum


def test_a_private_run_that_stopped_counts_with_what_it_planned() -> None:
    run = fake_run({"privacy": PRIVATE}, epsilon=1.0, status="interrupted")
    cost = compare([run]).cost
    assert cost is not None
    assert cost.composed.epsilon == pytest.approx(4.0)


def test_the_answer_says_what_was_spent_where_that_is_not_what_was_planned() -> None:
    def opening(epsilon: float) -> str:
        return answer(compare([fake_run({"privacy": PRIVATE}, epsilon=epsilon)]))[0]

    assert opening(3.99).startswith("At epsilon 4, FedAvg reached")
    assert opening(1.5).startswith("At epsilon 4 (epsilon spent: 1.5), FedAvg reached")


def test_the_answer_claims_a_difference_only_where_intervals_part() -> None:
    def text(finals: dict[str, tuple[float, ...]]) -> str:
        runs = [
            fake_run({"strategy": name, "seed": seed}, finals={"accuracy": value})
            for name, values in finals.items()
            for seed, value in enumerate(values)
        ]
        return " ".join(answer(compare(runs)))

    apart = text({"fedavg": (0.50, 0.51, 0.52), "fedprox": (0.80, 0.81, 0.82)})
    assert "do not overlap without differential privacy" in apart
    assert "not established" not in apart
    overlapping = text({"fedavg": (0.70, 0.80, 0.90), "fedprox": (0.72, 0.82, 0.92)})
    assert "not established there: the 95 % intervals overlap" in overlapping
    single = text({"fedavg": (0.5,), "fedprox": (0.9,)})
    assert "not established there: there is only one seed" in single
