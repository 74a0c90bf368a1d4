"""Numbered names are the list of names in all but memory."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config.data import Digits, Images, Synthetic
from fedray.data import Numbered, owner_names
from fedray.data.kinds import AnyData

PLACES = st.none() | st.integers(-130, 130)


def _listed(n_owners: int) -> list[str]:
    width = max(2, len(str(n_owners - 1)))
    return ["owner-" + str(number).rjust(width, "0") for number in range(n_owners)]


@settings(max_examples=100, deadline=None)
@given(n_owners=st.integers(1, 120), start=PLACES, stop=PLACES, step=st.integers(-7, 7).filter(bool), place=PLACES)
def test_names_are_those_of_a_list(
    n_owners: int, start: int | None, stop: int | None, step: int, place: int | None
) -> None:
    names, listed = Numbered.of(n_owners)[start:stop:step], _listed(n_owners)[start:stop:step]
    assert names == listed
    assert tuple(listed) == names
    assert list(names) == listed
    assert [names[number] for number in range(len(names))] == listed
    assert list(reversed(names)) == listed[::-1]
    for name in [*_listed(n_owners), "owner-0", "owner-007", "site"]:
        assert (name in names) == (name in listed)
        assert names.count(name) == listed.count(name)
    if place is not None and -len(listed) <= place < len(listed):
        assert names[place] == listed[place]
        assert names.index(listed[place]) == listed.index(listed[place])


def test_names_ascend_as_text() -> None:
    for n_owners in (3, 100, 101, 1001):
        assert sorted(Numbered.of(n_owners)) == Numbered.of(n_owners)


@pytest.mark.parametrize(
    "name",
    ["owner-3", "owner-03", "owner--01", "owner-0003", "owner-٠٠٣", "owner-1e2", "Owner-003", "owner-100", 3, None],
)
def test_what_is_not_exactly_a_name_is_not_there(name: object) -> None:
    assert name not in Numbered.of(101)[:100]
    with pytest.raises(ValueError, match="not among"):
        Numbered.of(101)[:100].index(name)


def test_an_index_is_looked_for_between_start_and_stop() -> None:
    names = Numbered.of(10)
    assert names.index("owner-05", 5) == names.index("owner-05", 0, 6) == names.index("owner-05", -5, -4) == 5
    for start, stop in ((6, 10), (0, 5)):
        with pytest.raises(ValueError, match="not among"):
            names.index("owner-05", start, stop)


def test_other_names_are_not_equal() -> None:
    names = Numbered.of(3)
    others: list[object] = [
        Numbered.of(4),
        Numbered.of(101)[:3],
        _listed(2),
        [*_listed(2), "x"],
        (*_listed(2), 2),
        "",
        3,
    ]
    assert all(names != other for other in others)
    assert Numbered.of(3)[3:] == Numbered.of(101)[:0] == ()
    assert hash(Numbered.of(3)[3:]) == hash(Numbered.of(101)[:0])


def test_places_beyond_the_end_are_refused() -> None:
    for place in (3, -4):
        with pytest.raises(IndexError):
            Numbered.of(3)[place]


@pytest.mark.parametrize("data", [Digits(owners=8), Synthetic(owners=1001), Images(owners=10**6)], ids=lambda d: d.name)
def test_simulated_owners_are_numbered(data: AnyData) -> None:
    names = owner_names(data)
    assert isinstance(names, Numbered)
    assert names == owner_names(data)
    assert hash(names) == hash(owner_names(data))
    assert (names[0], names[-1]) == (_listed(1)[0][:6] + "0" * names.width, f"owner-{len(names) - 1:0{names.width}d}")


def test_a_million_names_are_looked_up_and_sent_without_being_put_together() -> None:
    tracemalloc.start()
    names = Numbered.of(10**6)
    assert "owner-654321" in names
    assert names.index(names[-1]) == len(names) - 1
    assert pickle.loads(pickle.dumps(names)) == names
    assert len(pickle.dumps(names)) < 200
    assert hash(names[10:]) != hash(names)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
