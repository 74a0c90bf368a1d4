"""The owners' actors: made where placement says, brought back when they are lost.

Ray restarts an actor whose process or node was lost by itself, on a node that fits its placement, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

from fedray.actors.owner import RemoteOwner
from fedray.actors.resources import owner_options
from fedray.config import Experiment
from fedray.owners import Owner


class Crew(Mapping[str, Any]):
    """Owner's name to its actor.

    Args:
        openers: owner's name to what opens the owner, run inside its actor.
        experiment: says placement and resources.
        cpus: logical CPUs of an owner whose placement names none.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Owner]], experiment: Experiment, cpus: float) -> None:
        self._actors: dict[str, Any] = {
            name: RemoteOwner.options(**owner_options(experiment, name, cpus)).remote(openers[name])
            for name in sorted(openers)
        }

    def __getitem__(self, owner: str) -> Any:
        return self._actors[owner]

    def __iter__(self) -> Iterator[str]:
        return iter(self._actors)

    def __len__(self) -> int:
        return len(self._actors)

    def close(self) -> None:
        """End all actors. Safe to call twice."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors = {}
