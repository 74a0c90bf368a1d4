"""FedBuff, held against a slow one that goes from event to event; who trains, who is replaced, what is charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import MASKED, PLAIN, assignment, federation, make_fixed_point, openers, plan, shard

import fedray
from fedray import seeds
from fedray.buffered import federate_buffered
from fedray.build import open_federation
from fedray.config import Experiment
from fedray.config.schedule import Buffered
from fedray.errors import ConfigError, ProtocolError, RunError
from fedray.federation import Federation
from fedray.pools import InProcessCohort
from fedray.rounds import federate, initial_state
from fedray.scheduling import rounds_of
from fedray.states import load_state, save_state
from fedray.strategies import FedAvg
from fedray.values import (
    Absent,
    Assignment,
    Examples,
    Kept,
    RoundRecord,
    Sealed,
    Shard,
    Spent,
    Staleness,
    Tally,
    Update,
    Vector,
    Work,
)

SHARDS = {name: shard(6 + 2 * place, 3, seed=place) for place, name in enumerate("abcdef")}
N_VALUES = 5


class Pull:
    """Goes half the way to the mean of an owner's rows; in ``fails`` named owners fail.

    Args:
        fails: lowest numbers of training rows of owners that fail.
    """

    n_parameters = N_VALUES

    def __init__(self, fails: frozenset[int] = frozenset()) -> None:
        self._fails = fails

    def initial(self, seed: int) -> Vector:
        return np.linspace(0, 1, N_VALUES).astype(np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        if len(shard.train) in self._fails:
            raise ProtocolError("a broken owner", "a sound one", "mend it")
        weight = len(shard.train) if assignment.plan.weighting == "examples" else 1
        return Update(pulled(vector, shard), weight, 1, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        return Tally({"loss": float(((examples.features - vector) ** 2).sum())}, len(examples))


def pulled(vector: NDArray[Any], shard: Shard) -> Vector:
    return ((shard.train.features.mean(axis=0) - vector) / 2).astype(np.float32)


class Scripted(InProcessCohort):
    """Notes who begins and who is done, in an order of arrival that is not that of drawing.

    Args:
        order: picks who is done next among those at work, by the number of those that were done before.
        at_a_time: how many are done at a time.
    """

    def __init__(self, openers: Any, order: Callable[[int, Sequence[str]], int], at_a_time: int = 1) -> None:
        super().__init__(openers)
        self._order = order
        self._at_a_time = at_a_time
        self.events: list[tuple[str, str]] = []
        self.most_at_work = 0

    def begin(self, vector: Vector, assignment: Assignment) -> None:
        super().begin(vector, assignment)
        self.events.append(("begins", assignment.owner))
        self.most_at_work = max(self.most_at_work, len(self._begun))

    def ended(self) -> Sequence[Kept | Absent]:
        found: list[Kept | Absent] = []
        for _ in range(min(self._at_a_time, len(self._begun))):
            self._begun.rotate(-self._order(self.count("is done"), [one.owner for _, one in self._begun]))
            found += super().ended()
            self.events.append(("is done", found[-1].owner))
        return found

    def count(self, what: str) -> int:
        return sum(event == what for event, _ in self.events)


def first(n_done: int, names: Sequence[str]) -> int:
    return 0


def last(n_done: int, names: Sequence[str]) -> int:
    return len(names) - 1


def last_in(n_done: int, names: Sequence[str]) -> int:
    """Owners that were drawn last are done first, but each third time the first."""
    return 0 if n_done % 3 == 2 else len(names) - 1


@dataclass
class SlowFedBuff:
    """Algorithm 1 of Nguyen et al. 2022, one event after the other, in float64 and without any fixed point."""

    size: int
    power: float
    weigh: Callable[[str], float]
    server_lr: float
    momentum: float
    model: NDArray[np.float64] = field(default_factory=lambda: np.linspace(0, 1, N_VALUES))
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_VALUES))
    round: int = 0
    given: dict[str, tuple[NDArray[np.float64], int]] = field(default_factory=dict)
    buffer: list[tuple[str, NDArray[np.float64], int]] = field(default_factory=list)
    stale: list[dict[str, int]] = field(default_factory=list)

    def event(self, what: str, owner: str) -> None:
        if what == "begins":
            self.given[owner] = (self.model.copy(), self.round)
            return
        model, began = self.given.pop(owner)
        self.buffer.append((owner, (SHARDS[owner].train.features.mean(axis=0) - model) / 2, self.round - began))
        if len(self.buffer) == self.size:
            self.step()

    def step(self) -> None:
        total, weight = np.zeros(N_VALUES), 0.0
        for owner, delta, tau in self.buffer:
            total += self.weigh(owner) * delta / (1 + tau) ** self.power
            weight += self.weigh(owner)
        self.velocity = self.momentum * self.velocity + total / weight
        self.model = self.model + self.server_lr * self.velocity
        self.stale.append({owner: tau for owner, _, tau in self.buffer})
        self.round, self.buffer = self.round + 1, []


def buffered(
    size: int = 2,
    *,
    fails: frozenset[int] = frozenset(),
    around: Callable[[Any], Any] | None = None,
    strategy: FedAvg | None = None,
    rounds: int = 6,
    section: Any = PLAIN,
    folder: Path | None = None,
    **schedule: Any,
) -> Federation:
    """A federation with a buffer; ``around`` makes its cohort of the openers."""
    make = partial(Pull, fails)
    made = federation(
        make,
        SHARDS,
        strategy or FedAvg(Work(1, "epochs")),
        section=section,
        folder=folder,
        rounds=rounds,
        schedule={"name": "buffered", "size": size, **schedule},
    )
    if around is None:
        return made
    return replace(made, cohort=around(openers(make, SHARDS, section=section, folder=folder)))


def scripted(made: Federation) -> Scripted:
    assert isinstance(made.cohort, Scripted)
    return made.cohort


def staleness(record: RoundRecord) -> dict[str, int]:
    return {owner.name: owner.staleness for owner in record.owners if owner.outcome == "update"}


@pytest.mark.parametrize(
    ("schedule", "weighting", "server_lr", "momentum"),
    [
        ({"size": 2}, "uniform", 1.0, 0.0),
        ({"size": 2, "power": 0.0}, "examples", 1.0, 0.0),
        ({"size": 3, "power": 1.0}, "examples", 0.7, 0.5),
        ({"size": 1, "at_work": 3, "power": 2.0}, "uniform", 0.3, 0.9),
        ({"size": 4, "at_work": 2}, "examples", 1.3, 0.0),
    ],
)
def test_every_model_is_that_of_a_slow_fedbuff(
    schedule: dict[str, Any], weighting: Any, server_lr: float, momentum: float
) -> None:
    strategy = FedAvg(Work(1, "epochs"), weighting, server_lr, momentum)
    made = buffered(around=partial(Scripted, order=last_in), strategy=strategy, rounds=12, **schedule)
    weigh = {"uniform": lambda owner: 1.0, "examples": lambda owner: float(len(SHARDS[owner].train))}[weighting]
    slow = SlowFedBuff(schedule["size"], schedule.get("power", 0.5), weigh, server_lr, momentum)
    cohort = scripted(made)
    seen = 0
    for state, record in federate_buffered(made):
        for event in cohort.events[seen:]:
            slow.event(*event)
        seen = len(cohort.events)
        np.testing.assert_allclose(state.vector, slow.model, rtol=0, atol=5e-6)
        assert staleness(record) == slow.stale[-1]
    assert slow.round == 12
    assert cohort.most_at_work == schedule.get("at_work", 6)
    assert max(max(taus.values()) for taus in slow.stale) > 0 or "at_work" in schedule


def test_updates_of_other_models_make_the_same_bits_under_masks(tmp_path: Path) -> None:
    settings = {"size": 3, "at_work": 5, "around": partial(Scripted, order=last_in)}
    plain = [(state.vector.tobytes(), staleness(record)) for state, record in federate_buffered(buffered(**settings))]
    made = buffered(section=MASKED, folder=tmp_path, **settings)
    masked = list(federate_buffered(made))
    assert [(state.vector.tobytes(), staleness(record)) for state, record in masked] == plain
    assert {record.sum.outcome for _, record in masked} == {"opened"}
    assert all(record.sum.stages["asked"] == 3 for _, record in masked), "keys are agreed on among those that are done"
    assert any(tau for _, taus in plain for tau in taus.values())


@pytest.mark.parametrize("protection", ["masked", "bfv"])
def test_a_whole_run_has_the_same_bits_under_protections(protection: str, tmp_path: Path) -> None:
    def digests(protection: str) -> list[str]:
        experiment = Experiment(
            rounds=3,
            data={"name": "digits", "owners": 5},
            model="logistic",
            protection=protection,
            schedule={"name": "buffered", "size": 3, "at_work": 4},
        )
        records = list(fedray.run(experiment, tmp_path / protection, in_process=True))
        assert [record.sum.outcome for record in records] == ["opened"] * 3
        return [record.parameters_sha256 for record in records]

    assert digests(protection) == digests("plain")


def test_the_draws_are_in_the_state_on_disk(tmp_path: Path) -> None:
    (state, _), *_ = federate_buffered(buffered(2, at_work=3))
    save_state(tmp_path / "state", state)
    assert load_state(tmp_path / "state").draws == state.draws == 4


def test_owners_are_drawn_uniformly_from_those_that_are_idle() -> None:
    """Three of six train at a time and one is done at a time: each owner begins as often as any, but for chance."""
    made = buffered(1, at_work=3, rounds=600, around=partial(Scripted, order=first))
    list(federate_buffered(made))
    counts = Counter(owner for event, owner in scripted(made).events if event == "begins")
    assert scripted(made).most_at_work == 3
    assert sum(counts.values()) == 602
    assert all(abs(count - 602 / 6) < 20 for count in counts.values()), counts


def test_a_run_that_goes_on_from_a_state_draws_on_where_it_was() -> None:
    """Who was in training is lost, and owners are drawn in their place; not those that were drawn at the start."""
    made = partial(buffered, 2, at_work=2, rounds=4, around=partial(Scripted, order=first))
    states = [state for state, _ in federate_buffered(made())]
    again = made()
    rest = [state for state, _ in federate_buffered(again, states[1])]
    assert ([state.round for state in rest], [state.draws for state in states]) == ([3, 4], [3, 5, 7, 9])
    idle = sorted(SHARDS)
    expected = [idle.pop(seeds.generator(0, "buffered", number).integers(len(idle))) for number in (5, 6)]
    assert [name for event, name in scripted(again).events if event == "begins"][:2] == expected


def test_an_update_of_an_old_model_is_thrown_away_and_its_owner_drawn_again() -> None:
    """Two of three are always faster than a: it is given up after two rounds, and trains the newest model then."""
    made = buffered(2, at_work=3, max_staleness=1, rounds=5, around=partial(Scripted, order=last))
    cohort = scripted(made)
    records = [record for _, record in federate_buffered(made)]
    slow = cohort.events[0][1]
    dropped = [(r.round, o.name, o.reason) for r in records for o in r.owners if o.outcome == "dropped"]
    assert (3, slow, "its model is more than 1 rounds old") in dropped
    assert all(record.n_updates == 2 for record in records)


def test_an_owner_throws_an_update_away_that_it_is_asked_for_too_late() -> None:
    (owner,) = (opened() for opened in openers(Pull, {"a": SHARDS["a"]}).values())
    law = Staleness(power=0.5, most=2)
    vector = Pull().initial(0)
    for round, outcome in ((3, None), (4, "dropped"), (0, "dropped")):
        assert isinstance(owner.train_and_keep(vector, assignment(replace(plan(), staleness=law))), Kept)
        answer = owner.seal(assignment(replace(plan(round=round), staleness=law)))
        assert (answer.outcome if isinstance(answer, Absent) else None) == outcome


def test_an_owner_seals_what_it_kept_once_scaled_by_its_staleness() -> None:
    (owner,) = (opened() for opened in openers(Pull, {"a": SHARDS["a"]}).values())
    fixed_point = make_fixed_point(PLAIN, N_VALUES, 1)
    law = Staleness(power=1.0, most=9)
    vector = Pull().initial(0)
    asked = assignment(replace(plan(round=4), staleness=law))
    kept = owner.train_and_keep(vector, assignment(replace(plan(round=1), staleness=law)))
    assert kept == Kept("a", 1, None), "nothing of the update leaves with the word that it is there"
    sealed = owner.seal(asked)
    assert isinstance(sealed, Sealed)
    total = fixed_point.decode(fixed_point.signed(sealed.payload), asked.weight_bound)
    np.testing.assert_allclose(total.mean, pulled(vector, SHARDS["a"]) / 4, atol=2e-6)
    assert total.weight == len(SHARDS["a"].train)
    again = owner.seal(asked)
    assert isinstance(again, Absent)
    assert again.outcome == "absent"


def test_terms_of_a_buffered_sum_bind_all_but_the_model() -> None:
    law = Staleness(power=0.5, most=2)
    base = assignment(replace(plan(), staleness=law))
    vector = Pull().initial(0)
    assert base.terms(vector) == base.terms(vector + 1)
    others = [
        replace(base, weight_bound=2),
        replace(base, plan=replace(base.plan, round=2)),
        replace(base, plan=replace(base.plan, staleness=replace(law, power=0.6))),
        replace(base, plan=replace(base.plan, staleness=replace(law, most=3))),
    ]
    assert len({base.terms(vector), base.terms(vector[1:]), *(one.terms(vector) for one in others)}) == 6


def test_an_owner_that_fails_is_replaced_and_not_asked_again_in_the_round() -> None:
    made = buffered(3, at_work=3, fails=frozenset({len(SHARDS["c"].train)}), rounds=20)
    records = [record for _, record in federate_buffered(made)]
    assert all(record.n_updates == 3 for record in records)
    failed = [(o.outcome, o.reason) for record in records for o in record.owners if o.name == "c" and o.reason]
    assert 1 < len(failed) < 20
    assert set(failed) == {("refused", "a broken owner; expected a sound one")}


def test_a_run_in_which_nobody_has_an_update_ends() -> None:
    everyone = frozenset(len(one.train) for one in SHARDS.values())
    with pytest.raises(RunError, match="for 3 rounds there was no sum of updates"):
        list(federate_buffered(buffered(2, fails=everyone)))


def test_what_was_begun_when_a_run_is_left_is_nobodys_any_more() -> None:
    """The same owners go on with other rounds: none is told of what was asked before."""
    made = buffered(2, at_work=4)
    rounds = federate_buffered(made)
    next(rounds)
    rounds.close()
    assert isinstance(made.cohort, InProcessCohort)
    assert list(made.cohort.ended()) == []
    assert [record.n_updates for _, record in federate_buffered(made)] == [2] * 6


def test_a_buffer_that_cannot_be_filled_any_more_is_summed_as_it_is() -> None:
    some = frozenset(len(SHARDS[name].train) for name in "abc")
    records = [record for _, record in federate_buffered(buffered(4, fails=some))]
    assert [record.n_updates for record in records] == [3] * 6
    assert [set(staleness(record)) for record in records] == [{"d", "e", "f"}] * 6


def account_of(cohort: InProcessCohort, name: str) -> Spent:
    """What an owner's own account says."""
    spent = cohort._pool._owners.take(name).spent
    assert spent is not None
    return spent


