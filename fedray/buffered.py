"""Rounds without waiting: owners train all the time, and the server steps whenever enough updates are ready.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with Buffered
Asynchronous Aggregation", AISTATS 2022, Algorithm 1 (FedBuff), with the staleness weights of its experiments:

    w <- w + eta (1/K) sum_k s(tau_k) delta_k        s(tau) = (1 + tau)^-power        tau = rounds since k was given w

Deviations. The server must not read one update, so that an owner keeps its own until K are ready: it takes part in one
sum at a time, and the protection sums those K alone. Updates are weighed by rows too, unless ``strategy.weighting`` is
uniform as in the paper; s scales an update and not its weight, so that stale sums make small steps. What is more than
``max_staleness`` rounds old is thrown away. It must not import ray or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fedray import seeds
from fedray.collecting import Asked, Clock, Collected, collect, opened
from fedray.config.schedule import Buffered
from fedray.errors import ConfigError
from fedray.federation import Federation, ServerState
from fedray.protocols import BackgroundCohort
from fedray.rounds import After, Trained, goes_on, initial_state, recorded, stepped
from fedray.values import Absent, Assignment, Kept, RoundPlan, Staleness


def federate_buffered(federation: Federation, state: ServerState | None = None) -> Iterator[After]:
    """As ``fedray.rounds.federate``, without cohorts. What owners train when a run is cut off is asked for again.

    Raises:
        ConfigError: the schedule is another, or owners cannot train in the background.
        RunError: no owner has answered for some rounds.
    """
    state = state or initial_state(federation)
    floor = _Floor(federation)
    try:
        while goes_on(federation.experiment, state):
            trained = _train_round(federation, state, floor)
            state = trained.state
            yield state, recorded(federation, trained, trained.evaluate(federation))
    finally:
        floor.leave()


def _train_round(federation: Federation, state: ServerState, floor: _Floor) -> Trained:
    """One more round, up to the new model."""
    clock = Clock()
    plan = federation.mechanism.plan(state.mechanism, federation.strategy.plan(state.strategy, state.round + 1))
    plan = replace(plan, staleness=floor.staleness)
    filled = floor.fill(state, plan)
    clock.lap("train")
    combiner = federation.combiner(plan.round, sorted(filled.ready))
    clock.lap("prepare")
    asked = Asked(
        cohort=tuple(sorted({*filled.ready, *filled.absent})),
        too_slow=(),
        assignments=tuple(Assignment(name, plan, plan.work, None) for name in filled.ready),
    )
    gathered = collect(federation, state, asked, combiner, clock, floor.cohort.seal)
    collected = opened(filled.added_to(gathered, plan.round))
    clock.lap("open")
    return stepped(federation, replace(state, draws=filled.draws), plan, asked, collected, clock)


@dataclass(frozen=True)
class _Filled:
    """What came before a round's sum.

    Attributes:
        ready: owners that keep an update for it.
        absent: why others that were done have none.
        begun: owners that were given a model.
        draws: owners that were drawn so far, over all rounds.
    """

    ready: Mapping[str, Kept]
    absent: Mapping[str, Absent]
    begun: tuple[str, ...]
    draws: int

    def added_to(self, collected: Collected, round: int) -> Collected:
        """What the sum gave, and this."""
        unasked = set(self.ready) - {*collected.sealed, *collected.absent}
        lost = {name: Absent(name, round, "absent", "its sum was not prepared") for name in unasked}
        return replace(
            collected,
            absent={**self.absent, **lost, **collected.absent},
            reached=self.begun,
            staleness={name: round - kept.round for name, kept in self.ready.items()},
        )


class _Floor:
    """Who is at work, and who is done and keeps an update.

    Attributes:
        cohort: the owners.
        staleness: what becomes of old updates.

    Raises:
        ConfigError: the schedule is another, or owners cannot train in the background.
    """

    def __init__(self, federation: Federation) -> None:
        schedule, cohort = federation.experiment.schedule, federation.cohort
        if not isinstance(schedule, Buffered) or not isinstance(cohort, BackgroundCohort):
            raise ConfigError(
                f"schedule {schedule.name!r} and a {type(cohort).__name__}",
                "schedule 'buffered', and owners that train in the background",
                "run it by fedray.run",
            )
        self.cohort: BackgroundCohort = cohort
        self.staleness = Staleness(schedule.power, schedule.max_staleness)
        self._experiment = federation.experiment
        self._size = schedule.size
        self._most_at_work = schedule.at_work or len(cohort.population)
        self._at_work: dict[str, int] = {}
        self._ready: dict[str, Kept] = {}

    def fill(self, state: ServerState, plan: RoundPlan) -> _Filled:
        """Have owners train until there are enough updates for the round, or nobody is left who could give one."""
        absent = self._given_up(plan.round)
        begun: list[str] = []
        while len(self._ready) < self._size:
            begun += self._begun(state, plan, {*absent, *state.spending.exhausted}, state.draws + len(begun))
            if not self._at_work:
                break
            for one in self.cohort.ended():
                self._take(one, plan.round, absent)
        ready = dict(list(self._ready.items())[: self._size])
        self._ready = {name: kept for name, kept in self._ready.items() if name not in ready}
        return _Filled(ready, absent, tuple(begun), state.draws + len(begun))

    def leave(self) -> None:
        """Wait for nobody any more."""
        for name in self._at_work:
            self.cohort.forget(name)
        self._at_work = {}

    def _begun(self, state: ServerState, plan: RoundPlan, left_out: set[str], draws: int) -> list[str]:
        """Draw owners that are idle, uniformly, until enough are at work, and give them the model."""
        busy = {*left_out, *self._at_work, *self._ready}
        idle = sorted(name for name in self.cohort.population.names if name not in busy)
        begun: list[str] = []
        while idle and len(self._at_work) < self._most_at_work:
            draw = seeds.generator(self._experiment.seed, "buffered", draws + len(begun))
            name = idle.pop(int(draw.integers(len(idle))))
            self._at_work[name] = plan.round
            self.cohort.begin(state.vector, Assignment(name, plan, plan.work, self._experiment.deadline_s))
            begun.append(name)
        return begun

    def _take(self, one: Kept | Absent, round: int, absent: dict[str, Absent]) -> None:
        """Note what an owner that is done has: an update, or none."""
        del self._at_work[one.owner]
        if isinstance(one, Absent):
            absent[one.owner] = replace(one, round=round)
        else:
            self._ready[one.owner] = one

    def _given_up(self, round: int) -> dict[str, Absent]:
        """Throw away what is too old by now, and wait no longer for what would be; other owners take their place."""
        oldest = round - self.staleness.most
        reason = f"its model is more than {self.staleness.most} rounds old"
        kept = {name: one.spent for name, one in self._ready.items() if one.round < oldest}
        at_work = [name for name, begun_in in self._at_work.items() if begun_in < oldest]
        for name in kept:
            del self._ready[name]
        for name in at_work:
            self.cohort.forget(name)
            del self._at_work[name]
        return {name: Absent(name, round, "dropped", reason, kept.get(name)) for name in (*kept, *at_work)}
