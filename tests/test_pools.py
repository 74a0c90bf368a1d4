"""Pools: any division of owners gives the bits of none, who fails costs nobody else, bad subtotals are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import (
    MASKED,
    PLAIN,
    Meddling,
    assignment,
    federation,
    make_fixed_point,
    make_sealer,
    openers,
    plan,
    shard,
    torch_task,
)

from fedray.errors import BudgetExhausted, DataError, ProtocolError
from fedray.open_owners import OpensOwner
from fedray.owners import Owner
from fedray.pools import InProcessCohort, Pool, most_first, some_sizes
from fedray.protection.plain import PlainSealer
from fedray.protection.subtotals import RingAdder
from fedray.protocols import Adder
from fedray.rounds import federate
from fedray.strategies import FedProx
from fedray.tasks.many import ManyOwners
from fedray.tasks.torch_task import TorchTask
from fedray.values import (
    Absent,
    Assignment,
    Examples,
    Part,
    Population,
    RoundRecord,
    Sealed,
    Shard,
    Spent,
    Subtotal,
    Tally,
    Update,
    Vector,
    Work,
)

Section = Any
SHARDS = {name: shard(5 + 3 * place, place % 4, seed=place) for place, name in enumerate("abcdefgh")}
TASK = partial(torch_task, "logistic")
VECTOR = TASK().initial(1)
SECTIONS = pytest.mark.parametrize("section", [PLAIN, MASKED], ids=["plain", "masked"])


def adder(section: Section = PLAIN, n_values: int = len(VECTOR)) -> Adder:
    return RingAdder(make_fixed_point(section, n_values, len(SHARDS)), readable=section is PLAIN)


def figures(record: RoundRecord) -> RoundRecord:
    """Without what is measured by the clock."""
    owners = tuple(replace(owner, seconds=0.0) for owner in record.owners)
    return replace(record, seconds={}, work={}, owners=owners)


class Divided:
    """A cohort of several pools; the sum of each is sent, in any order.

    Args:
        pools: each with its owners' names.
        order: of what they give.
    """

    at_once = 1
    notes = ()

    def __init__(self, pools: Sequence[tuple[Pool, Sequence[str]]], order: Sequence[int] = ()) -> None:
        self._pools = pools
        self._order = order or range(len(pools))
        infos = [info for pool, names in pools for info in pool.join(names)]
        self.population = Population.of(infos)

    def _divided(self, names: Iterable[str]) -> Iterator[tuple[Pool, list[str]]]:
        asked = set(names)
        yield from ((pool, [name for name in own if name in asked]) for pool, own in self._pools)

    def train(
        self, vector: Vector, assignments: Sequence[Assignment], patience_s: float | None = None
    ) -> Iterator[Sealed | Subtotal | Absent]:
        by_name = {one.owner: one for one in assignments}
        answers = [
            list(pool.train(vector, [by_name[name] for name in names])) for pool, names in self._divided(by_name)
        ]
        for place in self._order:
            yield from answers[place]

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        found: dict[str, bytes | Absent] = {}
        for pool, names in self._divided(messages):
            found |= pool.answer(round, {name: messages[name] for name in names})
        return found

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        for pool, names in self._divided(owners):
            yield from pool.evaluate(vector, part, names)

    def work(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        """Nothing to let go."""


def divided(
    groups: Sequence[str], section: Section, folder: Path, order: Sequence[int] = (), single: str = ""
) -> Divided:
    """Pools of these owners; those in ``single`` send every update by itself."""
    opening = openers(TASK, SHARDS, section=section, folder=folder)
    pools = [(Pool(opening, adder=None if group in single else adder(section)), group) for group in groups]
    return Divided(pools, order)


def records_of(section: Section, folder: Path, around: Callable[[Any], Any] = lambda cohort: cohort) -> list[Any]:
    made = federation(
        TASK,
        SHARDS,
        FedProx(Work(3, "epochs"), mu=0.1),
        around=around,
        section=section,
        folder=folder,
        rounds=2,
        train={"epochs": 3},
        stragglers={"fraction": 0.5},
    )
    return [record for _, record in federate(made)]


# Any division gives the same bits ------------------------------------------------------------------------------------


@SECTIONS
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.integers(0, 4), min_size=8, max_size=8), order=st.permutations(range(5)))
def test_any_division_into_pools_gives_the_bits_and_figures_of_none(
    section: Section, places: list[int], order: Sequence[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also where one pool's updates travel by themselves, and some pools have nobody."""
    folder = tmp_path_factory.mktemp("journals")
    groups = ["".join(name for name, at in zip(SHARDS, places, strict=True) if at == place) for place in range(5)]
    cohort = divided(groups, section, folder / "divided", order, single=groups[0])
    found = records_of(section, folder, lambda _: cohort)
    expected = records_of(section, folder / "undivided")
    assert [record.sum.outcome for record in found] == ["opened"] * 2
    assert [figures(record) for record in found] == [figures(record) for record in expected]


