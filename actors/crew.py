"""The owners' actors: made where placement says, felt for, and brought back when they are lost.

Ray restarts an actor whose process or node was lost by itself, on a node that fits its placement, and nowhere else. One
that was killed, or that refused its node, is dead for good: another takes its place. Who answers is found out by calls
that are left outstanding, so that nobody waits twice for an owner that is silent.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from threading import Lock
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from fedray.actors.owner import RemoteOwner
from fedray.actors.refusal import elsewhere, refusal_in
from fedray.actors.resources import alive_nodes, named, owner_options, owner_seat
from fedray.config import Experiment
from fedray.errors import ResourcesError
from fedray.owners import Owner

SILENCE_S = 10.0
"""How long a sign of life is waited for, of an owner that gave the last one. Ray takes longer to give up a node."""
FRESH_S = 1.0
"""For how long a sign of life is taken for another: a round has many questions, and each costs a call an owner."""
_TICK_S = 0.1


class Crew(Mapping[str, Any]):
    """Owner's name to its actor. Safe to use from several threads.

    Args:
        openers: owner's name to what opens the owner, run inside its actor.
        experiment: says placement and resources.
        cpus: logical CPUs of an owner whose placement names none.
        run: stands in the actors' names; unique in the cluster. The experiment's name and a random part if left out.

    Attributes:
        gone: owners that gave no sign of life when last asked for one, and why, in one line each.
        dead: owners of them whose actor will not come back, until another takes its place, and what it died of.
    """

    def __init__(
        self, openers: Mapping[str, Callable[[], Owner]], experiment: Experiment, cpus: float, run: str | None = None
    ) -> None:
        self._openers = openers
        self._experiment = experiment
        self._cpus = cpus
        self._run = run or f"{experiment.name}-{secrets.token_hex(3)}"
        self._lock = Lock()
        self._made = Counter[str]()
        self._pulses: dict[str, Any] = {}
        self._heard: dict[str, float] = {}
        self._gone_since: dict[str, float] = {}
        self._refused: dict[str, set[str]] = defaultdict(set)
        self._actors: dict[str, Any] = {}
        self.gone: dict[str, str] = {}
        self.dead: dict[str, ResourcesError] = {}
        for name in sorted(openers):
            self._make(name)

    def __getitem__(self, owner: str) -> Any:
        return self._actors[owner]

    def __iter__(self) -> Iterator[str]:
        return iter(self._actors)

    def __len__(self) -> int:
        return len(self._actors)

    def present(self, names: Collection[str], wait_s: float = 0.0) -> set[str]:
        """Those of these owners that answer, now or within a time. One that is dead for good is made anew, once.

        Args:
            names: owners.
            wait_s: how long to wait for those that are gone, in seconds from when they were found to be; one that was
                there when it was last asked is given ``SILENCE_S`` all the same.
        """
        began = time.monotonic()
        missing, replaced = {name for name in names if not self._is_fresh(name)}, set[str]()
        while True:
            with self._lock:
                missing = {name for name in missing if not self._answers(name)}
                for name in (missing & self.dead.keys()) - replaced:
                    self._make(name)
                    replaced.add(name)
            waited = time.monotonic() - began
            awaited = [name for name in missing if self._is_awaited(name, waited, wait_s)]
            if not awaited:
                break
            self._listen(awaited)
        self._explain(missing)
        return set(names) - missing

    def doubt(self, owner: str) -> None:
        """Ask an owner for a sign of life when it is needed next, however lately it gave one: a call of it was lost."""
        self._heard.pop(owner, None)

    def restart(self, owner: str) -> None:
        """End an owner's process, which hangs, and have Ray start another."""
        ray.kill(self._actors[owner], no_restart=False)

    def close(self) -> None:
        """End all actors. Safe to call twice."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors = {}

    def _make(self, name: str) -> None:
        """Make an owner's actor, not on a node that refused it where there is another."""
        seat = owner_seat(self._experiment, name, self._cpus)
        options = owner_options(self._experiment, name, self._cpus)
        if refused := self._refused[name]:
            fitting = [node["NodeID"] for node in alive_nodes() if seat.fits(node)]
            if others := elsewhere(refused, fitting):
                options["label_selector"] = {**seat.labels, **others}
        self._made[name] += 1
        again = f" ({self._made[name]})" if self._made[name] > 1 else ""
        actor = RemoteOwner.options(**options, **named(name, self._run + again))
        self._actors[name] = actor.remote(self._openers[name], seat.identity)
        self.dead.pop(name, None)

    def _answers(self, name: str) -> bool:
        """Whether an owner has given the sign of life that is outstanding; asks for one where none is."""
        if name not in self._pulses:
            self._pulses[name] = self._actors[name].pulse.remote()
        pulse = self._pulses[name]
        if not ray.wait([pulse], timeout=0)[0]:
            return False
        del self._pulses[name]
        try:
            ray.get(pulse)
        except ActorUnavailableError:
            self._lost(name, "its actor was lost; Ray starts it again")
        except RayError as error:
            self._bury(name, error)
        else:
            self.gone.pop(name, None)
            self._gone_since.pop(name, None)
            self._heard[name] = time.monotonic()
            return True
        return False

    def _is_fresh(self, name: str) -> bool:
        return time.monotonic() - self._heard.get(name, -math.inf) < FRESH_S

    def _bury(self, name: str, error: RayError) -> None:
        """Take note that an actor is dead for good, and of what."""
        if refusal := refusal_in(error):
            self._refused[name].add(refusal.node)
            self.dead[name] = refusal.error
            self._lost(name, f"its actor refused {refusal.error.found}")
        else:
            self.dead[name] = _ended(name, error)
            self._lost(name, "its actor was ended; another takes its place")

    def _is_awaited(self, name: str, waited_s: float, wait_s: float) -> bool:
        if name in self.dead:
            return False
        if name in self._gone_since:
            return time.monotonic() - self._gone_since[name] < wait_s
        return waited_s < max(wait_s, SILENCE_S)

    def _listen(self, names: Collection[str]) -> None:
        """Sleep until all of these have answered, or a little while."""
        pulses = [self._pulses[name] for name in names if name in self._pulses]
        if pulses:
            ray.wait(pulses, num_returns=len(pulses), timeout=_TICK_S)
        else:
            time.sleep(_TICK_S)

    def _explain(self, missing: Collection[str]) -> None:
        nodes = alive_nodes() if missing else []
        for name in missing:
            if not any(owner_seat(self._experiment, name, self._cpus).fits(node) for node in nodes):
                self._lost(name, "its node is gone; it is back when a node of its placement is there")
            elif name not in self.gone:
                self._lost(name, f"no sign of life for {SILENCE_S:g} s")

    def _lost(self, name: str, reason: str) -> None:
        self.gone[name] = reason
        self._gone_since.setdefault(name, time.monotonic())


def _ended(name: str, error: RayError) -> ResourcesError:
    return ResourcesError(
        f"the actor of owner {name!r} could not be started: {str(error).strip().rpartition(chr(10))[2]}",
        "an actor that starts",
        "see that its node has this fedray, and your own code where the experiment names it",
    )
