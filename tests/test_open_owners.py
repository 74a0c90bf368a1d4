"""Owners are opened once, let go when their rows take too much memory, and come back as they were."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import TABLE, Patient, Talkative, shard

from fedray.build import OwnerOpener, open_federation
from fedray.config import Experiment
from fedray.data import Numbered
from fedray.federation import Federation
from fedray.open_owners import OpenOwners, Registry, ascending
from fedray.owners import Owner
from fedray.pools import InProcessCohort, Pool
from fedray.protection.masked.messages import Invite
from fedray.protection.wire import encode
from fedray.rounds import federate
from fedray.values import Absent

SHARD = shard(12, 5)
ROWS_BYTES = 17 * (TABLE.feature_shape[0] * 4 + 8)
"""17 rows of float32 features and an int64 target."""


class Door:
    """Opens owners that are all alike, and counts how often each was opened."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()

    def __call__(self, name: str) -> Owner:
        self.opened[name] += 1
        return Owner(name, SHARD, Patient(Path(), Path()), Talkative(name), 0)


@pytest.fixture
def door() -> Door:
    return Door()


def owners_of(door: Door, n_owners: int = 100, n_kept: float = np.inf) -> OpenOwners:
    """With a budget of the rows of so many."""
    return OpenOwners(Registry(Numbered.of(n_owners), door), n_kept * ROWS_BYTES)


def take(owners: OpenOwners, names: Iterable[str], round: int = 0) -> None:
    for name in names:
        owners.take(name, round)


def test_an_owner_is_opened_when_it_is_first_asked_and_kept(door: Door) -> None:
    owners = owners_of(door)
    assert not door.opened
    first = owners.take("owner-07")
    assert (first.name, first.nbytes) == ("owner-07", ROWS_BYTES)
    assert owners.take("owner-07", round=3) is first
    assert owners.take("owner-08") is not first
    assert door.opened == {"owner-07": 1, "owner-08": 1}


def test_an_owner_that_could_not_be_opened_is_tried_again() -> None:
    missing = [OSError("the disk is away")]

    def opened(name: str) -> Owner:
        if missing:
            raise missing.pop()
        return Door()(name)

    owners = OpenOwners(Registry(("a",), opened))
    with pytest.raises(OSError, match="the disk is away"):
        owners.take("a")
    assert len(owners) == 0
    assert owners.take("a").name == "a"


def test_many_threads_that_ask_at_once_get_one_owner() -> None:
    """Opening lasts until all threads are there, or as long as they could need to get there."""
    asked, door = threading.Semaphore(0), Door()

    def slowly(name: str) -> Owner:
        for _ in range(8):
            assert asked.acquire(timeout=30)
        return door(name)

    def ask(_: int) -> Owner:
        asked.release()
        return owners.take("a")

    owners = OpenOwners(Registry(("a",), slowly))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert door.opened == {"a": 1}
    assert all(owner is found[0] for owner in found)


# Letting go ----------------------------------------------------------------------------------------------------------


def test_of_fifty_owners_asked_one_after_the_other_few_stay_open(door: Door) -> None:
    """Also before the first round, when all owners join."""
    owners = owners_of(door, n_kept=2)
    for name in Numbered.of(50):
        owners.take(name)
        assert len(owners) <= 2
    assert door.opened == dict.fromkeys(Numbered.of(50), 1)


def test_owners_that_join_a_pool_do_not_all_stay_in_memory(door: Door) -> None:
    pool = Pool(Registry(Numbered.of(50), door), budget_bytes=2 * ROWS_BYTES)
    assert len(pool.join(Numbered.of(50))) == 50
    assert len(pool._owners) <= 2


def test_the_one_that_was_not_asked_for_longest_is_let_go(door: Door) -> None:
    owners = owners_of(door, n_kept=3)
    take(owners, ["owner-00", "owner-01", "owner-02", "owner-00", "owner-03"])
    take(owners, ["owner-00", "owner-02", "owner-03"])
    assert set(door.opened.values()) == {1}
    owners.take("owner-01")
    assert door.opened["owner-01"] == 2


def test_owners_of_this_round_and_the_one_before_stay_whatever_the_budget(door: Door) -> None:
    owners, names = owners_of(door, n_kept=0), Numbered.of(100)
    for round in range(1, 6):
        take(owners, names[4 * round : 4 * round + 4], round)
    assert sum(door.opened.values()) == 20
    take(owners, names[16:24], 5)
    assert sum(door.opened.values()) == 20, "those of rounds 4 and 5 are as they were"
    take(owners, names[4:16], 5)
    assert sum(door.opened.values()) == 32, "those of rounds 1 to 3 had been let go"