def test_what_is_thrown_away_stays_charged(tmp_path: Path) -> None:
    """All three are done at once, one makes up a round, and the others are too old for the next."""
    experiment = Experiment(
        rounds=2,
        data={"name": "digits", "owners": 3},
        model="logistic",
        protection="plain",
        privacy={"name": "example", "noise_multiplier": 1.0},
        schedule={"name": "buffered", "size": 1, "max_staleness": 0},
    )
    around = partial(Scripted, order=first, at_a_time=3)
    made = open_federation(experiment, around, tmp_path)
    _, (_, second) = federate_buffered(made)
    thrown_away = {owner.name: owner.epsilon for owner in second.owners if owner.outcome == "dropped"}
    assert len(thrown_away) == 2
    accounts = {name: account_of(scripted(made), name).epsilon for name in thrown_away}
    assert accounts == thrown_away
    assert min(accounts.values()) > 0


def test_under_privacy_no_account_says_more_than_the_record(tmp_path: Path) -> None:
    experiment = Experiment(
        rounds=4,
        data={"name": "digits", "owners": 4},
        model="logistic",
        protection="plain",
        privacy={"name": "example", "epsilon": 4.0},
        schedule={"name": "buffered", "size": 2, "at_work": 3},
    )
    made = open_federation(experiment, partial(Scripted, order=last_in), tmp_path)
    for _, record in federate_buffered(made):
        for owner in record.owners:
            assert owner.epsilon is not None
            assert account_of(scripted(made), owner.name).epsilon <= owner.epsilon * 1.0001 <= 4.001


def test_the_schedule_decides_which_rounds_there_are() -> None:
    def overlapping(made: Federation, state: Any) -> Iterator[Any]:
        raise AssertionError

    sync = Experiment()
    assert rounds_of(sync) is federate
    assert rounds_of(sync, overlapping) is overlapping
    assert rounds_of(Experiment(schedule=Buffered(size=3)), overlapping) is federate_buffered


def test_a_cohort_that_cannot_train_in_the_background_is_refused() -> None:
    class Foreground:
        def __init__(self, inner: Any) -> None:
            self.population = inner.population

    with pytest.raises(ConfigError, match="Foreground"):
        next(federate_buffered(replace(made := buffered(), cohort=Foreground(made.cohort))))  # type: ignore[arg-type]


def test_the_model_and_the_bytes_are_those_of_who_was_given_it() -> None:
    made = buffered(2, at_work=3, rounds=3)
    start = initial_state(made).vector.nbytes
    records: list[RoundRecord] = [record for _, record in federate_buffered(made)]
    assert [record.bytes_down for record in records] == [4 * start, 2 * start, 2 * start]
    assert [len(record.cohort) for record in records] == [2, 2, 2]
    assert isinstance(records[0].metrics, Mapping)
    assert records[-1].metrics["loss"] > 0
