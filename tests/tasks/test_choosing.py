"""How many owners are trained at once follows from what was measured; here the clock is made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn
from toys import TABLE, assignment, plan, torch_task

from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent
from fedray.privacy.events import Charge
from fedray.tasks import choosing
from fedray.tasks.choosing import LADDER, Choice, choose

ASKED = assignment(plan(2))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, float]], list[int]]:
    """Has owners take so many seconds at so many at once; returns which were asked for."""

    def installed(seconds: Mapping[int, float]) -> list[int]:
        asked: list[int] = []

        def found(_: object, at_once: int) -> float:
            asked.append(at_once)
            return seconds[at_once]

        monkeypatch.setattr(choosing._Crew, "seconds", found)
        return asked

    return installed


def _chosen(n_owners: int = 500) -> Choice:
    return choose(torch_task("mlp"), TABLE, [12] * n_owners, ASKED)


def test_the_fastest_rung_is_taken_and_told(clock: Callable[[Mapping[int, float]], list[int]]) -> None:
    asked = clock({1: 1e-3, 4: 9e-4, 8: 5e-4, 16: 2.1e-4, 32: 4e-4, 64: 6e-4})
    assert _chosen() == Choice(16, "16 owners at a time: 0.21 ms an owner instead of 1", 2.1e-4)
    assert asked == [1, 4, 8, 16, 32, 64]


def test_of_rungs_as_fast_the_lowest_is_taken(clock: Callable[[Mapping[int, float]], list[int]]) -> None:
    clock({1: 1e-3, 4: 9e-4, 8: 2.04e-4, 16: 2e-4, 32: 2.01e-4, 64: 2.02e-4})
    assert _chosen().at_once == 8


def test_a_gain_of_less_than_fifteen_percent_is_left(clock: Callable[[Mapping[int, float]], list[int]]) -> None:
    clock({1: 1e-3, 4: 8.6e-4, 8: 9e-4, 16: 9e-4})
    choice = _chosen()
    assert (choice.at_once, choice.seconds) == (1, 1e-3)
    assert choice.line == "one owner at a time: 1 ms an owner, and 4 at a time 0.86"


def test_no_rung_is_tried_that_has_more_owners_than_there_are(
    clock: Callable[[Mapping[int, float]], list[int]],
) -> None:
    asked = clock({1: 1.0, 4: 0.5, 8: 0.3, 16: 0.1})
    assert _chosen(n_owners=20).at_once == 16
    assert asked == [1, 4, 8, 16]
    assert _chosen(n_owners=3).line == "one owner at a time: there are 3"


def test_the_ladder_ends_where_memory_does(
    clock: Callable[[Mapping[int, float]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mlp has 57 values of 4 bytes, five a parameter; a row has 28 bytes, and there are 12 of them."""
    a_owner = 57 * 4 * 5 + 12 * 28
    clock({rung: 1.0 / rung for rung in (1, *LADDER)})
    monkeypatch.setattr(choosing, "MEMORY", 16 * a_owner)
    assert _chosen().at_once == 16
    monkeypatch.setattr(choosing, "MEMORY", 4 * a_owner - 1)
    assert _chosen().line == "one owner at a time: 4 take too much memory"


def test_what_cannot_be_trained_together_is_not_measured(clock: Callable[[Mapping[int, float]], list[int]]) -> None:
    asked = clock({1: 1.0})
    task = torch_task(lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
    choice = choose(task, TABLE, [12] * 50, ASKED)
    assert choice.at_once == 1
    assert choice.line.startswith("one owner at a time: random layers")
    assert choose(torch_task("mlp"), TABLE, [12] * 50, assignment(plan(), deadline_s=1.0)).line.endswith("a deadline")
    assert asked == [1, 1]


class _Refuses:
    def charge(self, round: int, charge: Charge) -> None:
        raise AssertionError("charged")

    def settle(self, round: int, count: int) -> None:
        raise AssertionError("settled")


@pytest.mark.parametrize("is_private", [False, True])
def test_a_real_measurement_charges_nobody_and_tells_what_it_chose(is_private: bool) -> None:
    private = PrivateDescent(DpSgdPlan(12, 4, 0.5, 0.8), _Refuses()) if is_private else None
    state = torch.get_rng_state()
    choice = choose(torch_task("logistic", descent=private), TABLE, [1, 3, 12, 500, 0, 7], ASKED)
    assert choice.at_once in (1, 4)
    assert choice.seconds > 0
    assert choice.line.startswith(("one owner at a time: ", "4 owners at a time: "))
    assert torch.equal(state, torch.get_rng_state())


def test_measurements_are_of_the_work_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in proportion, cut to a few; an owner's time is that of all its steps."""
    monkeypatch.setattr(choosing, "_best", lambda run: 1.0)
    sizes = [40, 40, 400, 400]
    crew = choosing._Crew(torch_task("mlp"), TABLE, sizes, assignment(plan(2)))
    assert [job.assignment.work.amount for job in crew._jobs] == [1, 1, 8, 8]
    assert [len(job.shard.train) for job in crew._jobs] == sizes
    assert crew.seconds(4) == pytest.approx(1.0 / 18 * (20 + 20 + 200 + 200) / 4)
