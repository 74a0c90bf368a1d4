"""Noised held-out figures: paid for before they are taken, and as noisy as was paid for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fedray
from fedray.config import Experiment
from fedray.errors import BudgetExhausted
from fedray.privacy.account import Account
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.ledger import Ledger, own_ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.privacy.noisy_tally import NoisyTally, event
from fedray.values import Tally

DELTA = 1e-5
METRICS = ("accuracy", "other", "third")
TALLY = Tally({"loss": 123.0, "accuracy": 30.0, "other": 12.0, "third": 0.0}, 40)


def ledger_of(folder: Path) -> Ledger:
    return Ledger(LedgerFile(folder / "ledger", "process"), "ann")


def tally_of(folder: Path, noise: float, budget: float | None = None, seed: int = 0) -> NoisyTally:
    account = Account(ledger_of(folder), "run", "trial", "example", DELTA, budget)
    return NoisyTally(METRICS, noise, account, np.random.default_rng(seed).standard_normal)


def test_each_sum_has_its_own_noise_of_the_deviation_that_is_given(tmp_path: Path) -> None:
    noisy, n = tally_of(tmp_path, 3.0), 400
    found = np.array([list(noisy(lambda: TALLY).sums.values()) for _ in range(n)]) - [30.0, 12.0, 0.0]
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], found.size)
    assert low < (found**2).sum() / 3.0**2 < high
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 6 / math.sqrt(n)
    assert np.unique(found).size == found.size


def test_only_the_metrics_that_are_bounded_come_out_and_the_count_is_public(tmp_path: Path) -> None:
    found = tally_of(tmp_path, 1e-9)(lambda: TALLY)
    assert found.sums == pytest.approx({"accuracy": 30.0, "other": 12.0, "third": 0.0}, abs=1e-6)
    assert found.count == 40


@pytest.mark.parametrize("n_metrics", [1, 2, 9])
def test_one_row_moves_k_sums_by_the_square_root_of_k(n_metrics: int) -> None:
    assert event(6.0, n_metrics) == Gaussian(6.0 / math.sqrt(n_metrics))


def test_the_charge_is_on_the_ledger_before_a_row_is_looked_at(tmp_path: Path) -> None:
    def evaluate() -> Tally:
        (release,) = ledger_of(tmp_path).releases()
        assert (release.purpose, release.unit, release.count) == ("evaluate", "example", 1)
        assert release.event == Gaussian(3.0 / math.sqrt(3))
        raise RuntimeError("the evaluation fails")

    with pytest.raises(RuntimeError, match="fails"):
        tally_of(tmp_path, 3.0)(evaluate)
    assert len(ledger_of(tmp_path).releases()) == 1


def test_every_call_is_charged_also_by_a_process_that_was_restarted(tmp_path: Path) -> None:
    for _ in range(2):
        noisy = tally_of(tmp_path, 3.0)
        noisy(lambda: TALLY)
        noisy(lambda: TALLY)
    charge = Charge(Gaussian(3.0 / math.sqrt(3)), 4)
    assert ledger_of(tmp_path).charges("example") == (charge,)


def test_beyond_the_budget_nothing_is_evaluated(tmp_path: Path) -> None:
    noisy = tally_of(tmp_path, 6.0, budget=spent([Charge(event(6.0, 3), 1)], DELTA).epsilon * 1.001)
    noisy(lambda: TALLY)
    with pytest.raises(BudgetExhausted):
        noisy(lambda: pytest.fail("a row was looked at"))


RAW = {
    "data": {"name": "digits", "owners": 3, "split": "iid"},
    "model": "logistic",
    "rounds": 2,
    "train": {"batch_size": 64, "steps": 2},
    "protection": "plain",
    "privacy": {"name": "example", "noise_multiplier": 4.0, "delta": DELTA},
    "evaluation": {"noise_multiplier": 40.0},
}


def test_a_spent_budget_leaves_an_owner_out_of_the_evaluation_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its budget holds both rounds of training and one evaluation, but not the second."""
    plain = _run({**RAW, "evaluation": {}}, tmp_path / "plain")
    own = plain[-1].owners[0]
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    reference = _run(RAW, tmp_path / "reference")
    assert [len(one.metrics) for one in reference[-1].owners] == [1, 1, 1]
    ledger = Ledger(LedgerFile(ledger_path(own.name), "power"), own.name)
    both = [reference[0].owners[0].epsilon, reference[1].owners[0].epsilon]
    assert None not in both
    tight = _epsilon_after_all_but_the_last_evaluation(tmp_path / "reference", own.name)
    ledger.set_budget("example", tight * 1.0001, DELTA)

    rounds = _run(RAW, tmp_path / "run")
    assert [one.outcome for one in rounds[-1].owners] == ["update"] * 3
    assert [[len(one.metrics) for one in record.owners] for record in rounds] == [[1, 1, 1], [0, 1, 1]]
    purposes = [release.purpose for release in own_ledger(own.name).releases()]  # type: ignore[union-attr]
    assert purposes == ["train", "evaluate", "train"]


def _epsilon_after_all_but_the_last_evaluation(folder: Path, owner: str) -> float:
    releases = Ledger(LedgerFile(folder / "owners" / "ledger.jsonl"), owner).releases()
    assert [release.purpose for release in releases] == ["train", "evaluate", "train", "evaluate"]
    return spent([Charge(release.event, release.count) for release in releases[:-1]], DELTA).epsilon


def _run(raw: dict, folder: Path) -> list[fedray.RoundRecord]:
    return list(fedray.run(Experiment.model_validate(raw), folder, in_process=True))
