"""The page: whole, self-contained, safe against hostile names, the same for the same runs."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from report_fakes import HOSPITALS, fake_round, fake_run, many_variants, tradeoff

from fedray.records import RunRecords
from fedray.report import numbers
from fedray.report.canvas import series_of
from fedray.report.comparison import compare
from fedray.report.html import write_report
from fedray.report.intervals import Interval
from fedray.report.listing import yaml_lines

VOID = {"meta", "link", "br", "img", "hr", "input"}
PRIVATE = {"name": "example", "epsilon": 4.0}


class Page(HTMLParser):
    """Checks that elements nest, and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(runs: list[RunRecords], folder: Path) -> tuple[str, Page]:
    text = write_report(runs, folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids), "ids must be unique"
    assert not set(page.tags) & {"script", "img", "iframe", "link", "object", "embed"}
    assert all(link.startswith("#") for link in page.links)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert not re.search(r"https?:|@import|//[a-z]", text.replace("http-equiv", ""))
    assert "<p></p>" not in text
    return text, page


def test_a_comparison_has_all_its_parts(tmp_path: Path) -> None:
    text, page = page_of(tradeoff(), tmp_path)
    assert page.tags.count("figure") == 5
    for heading in ("What privacy costs", "What protects whom", "Owners", "Configuration", "Environment"):
        assert heading in text
    assert "At epsilon 4, FedProx (mu=0.1) reached accuracy" in text
    assert "epsilon 78 at delta 0.00018" in text
    assert "dp-accounting" in text
    assert '<html lang="en">' in text
    assert "<mark>" in text
    assert "#fe00" not in text, "a placeholder colour is left"


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(tradeoff(rounds=4), tmp_path / "a.html").read_bytes()
    assert write_report(tradeoff(rounds=4), tmp_path / "b.html").read_bytes() == first


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = (
        "<script>alert(1)</script>",
        '"><img src=x>',
        "$\\frac{1}{",
        "a & b",
        "医院",
        "x\x07y",
        "&lt;b&gt;",
    )
    run = fake_run(owners=names, outcome="failed", reason="<b>boom</b> {{ 7*7 }}", label="</title><script>")
    hostile = {**run.experiment, "name": "<svg onload=x>", "data": {"name": "</style><script>"}}
    text, page = page_of([replace(run, experiment=hostile)], tmp_path)
    assert "<script" not in text
    assert "alert(1)" in text
    assert any("{{ 7*7 }}" in piece for piece in page.text)
    assert any("医院" in piece for piece in page.text)


def test_a_single_run_has_a_page(tmp_path: Path) -> None:
    run = fake_run({"privacy": PRIVATE}, finals={"accuracy": 0.8, "loss": 0.4}, epsilon=3.9)
    text, page = page_of([run], tmp_path)
    assert "single seed" in text
    assert "Pareto" not in text
    assert page.tags.count("figure") == 4


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_run_without_evaluation_has_a_page(rounds: int, tmp_path: Path) -> None:
    records = tuple(fake_round(number + 1, {}) for number in range(rounds))
    run = RunRecords("bare", fake_run().experiment, {}, "running", records)
    text, _ = page_of([run], tmp_path)
    assert "nothing to compare" in text
    assert "Without an evaluated round: bare (seed 0)." in text
    assert "running, or killed" in text


PROTECTED = {
    "plain": ("the server reads every owner's update", "learns the sum of at least"),
    "masked": ("learns the sum of at least 3 updates a round and no single one", "reads every owner's update"),
    "ckks": ("CKKS is approximate", "reads every owner's update"),
    "bfv": ("a key holder opens sums of at least 3 updates", "CKKS is approximate"),
}


@pytest.mark.parametrize("protection", PROTECTED)
def test_the_page_says_what_the_server_sees(protection: str, tmp_path: Path) -> None:
    _, page = page_of([fake_run({"protection": protection})], tmp_path)
    read = " ".join(" ".join(page.text).split())
    said, unsaid = PROTECTED[protection]
    assert said in read
    assert unsaid not in read
    assert ("at first use" in read) == (protection != "plain")


def test_every_protection_of_a_comparison_is_described(tmp_path: Path) -> None:
    _, page = page_of([fake_run({"protection": name}, label=name) for name in PROTECTED], tmp_path)
    read = " ".join(" ".join(page.text).split())
    assert all(said in read for said, _ in PROTECTED.values())


def test_keys_that_are_not_enrolled_everywhere_are_not_promised_to_be(tmp_path: Path) -> None:
    enrolled = {"name": "masked", "identities": {"owner-00": "ab" * 32}}
    for first, last in (("masked", enrolled), (enrolled, "masked")):
        _, page = page_of([fake_run({"protection": one}, label=str(one)) for one in (first, last)], tmp_path)
        assert "trusted at first use" in " ".join(" ".join(page.text).split())


