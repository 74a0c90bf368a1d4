"""One run's account: each release has a charge of its own on the ledger, and the run keeps to its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import BudgetExhausted, ProtocolError
from fedray.privacy.account import Account
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian, SampledGaussian, Tree, Unit
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile

DELTA = 1e-5
STEP = SampledGaussian(0.25, 1.0)


def ledger_of(path: Path) -> Ledger:
    return Ledger(LedgerFile(path), "ann")


def account_of(path: Path, budget: float | None = None, run: str = "a", unit: Unit = "example") -> Account:
    return Account(ledger_of(path), run, "trial", unit, DELTA, budget)


def charged(path: Path) -> list[tuple[int | None, str, int]]:
    return [(found.round, found.purpose, found.count) for found in ledger_of(path).releases()]


def test_an_account_survives_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    account = account_of(path)
    assert account.spent.epsilon == 0.0
    for round in (1, 2, 3):
        account.charge(round, Charge(STEP, 10))
    account.settle(3, 4)
    again = account_of(path)
    assert again.spent == account.spent == spent([Charge(STEP, 24)], DELTA)
    again.charge(4, Charge(STEP, 10))
    assert account_of(path).spent == spent([Charge(STEP, 34)], DELTA)


def test_a_round_that_is_done_again_is_charged_again(tmp_path: Path) -> None:
    for _ in range(2):
        account = account_of(tmp_path / "ledger")
        account.charge(7, Charge(STEP, 10))
        account.charge(7, Charge(STEP, 10))
        account.charge(7, Charge(Gaussian(3.0)), "evaluate")
    account.settle(7, 6)
    once = [(7, "train", 10), (7, "train", 10), (7, "evaluate", 1)]
    assert charged(tmp_path / "ledger") == [*once, once[0], (7, "train", 6), once[2]]


def test_what_another_process_charged_is_not_settled(tmp_path: Path) -> None:
    account_of(tmp_path / "ledger").charge(1, Charge(STEP, 10))
    account = account_of(tmp_path / "ledger")
    with pytest.raises(ProtocolError, match="round 1 settled"):
        account.settle(1, 0)
    account.charge(1, Charge(STEP, 10))
    with pytest.raises(ProtocolError):
        account.settle(1, 0, "evaluate")
    with pytest.raises(ProtocolError):
        account.settle(2, 0)
    account.settle(1, 0)
    assert charged(tmp_path / "ledger") == [(1, "train", 10), (1, "train", 0)]


def test_each_run_reports_its_own_spending_and_the_ledger_all_of_it(tmp_path: Path) -> None:
    for run in ("a", "b", "c"):
        account = account_of(tmp_path / "ledger", run=run)
        account.charge(1, Charge(STEP, 10))
        assert account.spent == spent([Charge(STEP, 10)], DELTA)
    assert ledger_of(tmp_path / "ledger").spent("example", DELTA) == spent([Charge(STEP, 30)], DELTA)


def test_a_run_is_refused_what_passes_its_plan_or_the_ledgers_budget(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    planned = spent([Charge(STEP, 20)], DELTA).epsilon
    account = account_of(path, planned)
    account.charge(1, Charge(STEP, 10))
    account.charge(2, Charge(STEP, 10))
    before = path.read_bytes()
    with pytest.raises(BudgetExhausted, match=r"round 3 (.|\n)*planned for this run"):
        account.charge(3, Charge(STEP, 1))
    assert path.read_bytes() == before
    assert account.spent.epsilon == planned
    ledger_of(path).set_budget("example", spent([Charge(STEP, 25)], DELTA).epsilon, DELTA)
    other = account_of(path, planned, run="b")
    with pytest.raises(BudgetExhausted, match="over all runs"):
        other.charge(1, Charge(STEP, 10))
    other.charge(1, Charge(STEP, 5))


def test_a_run_of_owner_level_privacy_is_accounted_for_owners(tmp_path: Path) -> None:
    account = account_of(tmp_path / "ledger", unit="owner")
    account.charge(1, Charge(Gaussian(4.0)))
    assert account.spent == spent([Charge(Gaussian(4.0))], DELTA)
    assert ledger_of(tmp_path / "ledger").spent("example", DELTA) == spent([Charge(Gaussian(2.0))], DELTA)


def test_a_run_reserves_once_and_is_settled_at_its_end(tmp_path: Path) -> None:
    path, charges = tmp_path / "ledger", [Charge(Tree(5.0, 16), 3), Charge(Tree(5.0, 4))]
    for _ in range(2):
        account = account_of(path)
        account.reserve(charges)
        account.reserve(charges)
    assert account.spent == spent(charges, DELTA)
    account_of(path, run="b").reserve([])
    assert charged(path) == [(None, "train", 3), (None, "train", 1)]
    with pytest.raises(ProtocolError, match="another reservation"):
        account.reserve(charges[:1])
    account_of(path).settle_reservation(2)
    assert charged(path) == [(None, "train", 2), (None, "train", 1)]
    with pytest.raises(ProtocolError, match="another reservation"):
        account.reserve(charges)


def test_a_run_that_cannot_be_afforded_as_a_whole_does_not_begin(tmp_path: Path) -> None:
    charges = [Charge(STEP, 10), Charge(Gaussian(5.0))]
    account = account_of(tmp_path / "ledger", spent(charges[:1], DELTA).epsilon)
    with pytest.raises(BudgetExhausted, match="run 'a'"):
        account.reserve(charges)
    assert charged(tmp_path / "ledger") == []


def test_parts_in_a_run_keep_their_distance(tmp_path: Path) -> None:
    account_of(tmp_path / "ledger").participate(1, separation=3, most=2)
    for round in (1, 3):
        with pytest.raises(ProtocolError, match="at least 3 apart"):
            account_of(tmp_path / "ledger").participate(round, separation=3, most=2)
    account_of(tmp_path / "ledger").participate(4, separation=3, most=2)
    with pytest.raises(ProtocolError, match="at most 2 rounds"):
        account_of(tmp_path / "ledger").participate(9, separation=3, most=2)


@settings(deadline=None, max_examples=25)
@given(acts=st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.integers(1, 4), st.integers(0, 5)), max_size=4))
def test_charges_and_settlements_add_up(tmp_path_factory: pytest.TempPathFactory, acts: list) -> None:
    path = tmp_path_factory.mktemp("account") / "ledger"
    account, steps = account_of(path), {1.0: 0, 2.0: 0}
    for round, (noise, planned, taken) in enumerate(acts, 1):
        account.charge(round, Charge(SampledGaussian(0.3, noise), planned))
        account.settle(round, taken)
        steps[noise] += min(planned, taken)
    expected = spent([Charge(SampledGaussian(0.3, noise), n) for noise, n in steps.items()], DELTA)
    assert account.spent == expected == account_of(path).spent
