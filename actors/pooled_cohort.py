"""The cohort of simulated owners that share a few Ray actors.

Any pool can open any owner, and what an owner gives does not depend on where it is opened. Each has a pool of its own
all the same, which keeps its rows in memory; only what would leave another pool idle moves there. Owners whose
protection keeps secrets from message to message never move.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from fedray.actors.calls import GRACE_S, gone
from fedray.actors.cohort import unwrapped
from fedray.actors.pool import RemotePool, Worked
from fedray.actors.resources import pool_demands, pool_options
from fedray.config import Experiment
from fedray.config.learning import Plain
from fedray.dealing import Dealer
from fedray.errors import ResourcesError
from fedray.open_owners import OpensOwner, ascending
from fedray.pools import MakesPools, some_sizes
from fedray.values import Absent, Assignment, Choice, Part, Population, Sealed, Subtotal, Tally, Vector

_LOST = "its pool died; it is restarted where it can be"
_SMALL_BYTES = 2**16
"""Ray carries what is smaller inside its messages."""


class PooledCohort:
    """Creates the pools' actors, deals owners out to them, and carries what they give.

    Args:
        openers: owner's name to what opens the owner, run inside a pool.
        experiment: says what each pool may take.
        cpus: logical CPUs that pools share.
        makes: makes the pools, in their actors.
        population: all owners, where that is known without opening them.

    Attributes:
        population: all owners.
        at_once: owners that a pool trains as one batched computation.
        notes: why so many.

    Raises:
        ResourcesError: the cluster lacks something, or pools did not start in time.
        FedrayError: what an owner raised when it was opened.
    """

    def __init__(
        self,
        openers: Mapping[str, OpensOwner],
        experiment: Experiment,
        cpus: float,
        makes: MakesPools,
        population: Population | None = None,
    ) -> None:
        demands = pool_demands(experiment, cpus)
        self._answer_timeout_s = experiment.resources.answer_timeout_s
        self._start_timeout_s = experiment.resources.start_timeout_s
        self._deadline_s = experiment.deadline_s
        self._names = ascending(openers)
        self._work = defaultdict[str, float](float)
        self._pools: list[Any] = [RemotePool.options(**pool_options(one)).remote(makes, openers) for one in demands]
        try:
            self.population = self._join(population)
            self._dealer = Dealer(
                self.population, len(demands), experiment.train.batch_size, isinstance(experiment.protection, Plain)
            )
            choice: Choice = unwrapped(self._pools[0].choose.remote(some_sizes(self.population)))
            self._all("use", [(choice.at_once,)] * len(demands))
        except BaseException:
            self.close()
            raise
        self.at_once = choice.at_once
        self.notes = (f"pools: {len(demands)}", *([choice.line] if choice.line else []))

    def train(
        self,
        vector: Vector,
        assignments: Sequence[Assignment],
        patience_s: float | None = None,  # noqa: ARG002  # no closing of rounds of simulated owners
    ) -> Iterable[Sealed | Subtotal | Absent]:
        """Deal assignments out, most work first; yield what pools give as it arrives.

        Where owners have a deadline, a pool that is late by more than all of its owners' together is started anew.
        """
        sent = _sent(vector)
        asked_at = time.time()
        calls = {
            self._pools[place].train.remote(sent, part, self.at_once): _Call(place, part, self._expires(len(part)))
            for place, part in enumerate(self._dealer.dealt(assignments))
            if part
        }
        ended: list[float] = []
        while calls:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=_patience(calls.values()), fetch_local=False)
            for stream in done or [late for late, call in calls.items() if call.expires <= time.monotonic()]:
                call = calls[stream]
                answer = _next(stream) if done else None
                if isinstance(answer, Worked):
                    ended.append(self._book(answer, asked_at))
                    del calls[stream]
                elif answer is not None:
                    call.answered(answer)
                    yield answer
                else:
                    if not done:
                        ray.kill(self._pools[call.place], no_restart=False)
                    yield from (gone(one, _LOST) for one in calls.pop(stream).missing.values())
        self._work["wait"] += sum(max(ended, default=0.0) - one for one in ended)

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """Ask all pools at once; owners that train meanwhile answer from another thread of their pool."""
        by_pool: dict[int, dict[str, bytes]] = {}
        for name, message in messages.items():
            by_pool.setdefault(self._dealer.home(name), {})[name] = message
        refs = {self._pools[place].answer.remote(round, part): part for place, part in by_pool.items()}
        done, late = ray.wait(list(refs), num_returns=len(refs), timeout=self._answer_timeout_s)
        answers: dict[str, bytes | Absent] = {}
        for ref in done:
            try:
                answers |= ray.get(ref)
            except RayError:
                answers |= {name: Absent(name, round, "absent", _LOST) for name in refs[ref]}
        reason = f"no answer within {self._answer_timeout_s:g} s"
        return answers | {name: Absent(name, round, "absent", reason) for ref in late for name in refs[ref]}

    def evaluate(self, vector: Vector, part: Part, owners: Sequence[str]) -> Iterator[tuple[str, Tally]]:
        """Tallies of the owners named; those of a pool that died are left out."""
        sent = _sent(vector)
        asked_at = time.time()
        refs = [
            pool.evaluate.remote(sent, part, names, self.at_once)
            for pool, names in zip(self._pools, self._dealer.at_home(owners), strict=True)
            if names
        ]
        while refs:
            (ref,), refs = ray.wait(refs, num_returns=1)
            try:
                tallies, worked = ray.get(ref)
            except RayActorError:
                continue
            self._book(worked, asked_at)
            yield from tallies.items()

    def work(self) -> Mapping[str, float]:
        work, self._work = self._work, defaultdict(float)
        return dict(work)

    def close(self) -> None:
        for pool in self._pools:
            ray.kill(pool)
        self._pools = []

    def _book(self, worked: Worked, asked: float) -> float:
        """Take in what a pool did that was asked at this time, less what it was still busy with; when it was done."""
        now = time.time()
        for what, spent in worked.work.items():
            self._work[what] += spent
        self._work["carry"] += max(0.0, now - max(asked, worked.busy_until) - worked.seconds)
        return now

    def _expires(self, n_owners: int) -> float:
        """When a pool has been waited for long enough that trains so many owners, on the monotonic clock."""
        return time.monotonic() + (self._deadline_s or math.inf) * n_owners + GRACE_S

    def _join(self, known: Population | None) -> Population:
        """All owners; where they are known before, each pool opens one, to see that it can."""
        n = len(self._pools)
        names = [self._names[place : place + 1 if known else None : n] for place in range(n)]
        infos = self._all("join", [(part,) for part in names])
        return known or Population.of(info for part in infos for info in part)

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What every pool's method gives.

        Raises:
            ResourcesError: one did not answer in time.
            FedrayError: what it raised.
        """
        refs = [getattr(pool, method).remote(*given) for pool, given in zip(self._pools, arguments, strict=True)]
        _, late = ray.wait(refs, num_returns=len(refs), timeout=self._start_timeout_s)
        if late:
            raise ResourcesError(
                f"{len(late)} of {len(refs)} pools did not start within {self._start_timeout_s:g} s",
                "all pools started",
                "raise resources.start_timeout_s, or free what other work on the cluster holds",
            )
        return [unwrapped(ref) for ref in refs]


