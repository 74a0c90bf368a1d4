"""The cohort of simulated owners that share a few Ray actors.

Any pool can open any owner, and what an owner gives does not depend on where it is opened. Each has a pool of its own
all the same, which keeps its rows in memory; only what would leave another pool idle moves there. Owners whose
protection keeps secrets from message to message never move.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from fedray.actors.cohort import gone, unwrapped
from fedray.actors.pool import RemotePool, Worked
from fedray.actors.resources import pool_demands, pool_options
from fedray.config import Experiment
from fedray.config.experiment import Pooled
from fedray.config.learning import Plain
from fedray.errors import ResourcesError
from fedray.open_owners import OpensOwner, ascending
from fedray.pools import MakesPools, most_first, some_sizes
from fedray.tasks.descent import count_steps
from fedray.values import Absent, Assignment, Choice, Part, Population, Sealed, Subtotal, Tally, Vector

_LOST = "its pool died; it is restarted where it can be"


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
        assert isinstance(experiment.simulation, Pooled)
        demands = pool_demands(experiment.simulation, cpus)
        self._answer_timeout_s = experiment.resources.answer_timeout_s
        self._start_timeout_s = experiment.resources.start_timeout_s
        self._batch_size = experiment.train.batch_size
        self._may_move = isinstance(experiment.protection, Plain)
        self._names = ascending(openers)
        self._work = defaultdict[str, float](float)
        self._pools: list[Any] = [RemotePool.options(**pool_options(one)).remote(makes, openers) for one in demands]
        try:
            self.population = self._join(population)
            choice = self._choice(experiment.simulation)
            self._all("use", [(choice.at_once,)] * len(demands))
        except BaseException:
            self.close()
            raise
        self.at_once = choice.at_once
        self.notes = (f"pools: {len(demands)}", *([choice.line] if choice.line else []))

    def train(self, vector: Vector, assignments: Sequence[Assignment]) -> Iterable[Sealed | Subtotal | Absent]:
        """Deal assignments out, most rows first; yield what pools give as it arrives."""
        shared = ray.put(vector)
        asked_at = time.time()
        asked = {
            self._pools[place].train.options(num_returns="streaming").remote(shared, part): list(part)
            for place, part in enumerate(self._dealt(assignments))
            if part
        }
        missing = dict(asked)
        ended: list[float] = []
        while missing:
            (stream,), _ = ray.wait(list(missing), num_returns=1, fetch_local=False)
            answer = _next(stream)
            if isinstance(answer, Worked):
                ended.append(self._book(answer, asked_at))
                del missing[stream]
            elif answer is None:
                yield from (gone(one, _LOST) for one in missing.pop(stream))
            else:
                yield answer
        self._work["wait"] += sum(max(ended, default=0.0) - one for one in ended)

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        """Ask all pools at once; owners that train meanwhile answer from another thread of their pool."""
        by_pool: dict[int, dict[str, bytes]] = {}
        for name, message in messages.items():
            by_pool.setdefault(self._home(name), {})[name] = message
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
        shared = ray.put(vector)
        asked_at = time.time()
        refs = [
            pool.evaluate.remote(shared, part, names)
            for pool, names in zip(self._pools, self._shares(owners), strict=True)
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

    def _dealt(self, assignments: Sequence[Assignment]) -> list[list[Assignment]]:
        """Each pool's part: most work first, to the owner's own pool, whose memory has its rows, or to the idlest."""
        parts: list[list[Assignment]] = [[] for _ in self._pools]
        loads = [0] * len(parts)
        fair = sum(map(self._steps, assignments)) / len(parts)
        for assignment in most_first(assignments, self.population):
            steps, place = self._steps(assignment), self._home(assignment.owner)
            if self._may_move and loads[place] + steps > fair:
                place = loads.index(min(loads))
            parts[place].append(assignment)
            loads[place] += steps
        return parts

    def _steps(self, assignment: Assignment) -> int:
        n_rows = self.population.n_train_of(assignment.owner)
        return count_steps(assignment.work, n_rows, self._batch_size)

    def _shares(self, names: Sequence[str]) -> list[list[str]]:
        shares: list[list[str]] = [[] for _ in self._pools]
        for name in names:
            shares[self._home(name)].append(name)
        return shares

    def _home(self, owner: str) -> int:
        return bisect_left(self._names, owner) % len(self._pools)

    def _join(self, known: Population | None) -> Population:
        """All owners; where they are known before, each pool opens one, to see that it can."""
        n = len(self._pools)
        names = [self._names[place : place + 1 if known else None : n] for place in range(n)]
        infos = self._all("join", [(part,) for part in names])
        return known or Population.of(info for part in infos for info in part)

    def _choice(self, simulation: Pooled) -> Choice:
        if simulation.at_once != "auto":
            return Choice(simulation.at_once, "")
        choice: Choice = unwrapped(self._pools[0].choose.remote(some_sizes(self.population)))
        return choice

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


def _next(stream: Any) -> Sealed | Subtotal | Absent | Worked | None:
    """The next answer of a pool; None where it died."""
    try:
        answer: Sealed | Subtotal | Absent | Worked = ray.get(next(stream))
    except (RayError, StopIteration):
        return None
    return answer
