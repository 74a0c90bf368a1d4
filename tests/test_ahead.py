"""What the next round needs is made in another thread, once, and never taken for another round's."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from fedray.ahead import Ahead

WAIT_S = 30.0


class Kitchen:
    """Prepares by naming what was asked for; notes where, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.made: list[tuple[int, tuple[str, ...]]] = []
        self.threads: list[threading.Thread] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.began = threading.Event()
        self.error: BaseException | None = None

    def prepare(self, round: int, owners: Sequence[str]) -> str:
        self.began.set()
        assert self.may_go_on.wait(WAIT_S)
        self.made.append((round, tuple(owners)))
        self.threads.append(threading.current_thread())
        if self.error:
            raise self.error
        return f"{round}: {' '.join(owners)}"


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


@pytest.fixture
def ahead(kitchen: Kitchen) -> Ahead[str]:
    return Ahead(kitchen.prepare)


def test_what_was_not_foreseen_is_made_when_it_is_taken(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    assert ahead.take(1, ["a", "b"]) == "1: a b"
    assert kitchen.made == [(1, ("a", "b"))]
    assert kitchen.threads == [threading.current_thread()]


def test_what_was_foreseen_is_made_once_in_another_thread(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    ahead.start(2, ["a", "b"])
    assert ahead.take(2, ("a", "b")) == "2: a b"
    assert kitchen.made == [(2, ("a", "b"))]
    assert kitchen.threads[0] is not threading.current_thread()


def test_starting_does_not_wait_and_taking_does(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    kitchen.may_go_on.clear()
    ahead.start(2, ["a"])
    assert kitchen.began.wait(WAIT_S), "it is not being prepared while its round is still to come"
    assert kitchen.made == []
    threading.Timer(0.2, kitchen.may_go_on.set).start()
    assert ahead.take(2, ["a"]) == "2: a"


@pytest.mark.parametrize(("round", "owners"), [(3, ["a", "b"]), (2, ["a"]), (2, ["a", "c"]), (2, ["b", "a"]), (2, [])])
def test_what_was_foreseen_wrongly_is_made_again(
    kitchen: Kitchen, ahead: Ahead[str], round: int, owners: list[str]
) -> None:
    ahead.start(2, ["a", "b"])
    assert ahead.take(round, owners) == f"{round}: {' '.join(owners)}"
    assert kitchen.made == [(2, ("a", "b")), (round, tuple(owners))]


def test_two_rounds_are_never_prepared_at_the_same_time(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    """One that was foreseen wrongly is finished before another is begun."""
    kitchen.may_go_on.clear()
    ahead.start(2, ["a"])
    threading.Timer(0.2, kitchen.may_go_on.set).start()
    ahead.take(2, ["b"])
    assert kitchen.made == [(2, ("a",)), (2, ("b",))]


def test_what_was_taken_is_not_taken_again(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    ahead.start(2, ["a"])
    ahead.take(2, ["a"])
    ahead.take(2, ["a"])
    assert kitchen.made == [(2, ("a",))] * 2


def test_what_was_foreseen_wrongly_is_not_taken_later(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    ahead.start(2, ["a"])
    ahead.take(2, ["b"])
    ahead.take(2, ["a"])
    assert kitchen.made == [(2, ("a",)), (2, ("b",)), (2, ("a",))]


def test_round_after_round_each_is_prepared_once(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    for round in range(1, 50):
        assert ahead.take(round, ["a"]) == f"{round}: a"
        ahead.start(round + 1, ["a"])
    assert ahead.take(50, ["a"]) == "50: a"
    assert kitchen.made == [(round, ("a",)) for round in range(1, 51)]


def test_a_list_that_is_changed_afterwards_changes_nothing(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    kitchen.may_go_on.clear()
    owners = ["a", "b"]
    ahead.start(2, owners)
    owners.append("c")
    kitchen.may_go_on.set()
    assert ahead.take(2, ["a", "b"]) == "2: a b"
    assert len(kitchen.made) == 1


class Unlucky(BaseException):
    """Not even an ``Exception``."""


@pytest.mark.parametrize("error", [ValueError("no fire"), Unlucky("no pan")])
def test_what_went_wrong_ahead_is_raised_where_it_is_taken(
    kitchen: Kitchen, ahead: Ahead[str], error: BaseException
) -> None:
    kitchen.error = error
    ahead.start(2, ["a"])
    with pytest.raises(type(error)) as raised:
        ahead.take(2, ["a"])
    assert raised.value is error
    kitchen.error = None
    assert ahead.take(2, ["a"]) == "2: a"


def test_nobody_waits_at_the_end_for_what_nobody_takes(kitchen: Kitchen, ahead: Ahead[str]) -> None:
    """A run that was left early must not keep the process."""
    kitchen.may_go_on.clear()
    ahead.start(2, ["a"])
    assert kitchen.began.wait(WAIT_S)
    (thread,) = [one for one in threading.enumerate() if one.name == "prepare-2"]
    assert thread.daemon
    kitchen.may_go_on.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