def test_a_pool_gives_who_is_absent_and_then_one_subtotal_of_the_others() -> None:
    asked = [assignment(plan(2), name, amount=1 if name == "b" else 2) for name in "abc"]
    absent, subtotal = Pool(openers(TASK, SHARDS), adder=adder()).train(VECTOR, asked)
    alone = [opened().train(VECTOR, one) for opened, one in zip(openers(TASK, SHARDS).values(), asked, strict=False)]
    assert isinstance(absent, Absent)
    assert (absent.owner, absent.outcome) == ("b", "dropped")
    assert isinstance(subtotal, Subtotal)
    assert [cover.owner for cover in subtotal.covers] == ["a", "c"]
    assert (subtotal.payload == alone[0].payload + alone[2].payload).all()  # type: ignore[union-attr]


def test_a_pool_whose_owners_are_all_absent_sends_no_subtotal() -> None:
    pool = Pool(openers(TASK, SHARDS), adder=adder())
    assert list(pool.train(VECTOR, [])) == []
    (absent,) = pool.train(np.full_like(VECTOR, np.nan), [assignment(plan(), "a")])
    assert isinstance(absent, Absent)


# Trained together ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [2, 3, 8, 50])
@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_owners_trained_together_add_up_to_those_trained_one_by_one(model: str, at_once: int) -> None:
    task = partial(torch_task, model)
    vector = task().initial(1)
    asked = [assignment(plan(2), name, amount=2) for name in SHARDS]
    totals = []
    for trainer in (None, ManyOwners(task(), at_once)):
        pool = Pool(openers(task, SHARDS), trainer, adder(n_values=len(vector)))
        (subtotal,) = pool.train(vector, asked)
        assert isinstance(subtotal, Subtotal)
        assert [cover.n_steps for cover in subtotal.covers] == [2 * -(-len(one.train) // 4) for one in SHARDS.values()]
        totals.append(subtotal.payload.view(np.int32).astype(np.float64)[: len(vector)])
    assert np.linalg.norm(totals[1] - totals[0]) <= 1e-4 * np.linalg.norm(totals[0])


def test_owners_evaluated_together_give_the_figures_of_each_alone() -> None:
    one_by_one, together = (Pool(openers(TASK, SHARDS), trainer) for trainer in (None, ManyOwners(TASK(), 4)))
    expected = dict(one_by_one.evaluate(VECTOR, "train", list(SHARDS)))
    found = dict(together.evaluate(VECTOR, "train", list(SHARDS)))
    assert list(found) == list(expected)
    for name, tally in found.items():
        assert tally.count == expected[name].count
        assert tally.sums == pytest.approx(expected[name].sums, rel=1e-6)


# Owners that fail ----------------------------------------------------------------------------------------------------

SECRET = "a row: 31415.9265"


class Faulty(TorchTask):
    """Trains like any other, but for one owner."""

    def __init__(self, fault: str, faulty: str) -> None:
        self.__dict__.update(TASK().__dict__)
        self._fault = fault
        self._faulty = faulty

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        update = super().train(vector, assignment, shard, seed)
        if assignment.owner != self._faulty:
            return update
        match self._fault:
            case "raise":
                raise ValueError(SECRET)
            case "exhausted":
                raise BudgetExhausted("round 1 would take epsilon to 9", "at most 8", "stop")
            case "nan":
                return replace(update, delta=np.full_like(update.delta, np.nan))
            case _:
                return replace(update, delta=update.delta[:-1])


class Lame(PlainSealer):
    """A sealer that breaks."""

    def seal(self, update: Update, assignment: Assignment, terms: bytes) -> Any:
        raise KeyError(SECRET)


def _unreadable() -> Owner:
    raise DataError(SECRET, "a readable shard", "mend the disk")


def _lame(name: str) -> Owner:
    fixed_point = make_fixed_point(PLAIN, len(VECTOR), len(SHARDS))
    return Owner(name, SHARDS[name], TASK(), Lame(fixed_point, 0), 0)


def faulty_openers(fault: str, name: str) -> dict[str, OpensOwner]:
    opening: dict[str, OpensOwner] = dict(openers(partial(Faulty, fault, name), SHARDS))
    if fault == "unreadable":
        opening[name] = _unreadable
    if fault == "unsealed":
        opening[name] = partial(_lame, name)
    return opening


def place_of(error: Exception) -> str:
    return f"{type(error).__name__} somewhere"


FAILS = {"raise": "ValueError somewhere", "unreadable": "DataError somewhere", "unsealed": "KeyError somewhere"}
ANSWERS = {"nan": "rejected", "misshapen": "rejected", "exhausted": "exhausted"}


@pytest.mark.parametrize(
    ("fault", "together"),
    [*((fault, False) for fault in [*FAILS, *ANSWERS]), ("unreadable", True), ("unsealed", True)],
)
def test_an_owner_that_fails_in_an_actor_costs_the_others_of_its_pool_nothing(fault: str, together: bool) -> None:
    """Where owners train together, what fails before or after that is an owner's own."""
    trainer = ManyOwners(TASK(), 3) if together else None
    pool = Pool(faulty_openers(fault, "d"), trainer, adder(), place_of)
    absent, subtotal = pool.train(VECTOR, [assignment(plan(), name) for name in SHARDS])
    assert isinstance(absent, Absent)
    assert isinstance(subtotal, Subtotal)
    assert (absent.owner, absent.round, absent.outcome) == ("d", 1, ANSWERS.get(fault, "failed"))
    if fault in FAILS:
        assert absent.reason == FAILS[fault]
    assert SECRET not in repr(absent)
    others = [assignment(plan(), name) for name in SHARDS if name != "d"]
    (expected,) = Pool(openers(TASK, SHARDS), trainer, adder()).train(VECTOR, others)
    assert isinstance(expected, Subtotal)
    assert [cover.owner for cover in subtotal.covers] == list("abcefgh")
    assert (subtotal.payload == expected.payload).all()


@pytest.mark.parametrize("fault", FAILS)
def test_what_nobody_foresaw_comes_through_in_process(fault: str) -> None:
    """With the text, and not as something else, so that a debugger stops there."""
    cohort = InProcessCohort(openers(TASK, SHARDS))
    cohort._pool = Pool(faulty_openers(fault, "d"), adder=adder())
    with pytest.raises((ValueError, DataError, KeyError), match=SECRET):
        list(cohort.train(VECTOR, [assignment(plan(), name) for name in SHARDS]))


def test_a_round_that_was_cut_off_leaves_nothing_in_the_next_subtotal() -> None:
    pool = Pool(faulty_openers("raise", "d"), adder=adder())
    with pytest.raises(ValueError, match=SECRET):
        list(pool.train(VECTOR, [assignment(plan(), name) for name in "cd"]))
    (found,) = pool.train(VECTOR, [assignment(plan(round=2), "a")])
    assert isinstance(found, Subtotal)
    assert [(cover.owner, cover.round) for cover in found.covers] == [("a", 2)]


@pytest.mark.parametrize("fault", ANSWERS)
def test_what_owners_may_answer_is_no_error_in_process_either(fault: str) -> None:
    found = list(
        Pool(faulty_openers(fault, "d"), adder=adder()).train(VECTOR, [assignment(plan(), name) for name in "cd"])
    )
    assert [type(one) for one in found] == [Absent, Subtotal]


class Bank:
    """An account that says what was spent, and a contribution that refuses."""

    spent = Spent(0.5, "PLD", 0.7, 1e-5)

    def charge(self, round: int) -> None:
        raise ProtocolError(f"round {round} too soon", "a later one", "wait")


@pytest.mark.parametrize("fault", ["raise", "unsealed"])
def test_what_an_owner_that_fails_has_spent_is_told(fault: str) -> None:
    """Training has been paid for by then."""

    def opened() -> Owner:
        owner = faulty_openers(fault, "d")["d"]()
        owner._account = Bank()
        return owner

    (absent,) = Pool({"d": opened}, place=place_of).train(VECTOR, [assignment(plan(), "d")])
    assert isinstance(absent, Absent)
    assert absent.spent == Bank.spent


def test_an_owner_that_may_not_take_part_does_not_train_and_the_others_do() -> None:
    opening = dict(openers(TASK, SHARDS))

    def refusing() -> Owner:
        owner = openers(partial(Faulty, "raise", "b"), SHARDS)["b"]()
        owner._contribution = Bank()  # type: ignore[assignment]
        return owner

    opening["b"] = refusing
    absent, subtotal = Pool(opening, adder=adder()).train(VECTOR, [assignment(plan(), name) for name in "abc"])
    assert isinstance(absent, Absent)
    assert isinstance(subtotal, Subtotal)
    assert (absent.owner, absent.outcome) == ("b", "refused")
    assert [cover.owner for cover in subtotal.covers] == ["a", "c"]


class Blind(Faulty):
    """Cannot evaluate one owner's rows."""

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        if len(examples) == len(SHARDS["d"].train):
            raise ValueError(SECRET)
        return super().evaluate(vector, examples)


BLIND = dict(openers(partial(Blind, "", ""), SHARDS))


@pytest.mark.parametrize(
    "opening", [BLIND, faulty_openers("unreadable", "d")], ids=["evaluation raises", "shard is unreadable"]
)
def test_an_owner_that_cannot_be_evaluated_in_an_actor_is_left_out(opening: dict[str, OpensOwner]) -> None:
    expected = dict(Pool(openers(TASK, SHARDS)).evaluate(VECTOR, "train", [name for name in SHARDS if name != "d"]))
    assert dict(Pool(opening, place=place_of).evaluate(VECTOR, "train", list(SHARDS))) == expected
    with pytest.raises((ValueError, DataError), match=SECRET):
        list(Pool(opening).evaluate(VECTOR, "train", list(SHARDS)))


def test_a_message_to_an_owner_that_fails_costs_the_others_no_answer(tmp_path: Path) -> None:
    opening = {"a": partial(_masked, "a", tmp_path), "b": _unreadable}
    found = Pool(opening, place=place_of).answer(3, {"b": b"no message", "a": b"no message"})
    assert found["b"] == Absent("b", 3, "failed", "DataError somewhere")
    assert isinstance(found["a"], Absent)
    assert found["a"].outcome == "refused"
    with pytest.raises(DataError, match=SECRET):
        Pool(opening).answer(3, {"b": b"no message"})


def _masked(name: str, folder: Path) -> Owner:
    sealer = make_sealer(MASKED, name, make_fixed_point(MASKED, len(VECTOR), 8), folder=folder)
    return Owner(name, SHARDS[name], TASK(), sealer, 0)


# What the server refuses ---------------------------------------------------------------------------------------------


def _with_cover(subtotal: Subtotal, **values: Any) -> Subtotal:
    first, *others = subtotal.covers
    return replace(subtotal, covers=(replace(first, **values), *others))


BAD: dict[str, Callable[[Subtotal], Subtotal]] = {
    "an owner twice": lambda one: replace(one, covers=(*one.covers, one.covers[0])),
    "an owner that is no owner": lambda one: _with_cover(one, owner="zoe"),
    "an owner of another pool": lambda one: replace(one, covers=(*one.covers, replace(one.covers[0], owner="h"))),
    "another round": lambda one: _with_cover(one, round=2),
    "other terms": lambda one: _with_cover(one, terms=bytes(32)),
    "another ring": lambda one: replace(one, payload=one.payload.astype(np.uint16)),
    "too short": lambda one: replace(one, payload=one.payload[:-1]),
    "too long": lambda one: replace(one, payload=np.append(one.payload, one.payload[:1])),
    "no vector": lambda one: replace(one, payload=one.payload[None]),
}


def _spoilt(how: Callable[[Subtotal], Subtotal], answers: list[Any]) -> list[Any]:
    """What the pool of owner a says in the first round; it comes last."""
    is_bad = [one.covers[0].owner == "a" and one.covers[0].round == 1 for one in answers]
    return [how(one) if bad else one for one, bad in zip(answers, is_bad, strict=True)]


@SECTIONS
@pytest.mark.parametrize("how", BAD.values(), ids=BAD)
def test_a_bad_subtotal_is_refused_whole_and_the_round_goes_on_with_the_rest(
    how: Callable[[Subtotal], Subtotal], section: Section, tmp_path: Path
) -> None:
    def around(meddle: Callable[[list[Any]], Iterable[Any]], folder: str) -> Callable[[Any], Any]:
        cohort = divided(["ab", "cdefgh"], section, tmp_path / folder, order=(1, 0))
        return lambda _: Meddling(cohort, meddle)

    found = records_of(section, tmp_path, around(partial(_spoilt, how), "bad"))
    left_out = records_of(section, tmp_path, around(lambda given: [one for one in given if _is_good(one)], "good"))
    assert [record.n_updates for record in found] == [6, 8]
    assert [record.sum.outcome for record in found] == ["opened"] * 2
    assert [r.parameters_sha256 for r in found] == [r.parameters_sha256 for r in left_out]
    outcomes = {owner.name: owner.outcome for owner in found[0].owners}
    covered = {cover.owner for cover in how(_some_subtotal()).covers}
    assert {name for name, outcome in outcomes.items() if outcome == "rejected"} == covered & set("ab")
    assert {outcomes[name] for name in "cdefgh"} <= {"update", "partial"}
    assert found[0].n_rejected >= len(covered & set("ab"))


def _is_good(answer: Subtotal) -> bool:
    return not (answer.covers[0].owner == "a" and answer.covers[0].round == 1)


def _some_subtotal() -> Subtotal:
    (found,) = Pool(openers(TASK, SHARDS), adder=adder()).train(VECTOR, [assignment(plan(), name) for name in "ab"])
    assert isinstance(found, Subtotal)
    return found


@SECTIONS
def test_a_subtotal_that_comes_twice_is_added_once(section: Section, tmp_path: Path) -> None:
    cohort = Meddling(divided(["abcd", "efgh"], section, tmp_path / "twice"), lambda given: [*given, given[0]])
    found, expected = records_of(section, tmp_path, lambda _: cohort), records_of(section, tmp_path / "once")
    assert [record.n_updates for record in found] == [8, 8]
    assert [r.parameters_sha256 for r in found] == [r.parameters_sha256 for r in expected]


def test_of_an_owner_whose_account_forgot_the_whole_subtotal_is_refused() -> None:
    """Nobody can take its update out of the sum."""
    epsilons = {1: 1.0, 2: 0.5}

    def spent(answers: list[Subtotal]) -> Iterator[Subtotal]:
        for one in answers:
            covers = [replace(cover, spent=Spent(epsilons[cover.round], "PLD", 2, 1e-5)) for cover in one.covers[:1]]
            yield replace(one, covers=(*covers, *one.covers[1:])) if one.covers[0].owner == "a" else one

    cohort = divided(["ab", "cdefgh"], PLAIN, Path())
    records = records_of(PLAIN, Path(), lambda _: Meddling(cohort, spent))  # type: ignore[arg-type]
    assert [record.n_updates for record in records] == [8, 6]
    assert [owner.outcome for owner in records[1].owners][:2] == ["rejected"] * 2


# The order of work ---------------------------------------------------------------------------------------------------


def test_owners_with_most_rows_come_first() -> None:
    population = InProcessCohort(openers(TASK, SHARDS)).population
    found = most_first([assignment(plan(), name) for name in "cahb"], population)
    assert [one.owner for one in found] == ["h", "c", "b", "a"]


@pytest.mark.parametrize(("n_owners", "n_taken"), [(1, 1), (256, 256), (257, 256), (600, 256), (10_000, 256)])
def test_sizes_of_some_owners_are_taken_evenly(n_owners: int, n_taken: int) -> None:
    rows = np.arange(n_owners)
    names = tuple(f"{place:05d}" for place in range(n_owners))
    found = some_sizes(Population(names, rows, rows))
    assert len(found) == n_taken
    assert found == sorted(set(found))
    assert max(found) >= 0.4 * max(rows)
