"""Where time goes: medians and means by hand, shares that sum up, and nothing made up where nothing is on record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fakes import fake_round, fake_run

from fedray.report.comparison import compare
from fedray.report.html import write_report
from fedray.report.profile import Profile, as_json, named, profile
from fedray.values import RoundRecord

PHASES = ("prepare", "train", "combine", "open", "step", "evaluate")
KINDS = ("open", "train", "seal", "add", "carry", "evaluate", "wait")


def a_round(
    number: int,
    train: float = 1.0,
    evaluate: float = 0.0,
    work: Mapping[str, float] | None = None,
    owners: Sequence[float] = (),
) -> RoundRecord:
    """A round that was evaluated if that took time; ``owners`` are seconds that each trained."""
    seconds = {**dict.fromkeys(PHASES, 0.0), "train": train, "evaluate": evaluate, "total": train + evaluate}
    record = fake_round(number, {"accuracy": 0.5} if evaluate else {}, owners=[f"o{n}" for n in range(len(owners))])
    lines = [replace(line, seconds=spent) for line, spent in zip(record.owners, owners, strict=True)]
    return replace(record, seconds=seconds, work=work or {}, owners=tuple(lines))


def profile_of(rounds: Sequence[RoundRecord], processes: int | None = 2, beside: float = 0.1) -> Profile:
    """With ``beside`` seconds a round for writing its record."""
    totals = [record.seconds["total"] + beside for record in rounds]
    return profile(rounds, totals, [beside] * len(rounds), processes)


def test_phases_are_medians_over_rounds_after_the_first() -> None:
    found = profile_of([a_round(1, train=60.0), a_round(2, train=2.0), a_round(3, train=9.0), a_round(4, train=3.0)])
    first, later = found.server
    assert (first.title, first.n_rounds, first.seconds["train"]) == ("first round", 1, 60.0)
    assert (later.title, later.n_rounds, later.seconds["train"]) == ("later rounds", 3, 3.0)
    assert later.seconds["records"] == 0.1
    assert "total" not in later.seconds
    assert found.round_s == pytest.approx((2 + 9 + 3) / 3 + 0.1)


def test_the_first_round_moves_no_figure_of_the_later_ones() -> None:
    later = [a_round(2, evaluate=0.3, work={"train": 1.5}), a_round(3, train=2.0, work={"train": 3.0, "wait": 0.2})]
    slow, quick = (profile_of([a_round(1, train=first, work={"train": first}), *later]) for first in (500.0, 0.01))
    assert slow.server[1:] == quick.server[1:]
    assert slow.owners[1:] == quick.owners[1:]
    assert slow.round_s == quick.round_s
    assert slow.server[0] != quick.server[0]


def test_rounds_with_evaluation_are_told_from_those_without() -> None:
    rounds = [a_round(1), *(a_round(n, train=n, evaluate=0.0 if n % 2 else 10.0 * n) for n in range(2, 8))]
    _, evaluated, others = profile_of(rounds).server
    assert (evaluated.title, evaluated.n_rounds, others.title, others.n_rounds) == ("evaluated", 3, "not evaluated", 3)
    assert (evaluated.seconds["train"], evaluated.seconds["evaluate"]) == (4, 40)
    assert (others.seconds["train"], others.seconds["evaluate"]) == (5, 0)


def test_work_is_what_all_processes_did_and_the_rest_of_their_time() -> None:
    work = {"carry": 0.5, "train": 1.2, "add": 0.1}
    found = profile_of([a_round(1), a_round(2, train=1.4, work=work), a_round(3, train=1.4, work=work)], processes=3)
    later = found.owners[1]
    assert list(later.seconds) == ["train", "combine", "serialise", "rest"]
    assert later.seconds == pytest.approx({"train": 1.2, "combine": 0.1, "serialise": 0.5, "rest": 3 * 1.5 - 1.8})
    assert later.shares["train"] == pytest.approx(1.2 / 4.5)
    assert (found.processes, found.is_derived) == (3, False)


def test_work_counts_alike_whichever_record_of_overlapping_rounds_holds_it() -> None:
    """A round that is evaluated while the next one trains is on record after that, with the work of both."""
    apart = [a_round(n, work={"train": 1.0, "evaluate": 0.2 if n % 2 else 0.0}) for n in range(1, 6)]
    both, none = {"train": 2.0, "evaluate": 0.2}, {}
    together = [apart[0], *(replace(one, work=none if one.round % 2 else both) for one in apart[1:])]
    moved = [replace(one, work={"train": 1.0, "evaluate": 0.1}) for one in apart]
    assert profile_of(together).owners[1].seconds == pytest.approx(profile_of(moved).owners[1].seconds)


def test_without_work_on_record_training_is_what_owners_said_and_all_else_the_rest() -> None:
    rounds = [a_round(1, owners=[0.5, 0.5]), a_round(2, train=2.0, owners=[0.4, 0.0, 1.1, 0.5])]
    found = profile_of(rounds, processes=None)
    assert found.is_derived
    assert found.owners[1].seconds == pytest.approx({"train": 2.0, "rest": 3 * 2.1 - 2.0})
    assert found.processes == 2.5


def test_a_cohort_that_did_nothing_has_no_work_and_no_shares() -> None:
    found = profile_of([a_round(1)], processes=None)
    assert found.owners[0].seconds == {"train": 0, "rest": 0}
    assert found.owners[0].shares == {}


def test_one_round_is_a_first_round_and_has_no_pace() -> None:
    found = profile_of([a_round(1, evaluate=0.5)])
    assert [one.title for one in (*found.server, *found.owners)] == ["first round", "first round"]
    assert found.round_s is None
    assert as_json(found)["rounds_per_s"] is None


SECONDS = st.floats(0, 1e4)
ROUNDS = st.lists(
    st.tuples(
        st.fixed_dictionaries(dict.fromkeys(PHASES, SECONDS)),
        st.dictionaries(st.sampled_from(KINDS), SECONDS),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@given(drawn=ROUNDS, processes=st.none() | st.integers(1, 9))
def test_shares_of_every_stretch_sum_to_one_and_none_is_below_zero(
    drawn: list[tuple[dict[str, float], dict[str, float], bool]], processes: int | None
) -> None:
    rounds = []
    for number, (phases, work, is_evaluated) in enumerate(drawn, 1):
        record = a_round(number, evaluate=float(is_evaluated), owners=[0.1, 0.2])
        rounds.append(replace(record, seconds={**phases, "total": sum(phases.values())}, work=work))
    found = profile_of(rounds, processes)
    for stretch in (*found.server, *found.owners):
        assert sum(stretch.shares.values()) == pytest.approx(1)
        assert min(stretch.shares.values()) >= 0
    assert sum(one.n_rounds for one in found.server) == sum(one.n_rounds for one in found.owners) == len(drawn)


def test_kinds_of_work_have_their_names_and_order_and_new_ones_stay() -> None:
    assert list(named(dict.fromkeys(reversed(KINDS), 1.0))) == [
        "open",
        "train",
        "seal",
        "combine",
        "serialise",
        "evaluate",
        "wait",
    ]
    assert named({"answer": 2.0, "carry": 1.0}) == {"serialise": 1.0, "answer": 2.0}


def test_the_file_holds_the_figures_of_the_table() -> None:
    found = profile_of([a_round(1), a_round(2, work={"train": 1.0}), a_round(3, work={"train": 2.0})])
    read = json.loads(json.dumps(as_json(found)))
    assert read["rounds_per_s"] == pytest.approx(1 / 1.1)
    assert [one["rounds"] for one in read["server"]] == ["first round", "later rounds"]
    assert read["owners"][1]["seconds"] == dict(found.owners[1].seconds)
    assert read["owners"][1]["shares"] == found.owners[1].shares


def test_the_report_shows_work_where_it_is_on_record(tmp_path: Path) -> None:
    run = fake_run(rounds=4)
    worked = replace(run, rounds=tuple(replace(one, work={"train": 30.0, "carry": 0.5}) for one in run.rounds))
    assert compare([worked]).variants[0].work() == {"train": 120.0, "serialise": 2.0}
    page = write_report([worked], tmp_path / "worked.html").read_text()
    assert "What owners&#39; processes do" in page or "What owners' processes do" in page
    assert "serialise" in page
    assert ">2 min 0 s</td>" in page
    other = write_report([run], tmp_path / "other.html").read_text()
    assert "serialise" not in other
    assert other.count("<figure") == page.count("<figure") - 1


def test_a_kind_of_work_has_the_colour_of_the_phase_of_its_name(tmp_path: Path) -> None:
    run = fake_run(rounds=1)
    worked = replace(run.rounds[0], work=dict.fromkeys(KINDS, 1.0))
    page = write_report([replace(run, rounds=(worked,))], tmp_path / "page.html").read_text()
    legends = [part.split("</ul>")[0] for part in page.split('aria-label="Legend">')[1:]]
    colours = [dict(_swatches(legend)) for legend in legends if "swatch" in legend]
    phases, work = colours
    assert set(phases) & set(work) == {"train", "combine", "open", "evaluate"}
    assert all(phases[name] == work[name] for name in set(phases) & set(work))
    assert len(set(work.values())) == len(work) == len(KINDS)


def _swatches(legend: str) -> list[tuple[str, str]]:
    entries = [line for line in legend.splitlines() if "swatch" in line]
    return [(line.split("</span>")[1].split("<")[0], line.split("--")[1].split(")")[0]) for line in entries]
