"""What taking part costs, on a real ledger: each kind charges what it says, once, and keeps its rule after restarts."""

from __future__ import annotations

from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import NeighboringRelation, pld, rdp

from fedray.errors import BudgetExhausted, ProtocolError
from fedray.privacy.account import Account
from fedray.privacy.accounting import ORDERS, spent
from fedray.privacy.costs import EachPart, EachRound, WholeRun
from fedray.privacy.events import Charge, FixedSizeGaussian, Gaussian, SampledGaussian, Tree
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile

DELTA = 1e-5


def account_of(folder: Path, budget: float | None = None, run: str = "a") -> Account:
    """Opened anew from the disk, as by a process that was restarted."""
    return Account(Ledger(LedgerFile(folder / "ledger"), "ann"), run, "trial", "owner", DELTA, budget)


def charged(folder: Path) -> list[tuple[int | None, str, Charge]]:
    releases = Ledger(LedgerFile(folder / "ledger"), "ann").releases()
    return [(found.round, found.unit, Charge(found.event, found.count)) for found in releases]


def test_fresh_noise_costs_by_the_part_and_a_part_done_again_costs_again(tmp_path: Path) -> None:
    cost = EachPart(Gaussian(4.0))
    cost.join(account_of(tmp_path))
    assert not (tmp_path / "ledger").exists()
    for round in (2, 5, 5):
        cost.take_part(account_of(tmp_path), round)
    assert charged(tmp_path) == [(round, "owner", Charge(Gaussian(4.0))) for round in (2, 5, 5)]
    assert spent(cost.after(9, 3), DELTA) == account_of(tmp_path).spent
    assert spent(cost.after(9, 0), DELTA).epsilon == 0.0


def test_secret_cohorts_cost_every_round_of_the_run_at_once_whoever_is_drawn(tmp_path: Path) -> None:
    cost = EachRound(SampledGaussian(0.2, 2.0), n_rounds=40)
    reserved = [(None, "owner", Charge(SampledGaussian(0.2, 2.0), 40))]
    for _ in range(3):
        cost.join(account_of(tmp_path))
        assert charged(tmp_path) == reserved
    for round in (3, 17):
        cost.take_part(account_of(tmp_path), round)
    assert charged(tmp_path) == reserved
    assert spent(cost.after(40, 0), DELTA) == spent(cost.after(40, 40), DELTA) == account_of(tmp_path).spent


def test_a_server_that_repeats_rounds_or_adds_some_gets_no_more_than_was_charged(tmp_path: Path) -> None:
    cost = EachRound(SampledGaussian(0.2, 2.0), n_rounds=2)
    cost.take_part(account_of(tmp_path), 1)
    with pytest.raises(ProtocolError, match="at least 1 apart"):
        cost.take_part(account_of(tmp_path), 1)
    cost.take_part(account_of(tmp_path), 2)
    with pytest.raises(ProtocolError, match="at most 2 rounds"):
        cost.take_part(account_of(tmp_path), 3)


def test_correlated_noise_costs_once_and_the_owner_keeps_the_distance_also_after_a_restart(tmp_path: Path) -> None:
    charges = (Charge(Tree(3.0, 4), 2),)
    cost = WholeRun(charges, separation=4, most=2)
    cost.join(account_of(tmp_path))
    cost.take_part(account_of(tmp_path), 3)
    for too_soon in (1, 2, 3, 4, 6):
        with pytest.raises(ProtocolError, match="at least 4 apart"):
            cost.take_part(account_of(tmp_path), too_soon)
    cost.take_part(account_of(tmp_path), 7)
    with pytest.raises(ProtocolError, match="at most 2 rounds"):
        cost.take_part(account_of(tmp_path), 20)
    assert charged(tmp_path) == [(None, "owner", charges[0])]
    assert cost.after(0, 0) == ()
    assert spent(cost.after(1, 0), DELTA) == spent(cost.after(8, 2), DELTA) == account_of(tmp_path).spent


def test_another_run_has_a_distance_of_its_own(tmp_path: Path) -> None:
    cost = WholeRun((Charge(Tree(3.0, 4), 2),), separation=4, most=2)
    for run in ("a", "b"):
        cost.take_part(account_of(tmp_path, run=run), 3)
    assert [charge for *_, charge in charged(tmp_path)] == [Charge(Tree(3.0, 4), 2)] * 2


def test_who_could_not_afford_to_join_cannot_afford_to_take_part(tmp_path: Path) -> None:
    """Charged at joining or not, no part is given without the charge for it."""
    for cost in (EachRound(SampledGaussian(0.2, 1.0), 40), WholeRun((Charge(Tree(1.0, 4), 2),), 4, 2)):
        for act in (cost.join, lambda account, cost=cost: cost.take_part(account, 1)):
            with pytest.raises(BudgetExhausted):
                act(account_of(tmp_path, budget=0.1))
    assert charged(tmp_path) == []


def test_the_budget_of_a_run_ends_a_run_of_parts_in_the_middle(tmp_path: Path) -> None:
    cost, budget = EachPart(Gaussian(4.0)), spent([Charge(Gaussian(4.0), 2)], DELTA).epsilon * 1.001
    cost.take_part(account_of(tmp_path, budget), 1)
    cost.take_part(account_of(tmp_path, budget), 2)
    with pytest.raises(BudgetExhausted, match="planned for this run"):
        cost.take_part(account_of(tmp_path, budget), 3)
    assert len(charged(tmp_path)) == 2


GAUSSIAN = dp_accounting.GaussianDpEvent
ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
DIRECT = {
    "each part": (EachPart(Gaussian(3.0)), GAUSSIAN(3.0), 6, ADD),
    "poisson": (
        EachRound(SampledGaussian(0.1, 1.5), 20),
        dp_accounting.PoissonSampledDpEvent(0.1, GAUSSIAN(1.5)),
        20,
        ADD,
    ),
    "fixed size": (
        EachRound(FixedSizeGaussian(50, 5, 3.0), 20),
        dp_accounting.SampledWithoutReplacementDpEvent(50, 5, GAUSSIAN(1.5)),
        20,
        NeighboringRelation.REPLACE_ONE,
    ),
    "tree": (
        WholeRun((Charge(Tree(3.0, 8), 2),), 8, 2),
        dp_accounting.SingleEpochTreeAggregationDpEvent(3.0, 8),
        2,
        NeighboringRelation.REPLACE_SPECIAL,
    ),
}


@pytest.mark.parametrize("name", DIRECT)
def test_figures_are_those_of_dp_accounting(name: str) -> None:
    """Called with the library's own events; a tree of 8 leaves is one Gaussian sum of 4 nodes, for its PLD."""
    cost, event, count, relation = DIRECT[name]
    found = spent(cost.after(20, 6), DELTA)
    by_rdp = rdp.RdpAccountant(ORDERS, relation).compose(event, count).get_epsilon(DELTA)
    assert found.epsilon_rdp == pytest.approx(by_rdp, rel=1e-9)
    if name == "fixed size":
        assert found.epsilon == found.epsilon_rdp
        return
    known = GAUSSIAN(3.0 / 2.0) if name == "tree" else event
    by_pld = pld.PLDAccountant(value_discretization_interval=1e-4).compose(known, count).get_epsilon(DELTA)
    assert found.epsilon == pytest.approx(by_pld, rel=3e-3)
    assert found.accountant == "PLD"