def test_an_owner_that_has_keys_for_the_next_round_stays_while_the_round_after_it_is_prepared(door: Door) -> None:
    """Keys for round 2 are agreed on while round 1 goes on, and are needed once those for round 3 are made."""
    owners = owners_of(door, n_kept=0)
    owners.take("owner-00", round=1)
    owners.take("owner-00", round=2)
    owners.take("owner-00", round=1)
    take(owners, ["owner-01"], round=3)
    owners.take("owner-00", round=2)
    assert door.opened["owner-00"] == 1


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Who is asked for which round: rounds go on, and the one before or after may be asked for again; 0 for none."""
    found, round = [], 1
    for _ in range(draw(st.integers(1, 40))):
        round += draw(st.sampled_from([0, 0, 0, 1]))
        at = draw(st.sampled_from([0, max(1, round - 1), round, round + 1]))
        found.append((f"owner-{draw(st.integers(0, 6)):02d}", at))
    return found


@settings(deadline=None, max_examples=200)
@given(history=histories(), n_kept=st.integers(0, 5))
@example(history=[("owner-00", 2), ("owner-00", 1), ("owner-01", 3), ("owner-00", 2)], n_kept=0)
def test_as_many_are_let_go_as_it_takes_and_none_that_is_needed(history: list[tuple[str, int]], n_kept: int) -> None:
    """Needed is whoever was ever asked for one of the two newest rounds."""
    owners, rounds = owners_of(Door(), n_kept=n_kept), dict[str, int]()
    for name, round in history:
        there = {*owners._open, name}
        rounds[name] = max(round, rounds.get(name, 0))
        newest = max(rounds.values())
        needed = {name} | {one for one, last in rounds.items() if last >= max(1, newest - 1)}
        assert owners.take(name, round).name == name
        assert needed <= set(owners._open) <= there
        assert len(owners) == min(len(there), max(n_kept, len(needed)))


# Coming back ---------------------------------------------------------------------------------------------------------

MASKED = Experiment.model_validate(
    {"data": {"name": "synthetic", "owners": 4}, "model": "logistic", "rounds": 3, "simulation": "pooled"}
)


def opener(folder: Path) -> OwnerOpener:
    return OwnerOpener(MASKED, Counter(), folder, "run")


def identity_of(owner: Owner) -> bytes:
    sealer: Any = owner._sealer
    found: bytes = sealer.identity
    return found


def federation(folder: Path, budget_bytes: float) -> Federation:
    def cohort(openers: Any) -> InProcessCohort:
        made = InProcessCohort(openers)
        made._pool = Pool(openers, budget_bytes=budget_bytes)
        return made

    return open_federation(MASKED, cohort, folder)


def test_an_owner_that_was_let_go_signs_as_before_and_seals_no_round_twice(tmp_path: Path) -> None:
    made = federation(tmp_path, np.inf)
    next(federate(made))
    owners = OpenOwners(Registry(Numbered.of(4), opener(tmp_path)), 0)
    before = owners.take("owner-00")
    take(owners, ["owner-01", "owner-02"])
    after = owners.take("owner-00")
    assert after is not before
    assert identity_of(after) == identity_of(before)
    refused = after.answer(1, encode(Invite(made.protection._run, 1)))  # type: ignore[attr-defined]
    assert isinstance(refused, Absent)
    assert (refused.outcome, refused.reason.partition(";")[0]) == ("refused", "round 1 again")
    assert isinstance(after.answer(2, encode(Invite(bytes(16), 2))), bytes), "a round that was not sealed may be"


def test_masked_rounds_go_on_with_no_memory_for_rows(tmp_path: Path) -> None:
    """Keys of a round are in the owner's process alone, from its preparation until its sum is opened."""
    scarce, ample = ([r for _, r in federate(federation(tmp_path / str(n), n))] for n in (0, np.inf))
    assert [record.sum.outcome for record in scarce] == ["opened"] * 3
    assert [record.n_updates for record in scarce] == [4, 4, 4]
    assert [r.parameters_sha256 for r in scarce] == [r.parameters_sha256 for r in ample]


def test_cohorts_that_change_from_round_to_round_keep_their_keys_with_no_memory_for_rows(tmp_path: Path) -> None:
    """Who is drawn for two rounds in a row has keys of both at a time."""
    settings = {"data": {"name": "synthetic", "owners": 9}, "cohort": {"name": "fixed", "size": 5}, "rounds": 8}
    asked = Experiment.model_validate({**MASKED.model_dump(), **settings})

    def cohort(openers: Any) -> InProcessCohort:
        made = InProcessCohort(openers)
        made._pool = Pool(openers, budget_bytes=0)
        return made

    records = [record for _, record in federate(open_federation(asked, cohort, tmp_path))]
    assert [record.n_updates for record in records] == [5] * 8
    assert any(set(one.cohort) & set(other.cohort) for one, other in pairwise(records))


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_registry_is_a_mapping_without_an_entry_an_owner(door: Door) -> None:
    registry = Registry(Numbered.of(1_000_000), door)
    assert len(registry) == 1_000_000
    assert ascending(registry) is registry.names
    assert "owner-999999" in registry
    assert "owner-1000000" not in registry
    with pytest.raises(KeyError):
        registry["somebody"]
    assert next(iter(registry)) == "owner-000000"
    assert not door.opened, "looking an owner up does not open it"
    assert registry["owner-000017"]().name == "owner-000017"


def test_names_of_any_other_mapping_are_put_in_order(door: Door) -> None:
    assert ascending({name: lambda: door("a") for name in "cab"}) == ("a", "b", "c")
