"""The tree of errors is what its docstring draws, and every error survives the way through Ray."""

from __future__ import annotations

import inspect
import pickle

import pytest
from ray import cloudpickle

from fedray import errors
from fedray.errors import FedrayError

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FedrayError)]


def _drawn() -> dict[str, str]:
    """Each error's name to its parent's, read off the drawing by indentation."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.isidentifier() and word[0].isupper()), "")
        if name != "FedrayError" and "──" not in line:
            continue
        column = line.index(name)
        while above and above[-1][0] >= column:
            above.pop()
        parents[name] = above[-1][1] if above else "Exception"
        above.append((column, name))
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    assert _drawn() == {cls.__name__: cls.__mro__[1].__name__ for cls in ALL}


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "ray"])
@pytest.mark.parametrize("cls", ALL)
def test_every_error_survives_pickling(cls: type[FedrayError], dumps: object) -> None:
    error = cls("found 3", "expected 4", "count again")
    copy = pickle.loads(dumps(error))  # type: ignore[operator]
    assert type(copy) is cls
    assert (copy.found, copy.expected, copy.remedy) == ("found 3", "expected 4", "count again")
    assert str(copy) == str(error)


@pytest.mark.parametrize("cls", ALL)
def test_a_message_says_what_was_found_what_was_expected_and_what_to_do(cls: type[FedrayError]) -> None:
    lines = str(cls("three apples", "four apples", "buy one")).splitlines()
    assert lines[0] == "three apples"
    assert lines[1].split() == ["expected:", "four", "apples"]
    assert lines[2].split() == ["to", "do:", "buy", "one"]


WITHIN_A_ROUND = {"ProtocolError", "RoundAbandoned", "OwnerError"}
"""Caught before they could end a command: the round goes on, or the run does."""


def test_exit_codes_tell_direct_classes_apart() -> None:
    direct = {cls.__name__: cls.exit_code for cls in FedrayError.__subclasses__()}
    ending = [code for name, code in direct.items() if name not in WITHIN_A_ROUND]
    assert len(set(ending)) == len(ending) == len(direct) - len(WITHIN_A_ROUND)
    assert all(1 < code < 126 for code in ending)
    assert {direct[name] for name in WITHIN_A_ROUND} == {FedrayError.exit_code} == {1}
