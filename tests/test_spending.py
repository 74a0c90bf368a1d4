"""What the server knows of owners' spending: their own word, or the most that it can be where that was lost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import UpdateRefused
from fedray.spending import Spending, require_account
from fedray.values import Absent, AbsentOutcome, Sealed, Spent

DELTA = 1e-5


def spent(epsilon: float) -> Spent:
    return Spent(epsilon, "PLD", epsilon * 1.25, DELTA)


def sealed(owner: str, epsilon: float | None) -> Sealed:
    word = None if epsilon is None else spent(epsilon)
    return Sealed(owner, 1, payload=np.zeros(3, np.uint32), n_steps=1, is_complete=True, seconds=0.0, spent=word)


def absent(owner: str, epsilon: float | None = None, outcome: AbsentOutcome = "absent") -> Absent:
    return Absent(owner, 1, outcome, "reason", None if epsilon is None else spent(epsilon))


def worst(owner: str, n_rounds: int, n_parts: int) -> Spent:
    """A unit a part, and a hundredth a round."""
    return spent(n_parts + n_rounds / 100)


def reported(books: Spending, n_rounds: int = 1, names: str = "ab") -> dict[str, float]:
    return {name: found.epsilon for name, found in books.reported(list(names), n_rounds, worst).items()}


# Example-level privacy: owners say what they have spent ---------------------------------------------------------------


def test_owners_own_word_is_reported_as_it_was_said() -> None:
    """Less than the most that it can be: an owner that a deadline stopped has spent less."""
    books = Spending().after(["a", "b"], [sealed("a", 0.5), absent("b", 0.25, "dropped")])
    found = books.reported(["a", "b"], 1, worst)
    assert found == {"a": spent(0.5), "b": spent(0.25)}
    assert (dict(books.asked), books.lost) == ({"a": 1, "b": 1}, frozenset())


def test_an_answer_that_was_lost_counts_as_all_that_was_asked() -> None:
    books = Spending().after(["a", "b"], [sealed("a", 0.5)])
    assert books.lost == {"b"}
    assert reported(books) == {"a": 0.5, "b": 1.01}
    silent = books.after(["a"], [absent("a")])
    assert silent.lost == {"a", "b"}
    assert reported(silent, 2) == {"a": 2.02, "b": 1.02}


def test_an_owners_next_word_takes_the_place_of_what_was_assumed() -> None:
    books = Spending().after(["a"], []).after(["a"], [sealed("a", 1.5)])
    assert books.lost == frozenset()
    assert reported(books, 2, "a") == {"a": 1.5}


def test_what_an_owner_has_said_is_reported_where_it_is_more_than_was_asked() -> None:
    """It may have been restarted in the middle of a round, and charged it twice."""
    books = Spending().after(["a"], [sealed("a", 3.0)]).after(["a"], [])
    assert reported(books, 2, "a") == {"a": 3.0}


def test_an_account_that_forgot_does_not_lower_what_was_spent() -> None:
    books = Spending().after(["a"], [sealed("a", 0.75)])
    assert reported(books.after(["a"], [absent("a", 0.5, "rejected")]), 2, "a") == {"a": 0.75}


def test_an_owner_that_was_never_asked_has_spent_what_the_rounds_without_it_cost() -> None:
    books = Spending().after(["a"], [sealed("a", 0.5)])
    assert reported(books, 5) == {"a": 0.5, "b": 0.05}


def test_the_books_before_a_round_stay_as_they_were() -> None:
    before = Spending().after(["a"], [sealed("a", 0.5)])
    copied = replace(before, spent=dict(before.spent), asked=dict(before.asked))
    before.after(["a", "b"], [sealed("a", 0.75), absent("b", 1.0, "exhausted")])
    assert before == copied


@pytest.mark.parametrize("epsilon", [0.5, 0.75, math.inf])
def test_an_account_that_only_grows_is_accepted(epsilon: float) -> None:
    require_account(sealed("a", epsilon), spent(0.5))
    require_account(sealed("a", epsilon), None)


@pytest.mark.parametrize("epsilon", [0.0, 0.4999, None])
def test_an_account_that_has_forgotten_is_refused(epsilon: float | None) -> None:
    with pytest.raises(UpdateRefused, match=r"an account that fell from epsilon 0\.5 to 0"):
        require_account(sealed("a", epsilon), spent(0.5))


# Owner-level privacy: the plan says what was spent --------------------------------------------------------------------


def test_where_owners_say_nothing_the_plan_is_reported() -> None:
    books = Spending()
    for _ in range(3):
        books = books.after(["a"], [sealed("a", None)])
        require_account(sealed("a", None), books.spent.get("a"))
    assert reported(books, 3) == {"a": 3.03, "b": 0.03}


def test_without_differential_privacy_nothing_is_reported() -> None:
    assert Spending().after(["a"], [sealed("a", None)]).reported(["a"], 1, None) == {}


# Budgets that are spent -----------------------------------------------------------------------------------------------


def test_an_owner_whose_budget_is_spent_stays_so() -> None:
    books = Spending().after(["a", "b", "c"], [absent("a", 2.0, "exhausted"), absent("b", 1.0, "refused")])
    assert books.exhausted == {"a"}
    books = books.after(["a", "c"], [sealed("a", 2.0), absent("c", outcome="exhausted")])
    assert books.exhausted == {"a", "c"}
    assert reported(books, 2, "") == {"a": 2.0, "b": 1.0}


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.none() | st.floats(0, 1), max_size=2), max_size=6))
def test_what_is_reported_is_never_less_than_what_was_spent(rounds: list[dict[str, float | None]]) -> None:
    """Who is asked spends up to one; where that is None it spends one, and its answer is lost."""
    books, true = Spending(), {"a": 0.0, "b": 0.0}
    for number, asked in enumerate(rounds, 1):
        for name, cost in asked.items():
            true[name] += 1.0 if cost is None else cost
        answers = [sealed(name, true[name]) for name, cost in asked.items() if cost is not None]
        books = books.after(sorted(asked), answers)
        found = reported(books, number)
        assert all(found[name] >= true[name] - 1e-12 for name in true)