def test_updates_whose_sum_was_not_opened_are_told_from_updates(tmp_path: Path) -> None:
    text, page = page_of([fake_run(outcome="unopened", reason="")], tmp_path)
    assert "unopened" in text
    assert "sum was never opened" in " ".join(" ".join(page.text).split())


def test_incomplete_runs_are_marked(tmp_path: Path) -> None:
    text, _ = page_of([fake_run({"seed": 0}), fake_run({"seed": 1}, status="failed")], tmp_path)
    assert "1 of 2 complete" in text
    assert "Not all runs of 1 variant completed" in text


def test_sixty_owners_are_drawn_as_a_distribution(tmp_path: Path) -> None:
    names = [f"owner-{n:02d}" for n in range(60)]
    text, _ = page_of(tradeoff(seeds=1, rounds=2, owners=names), tmp_path)
    assert "accuracy over 60 owners" in text
    assert text.count("owner-37") == 8


def test_of_very_many_owners_the_worst_are_listed(tmp_path: Path) -> None:
    text, _ = page_of([fake_run(owners=[f"o{n}" for n in range(250)], spread=0.3, rounds=1)], tmp_path)
    assert "The 200 owners that fared worst, of 250." in text


def test_twenty_variants_keep_eight_colours(tmp_path: Path) -> None:
    runs = many_variants(20)
    coloured = [series for series in series_of(compare(runs)).values() if series.index is not None]
    assert len(coloured) == 8
    assert "fedavg · lr=0.08" in {series.family for series in coloured}
    text, _ = page_of(runs, tmp_path)
    assert "The 8 with the best accuracy have a colour" in text
    assert "the best of 20 variants" in text


def test_a_replayable_run_carries_a_banner(tmp_path: Path) -> None:
    run = fake_run({"privacy": {**PRIVATE, "unsafe_replay_seed": 1}}, epsilon=4.0)
    text, _ = page_of([run], tmp_path)
    assert 'class="banner"' in text
    other, _ = page_of([fake_run({"privacy": PRIVATE}, epsilon=4.0)], tmp_path)
    assert 'class="banner"' not in other


def test_values_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    runs = [
        fake_run({"strategy": "fedavg"}, finals={"accuracy": 0.5, "loss": float("nan")}),
        fake_run({"strategy": "fedprox"}, finals={"accuracy": float("nan"), "loss": float("inf")}),
        fake_run({"privacy": PRIVATE}, finals={"accuracy": float("nan")}, epsilon=float("inf")),
    ]
    text, _ = page_of(runs, tmp_path)
    assert "not finite" in text
    assert "unbounded" in text


def test_one_owner_and_one_round_have_a_page(tmp_path: Path) -> None:
    page_of([fake_run(owners=HOSPITALS[:1], rounds=1)], tmp_path)


def test_the_listing_is_the_experiment() -> None:
    experiment = tradeoff(seeds=1, rounds=1)[1].experiment
    lines = list(yaml_lines(experiment, ["privacy.epsilon"]))
    assert yaml.safe_load("\n".join(line for line, _ in lines)) == experiment
    assert [line for line, marked in lines if marked] == ["  epsilon: 8.0"]


def test_epsilon_is_never_rounded_down() -> None:
    assert numbers.epsilon(3.991) == "4"
    assert numbers.epsilon(3.99) == "3.99"
    assert numbers.epsilon(12.345) == "12.4"
    assert numbers.epsilon(0.01234) == "0.0124"
    assert numbers.epsilon(None) == "–"


def test_numbers_show_what_matters() -> None:
    assert numbers.with_interval(Interval(0.8721, 0.0212, 3)) == "0.872 ± 0.021"
    assert numbers.with_interval(Interval(0.8721, 0.0001, 3)) == "0.872 ± under 0.001"
    assert numbers.number(0.00042) == "0.00042"
    assert numbers.number(1234567.0) == "1,234,567"
    assert numbers.size(1_234_567) == "1.2 MB"
    assert numbers.size(12) == "12 B"
    assert numbers.duration(250) == "4 min 10 s"


def test_owners_whose_updates_were_stale_are_told_by_how_much(tmp_path: Path) -> None:
    """Every update is two rounds old; in the last round one owner's is older, and not in the sum."""
    run = fake_run(finals={"accuracy": 0.8})
    assert "Rounds old" not in page_of([run], tmp_path)[0]
    rounds = []
    for record in run.rounds:
        missed = record.round == run.rounds[-1].round
        lines = [replace(line, staleness=2, outcome="update") for line in record.owners]
        lines[-1] = replace(lines[-1], staleness=9, outcome="dropped") if missed else lines[-1]
        rounds.append(replace(record, owners=tuple(lines)))
    text, _ = page_of([replace(run, rounds=tuple(rounds))], tmp_path)
    assert "Rounds old" in text
    assert text.count(">2.0<") == len(run.rounds[0].owners)
