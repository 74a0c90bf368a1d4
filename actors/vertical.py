"""The parties of vertical learning as Ray actors: one a feature owner, and one for the label holder, which calls them.

Tables are opened inside them, on their nodes. What an exception says could quote a row, so only its type and place
leave an actor, or an error of this library. None is ever started again: a party's keys and half-made step are gone with
it, and masks must not be made twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from operator import methodcaller
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from fedray.actors.owner import place_of
from fedray.actors.refusal import refusal_in, require_here
from fedray.actors.resources import alive_nodes, key_holder_options, named, require_a_node
from fedray.actors.seats import Seat, identity_at
from fedray.config.cluster import Placement
from fedray.errors import ConfigError, FedrayError, ResourcesError, RunError
from fedray.vertical.feature_owner import FeatureOwner
from fedray.vertical.label_holder import LabelHolder
from fedray.vertical.session import OpensHolder, OpensOwner, blamed
from fedray.vertical.setting import Setting
from fedray.vertical.tables import Source

T = TypeVar("T")
START_S = 120.0
"""How long parties may take to start and to open their tables."""
ANSWER_S = 600.0
"""How long an owner that lives may take to answer: as long as an intersection of a million ids."""


class PartyActor:
    """One party, opened on first use.

    Args:
        open_party: opens the table and makes the keys, here.
        identity: what the node's identity file must name; None where any node will do.

    Raises:
        ResourcesError: the node is another's.
    """

    def __init__(self, open_party: Callable[[], Any], identity: str | None = None) -> None:
        if identity is not None:
            require_here(identity)
        self._open_party = open_party
        self._party: Any = None

    def do(self, operation: Callable[[Any], T]) -> T | FedrayError:
        """What the party returns of the caller's operation, or what it raises."""
        try:
            if self._party is None:
                self._party = self._open_party()
            return operation(self._party)
        except FedrayError as error:
            return error
        except Exception as error:
            return RunError(f"a failure: {place_of(error)}", "none", "run with in_process=True to debug it")

    def answer(self, message: bytes) -> bytes | FedrayError:
        """The party's answer to a message of the label holder."""
        return self.do(methodcaller("answer", message))


RemoteParty: Any = ray.remote(PartyActor)


class Calls:
    """Carries the label holder's messages to owners' actors.

    Args:
        actors: owner's name to its actor.
    """

    def __init__(self, actors: Mapping[str, Any]) -> None:
        self._actors = dict(actors)

    def __call__(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        asked = {name: self._actors[name].answer.remote(message) for name, message in messages.items()}
        return answers(asked, ANSWER_S)


class OnRay:
    """Every party an actor, on the node that its placement asks for.

    Args:
        setting: what all parties know.
        owners: feature owner's name to its table.
        labels: the label holder's.
        places: party's name to where its actor must run.

    Raises:
        ConfigError: a placement asks for a GPU.
        ResourcesError: no node can hold a party, or it did not start.
        FedrayError: a party's table is unfit.
    """

    def __init__(
        self, setting: Setting, owners: Mapping[str, Source], labels: Source, places: Mapping[str, Placement]
    ) -> None:
        self._holder_name = setting.holder
        self._label = f"{setting.experiment} {secrets.token_hex(2)}"
        places = {name: places.get(name, Placement()) for name in (*setting.owners, setting.holder)}
        for name, place in places.items():
            require_a_node(_seat(name, place, len(places)), alive_nodes())
        self._all: list[Any] = []
        self._owners = {
            name: self._started(name, places, OpensOwner(setting, name, owners[name])) for name in setting.owners
        }
        opens = OpensHolder(setting, labels, Calls(self._owners))
        self._holder = self._started(setting.holder, places, opens)
        self._open()

    def of_owners(self, operations: Mapping[str, Callable[[FeatureOwner], T]]) -> dict[str, T]:
        """As ``Session.of_owners``."""
        asked = {name: self._owners[name].do.remote(operation) for name, operation in operations.items()}
        return answers(asked, None)

    def of_holder(self, operation: Callable[[LabelHolder], T]) -> T:
        """As ``Session.of_holder``."""
        found: T = _answer(self._holder_name, self._holder.do.remote(operation), None)
        return found

    def close(self) -> None:
        """End all actors."""
        for actor in self._all:
            ray.kill(actor)

    def _started(self, name: str, places: Mapping[str, Placement], opens: Callable[[], Any]) -> Any:
        place = places[name]
        options = {**key_holder_options(place), "num_cpus": _cpus(place, len(places)), "max_restarts": 0}
        actor = RemoteParty.options(**options, **named(name, self._label)).remote(opens, identity_at(place, name))
        self._all.append(actor)
        return actor

    def _open(self) -> None:
        describe = methodcaller("describe")
        actors = {**self._owners, self._holder_name: self._holder}
        asked = {name: actor.do.remote(describe) for name, actor in actors.items()}
        try:
            _require_started(asked)
            answers(asked, None)
        except BaseException:
            self.close()
            raise


def _require_started(asked: Mapping[str, Any]) -> None:
    _, pending = ray.wait(list(asked.values()), num_returns=len(asked), timeout=START_S)
    if silent := [repr(name) for name, ref in asked.items() if ref in pending]:
        raise ResourcesError(
            f"{', '.join(silent)} did not start within {START_S:g} s",
            "room for every party, and tables that open in that time",
            "end what else runs on the cluster, or lower placement.NAME.cpus, which shares processors out",
        )


def answers(asked: Mapping[str, Any], timeout_s: float | None) -> dict[str, Any]:
    """What parties have answered to calls.

    Args:
        asked: party's name to Ray's reference of its answer.
        timeout_s: how long to wait for all of them; None for as long as they live.

    Raises:
        FedrayError: what a party answered instead, with its name.
        ResourcesError: a party's node is another's.
        RunError: a party is gone, or did not answer in time.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    found = {}
    for name, ref in asked.items():
        with blamed(name):
            found[name] = _answer(name, ref, until)
    return found


def _answer(name: str, ref: Any, until: float | None) -> Any:
    try:
        answer = ray.get(ref, timeout=None if until is None else max(0.0, until - time.monotonic()))
    except GetTimeoutError:
        raise RunError(f"no answer of {name!r} in time", "an answer", "see whether its node is overloaded") from None
    except RayError as error:
        if refusal := refusal_in(error):
            raise refusal.error from None
        reason = str(error).strip().rpartition("\n")[2]
        if not isinstance(error, RayActorError):
            raise RunError(
                f"{name!r} could not read what it was handed: {reason}",
                "models and functions that its node can import",
                "define them in the script that runs, or in a package that is installed on every party's node",
            ) from None
        raise RunError(
            f"{name!r} is gone: {reason}",
            "all parties at work",
            "start a new run: keys and weights that were not saved are lost with a party",
        ) from None
    if isinstance(answer, FedrayError):
        raise answer
    return answer


def _seat(name: str, place: Placement, n_parties: int) -> Seat:
    if place.gpus:
        raise ConfigError(f"placement.{name} with {place.gpus:g} GPUs", "none", "vertical learning computes on CPUs")
    demand = {"CPU": _cpus(place, n_parties), **place.resources}
    return Seat(f"party {name!r}", f"placement.{name}", demand, place.labels, identity_at(place, name))


def _cpus(place: Placement, n_parties: int) -> float:
    """As placed, or an equal share of the cluster's, at most one."""
    return place.cpus or max(0.0001, min(1.0, int(1e4 * ray.cluster_resources().get("CPU", 1.0) / n_parties) / 1e4))
