"""Every kind of privacy in labels, on the page and in an audit: what is said, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_fakes import fake_run, fake_sum, owner_level
from typer.testing import CliRunner

from fedray.cli import app
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, FixedSizeGaussian, Gaussian, SampledGaussian
from fedray.records import RunRecords
from fedray.report.audit import audit
from fedray.report.claims import Claim
from fedray.report.comparison import as_rows, compare
from fedray.report.html import write_report
from fedray.report.promises import promises
from fedray.report.wording import answer, measured

CENTRAL: dict[str, Any] = {"finals": {}, "central": {"accuracy": 0.8, "loss": 0.5}}
NOISE = Charge(Gaussian(5.0))
EPSILON = spent([Charge(Gaussian(5.0), 3)], 1e-5).epsilon


def of_owners(kind: str = "owner", *, settings: dict[str, Any] | None = None, **changes: Any) -> RunRecords:
    found: dict[str, Any] = {"epsilon": EPSILON, "charge": NOISE, "label": kind, **CENTRAL, **changes}
    return fake_run({**owner_level(kind), **(settings or {})}, **found)


def said(runs: list[RunRecords]) -> str:
    return " ".join(f"{heading}: {text}" for heading, text in promises(compare(runs)))


def claim(run: RunRecords, word: str) -> Claim:
    (found,) = [one for one in audit(run) if word in one.claim]
    return found


KINDS = {
    "owner": "the bound does not hold against the server",
    "distributed": "up to 20% of them may join with the server",
    "local": "trusts nobody",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_says_against_whom_each_kind_holds(kind: str, tmp_path: Path) -> None:
    text = said([of_owners(kind)])
    assert KINDS[kind] in text
    assert "about one owner" in text
    assert all(other not in text for name, other in KINDS.items() if name != kind)
    assert "Example-level" not in text
    assert "test set" in write_report([of_owners(kind)], tmp_path / "report.html").read_text()


def test_the_accountant_on_record_is_named() -> None:
    by_rdp = of_owners(accountant="RDP")
    assert as_rows(compare([by_rdp]))[0]["epsilon"].endswith("(RDP)")
    assert "here that is RDP" in said([by_rdp])
    assert "here that is PLD" in said([of_owners()])


def test_levels_name_their_kind_where_kinds_are_mixed() -> None:
    example = fake_run({"privacy": {"name": "example", "epsilon": 4.0}, **_uniform()}, epsilon=4.0)
    comparison = compare([fake_run(_uniform()), example, of_owners()])
    assert [variant.level for variant in comparison.variants] == ["example epsilon=4", "owner epsilon=4", "no DP"]
    assert len(comparison.families) == 3
    assert [variant.level for variant in compare([of_owners()]).variants] == ["epsilon=4"]


def _uniform() -> dict[str, Any]:
    return {"strategy": {"name": "fedavg", "weighting": "uniform"}}


def test_the_front_does_not_compare_epsilons_of_different_kinds() -> None:
    private = {"privacy": {"name": "example", "epsilon": 2.0}, **_uniform()}
    example = fake_run(private, finals={"accuracy": 0.9}, epsilon=2.0, label="example")
    owner = fake_run(owner_level(), finals={"accuracy": 0.5}, epsilon=4.0, label="owner")
    assert {variant.kind for variant in compare([example, owner]).front} == {"example", "owner"}


def test_variants_are_judged_by_the_same_rows_where_they_can_be() -> None:
    both = {"finals": {"accuracy": 0.95}, "central": {"accuracy": 0.9}}
    comparison = compare([fake_run(_uniform(), **both), of_owners()])
    assert {v.strategy: v.utility.mean for v in comparison.variants if v.utility and not v.is_private} == {
        "fedavg": pytest.approx(0.9)
    }
    assert "server's own test set" in measured(comparison)[0]
    apart = compare([fake_run(_uniform()), of_owners()])
    assert "do not compare them" in " ".join(measured(apart))


def test_noised_figures_are_said_to_be_noised() -> None:
    noised = {"evaluation": {"noise_multiplier": 1.0}}
    owner = of_owners(settings=noised, finals={"accuracy": 0.8}, central={})
    assert "of the model that the round began with" in " ".join(measured(compare([owner])))
    assert "ride in the sum" in said([owner])
    example = fake_run({"privacy": {"name": "example", "epsilon": 4.0}, **noised}, epsilon=4.0)
    assert "noised before they leave it" in " ".join(measured(compare([example])))
    assert "epsilon covers them" in said([example])


SAMPLED = Charge(SampledGaussian(0.3, 2.0))
SECRET = {"cohort": {"name": "poisson", "rate": 0.3}}


def test_secret_cohorts_are_not_listed(tmp_path: Path) -> None:
    run = of_owners(settings=SECRET, charge=SAMPLED, owners=[f"clinic-{n}" for n in range(20)])
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "clinic-3" not in page
    assert "must stay secret" in page
    assert "Neither records nor page may be published" in page
    assert claim(run, "who took part").verdict == "note"


def test_cohorts_are_a_secret_only_where_epsilon_counts_on_it() -> None:
    fixed = {"cohort": {"name": "fixed", "size": 3}}
    drawn = Charge(FixedSizeGaussian(6, 3, 4.0))
    assert compare([of_owners(settings=fixed, charge=drawn)]).variants[0].has_secret_cohorts
    assert compare([of_owners(settings=fixed, charge=None)]).variants[0].has_secret_cohorts
    assert not compare([of_owners(settings=fixed)]).variants[0].has_secret_cohorts
    assert not compare([of_owners("distributed", settings=fixed, charge=None)]).variants[0].has_secret_cohorts


def test_runs_that_ended_for_want_of_budget_say_so(tmp_path: Path) -> None:
    run = of_owners(status="exhausted", outcome="exhausted", reason="round 3 would take epsilon to 4.1")
    page = write_report([run], tmp_path / "report.html").read_text()
    for text in ("too few owners had a privacy budget left", "budgets exhausted", "its privacy budget is spent"):
        assert text in page


def test_the_answer_names_the_kind_where_kinds_are_mixed() -> None:
    example = fake_run({"privacy": {"name": "example", "epsilon": 4.0}, **_uniform()}, epsilon=4.0)
    text = " ".join(answer(compare([example, of_owners(finals={"accuracy": 0.5})])))
    assert "At example-level epsilon 4, FedAvg" in text
    assert "At owner-level epsilon 4" in text


def test_a_distributed_run_keeps_its_promises_until_a_sum_holds_too_little_noise() -> None:
    owners = [f"o{n:02}" for n in range(20)]
    run = of_owners("distributed", owners=owners)
    assert not [one for one in audit(run) if one.verdict == "fails" and "key" not in one.claim]
    kept = claim(run, "holds the noise of 18")
    assert (kept.verdict, kept.found) == ("holds", "of 20 at least")
    thin = replace(run.rounds[0], n_updates=17, sum=fake_sum("masked", 20, 17))
    assert claim(replace(run, rounds=(thin, *run.rounds[1:])), "holds the noise of 18").verdict == "fails"


def test_an_epsilon_smaller_than_what_was_charged_is_found() -> None:
    assert claim(of_owners(), "follows from").verdict == "holds"
    assert claim(of_owners(epsilon=EPSILON * 0.9), "follows from").verdict == "fails"
    assert claim(of_owners(charge=None), "follows from").verdict == "note"


def test_an_epsilon_beyond_the_plan_is_found() -> None:
    assert claim(of_owners(), "more than epsilon 4").verdict == "holds"
    assert claim(of_owners(epsilon=4.1), "more than epsilon 4").verdict == "fails"


def test_noise_from_a_known_seed_is_found() -> None:
    known = {"privacy": {"name": "owner", "epsilon": 4.0, "unsafe_replay_seed": 1}}
    assert claim(of_owners(), "noise is secret").verdict == "holds"
    assert claim(of_owners(settings=known), "noise is secret").verdict == "fails"


def test_figures_of_single_owners_are_found_where_none_may_be() -> None:
    assert claim(of_owners(), "figures of single owners").verdict == "holds"
    assert claim(of_owners(finals={"accuracy": 0.5}), "figures of single owners").verdict == "fails"


def test_owners_that_take_part_too_soon_are_found() -> None:
    tree = {"privacy": {"name": "owner", "epsilon": 4.0, "noise": "tree"}, "cohort": {"name": "cyclic", "size": 3}}
    run = of_owners(settings=tree)
    assert claim(run, "take part again").verdict == "fails"
    idle = [
        replace(record, owners=tuple(_idle_unless(line, n // 3 == record.round % 2) for n, line in enumerate(lines)))
        for record in run.rounds
        for lines in [record.owners]
    ]
    found = claim(replace(run, rounds=tuple(idle)), "take part again")
    assert (found.verdict, found.found) == ("holds", "after 2 at least")


def _idle_unless(line: Any, takes_part: bool) -> Any:
    return line if takes_part else replace(line, outcome="idle")


def test_an_owner_that_goes_on_without_a_budget_is_found() -> None:
    run = of_owners()
    assert claim(run, "budget is spent").verdict == "holds"
    first = run.rounds[0]
    lines = (replace(first.owners[0], outcome="exhausted"), *first.owners[1:])
    assert claim(replace(run, rounds=(replace(first, owners=lines), *run.rounds[1:])), "budget").verdict == "fails"


def test_the_command_says_in_which_round_budgets_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    names = [f"owner-{number:02}" for number in range(3)]
    for name in names:
        options = ["--epsilon", "1", "--delta", "1e-5", "--unit", "owner"]
        assert CliRunner().invoke(app, ["ledger", "open", name, *options]).exit_code == 0
    settings = {
        "rounds": 4,
        "data": {"name": "digits", "owners": 3, "central_test": 0.2},
        "model": "logistic",
        "train": {"steps": 1},
        "privacy": {"name": "owner", "noise_multiplier": 5.0},
        **_uniform(),
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    command = ["run", str(tmp_path / "experiment.yaml"), "--in-process", "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    # one Gaussian sum of deviation 5 costs epsilon 0.73 and two 1.06 by the exact formula of Balle and Wang 2018
    assert "ended in round 2 of 4" in shown.output
    assert "fedray ledger show" in shown.output
    assert "PLD" in shown.output