class _Call:
    """What one pool was asked in a round.

    Args:
        place: number of the pool.
        part: assignments of its owners.
        expires: when it has been waited for long enough.
    """

    def __init__(self, place: int, part: Sequence[Assignment], expires: float) -> None:
        self.place = place
        self.missing = {one.owner: one for one in part}
        self.expires = expires

    def answered(self, answer: Sealed | Subtotal | Absent) -> None:
        """Take note of whose answers are in it."""
        for one in answer.covers if isinstance(answer, Subtotal) else (answer,):
            self.missing.pop(one.owner, None)


def _patience(calls: Iterable[_Call]) -> float | None:
    """Seconds until the first call expires; None where none does."""
    seconds = max(0.0, min(call.expires for call in calls) - time.monotonic())
    return None if math.isinf(seconds) else seconds


def _sent(vector: Vector) -> Any:
    """A vector as it is best handed to all pools: small ones in the call, others once a node by the object store."""
    return vector if vector.nbytes <= _SMALL_BYTES else ray.put(vector)


def _next(stream: Any) -> Sealed | Subtotal | Absent | Worked | None:
    """The next answer of a pool; None where it died."""
    try:
        answer: Sealed | Subtotal | Absent | Worked = ray.get(next(stream))
    except (RayError, StopIteration):
        return None
    return answer
