"""What actors ask of the cluster, and whether it has it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group

from fedray.actors.seats import Demand, Node, Seat, identity_at
from fedray.config import Experiment, Placement
from fedray.config.cluster import Place, Pooled
from fedray.config.learning import KEY_HOLDER, Bfv, Ckks
from fedray.errors import ResourcesError

_ACTOR_BYTES = 200 * 2**20
"""Memory that an owner's actor takes before it holds a row."""


def owner_cpus(experiment: Experiment, n_owners: int, cpus: float) -> float:
    """Logical CPUs an owner: as configured, or an equal share of ``cpus``, at most one."""
    asked = experiment.resources.owner_cpus
    if asked != "auto":
        return float(asked)
    share = (cpus - experiment.resources.server_cpus) / max(1, n_owners)
    return max(0.0001, min(1.0, int(share * 1e4) / 1e4))


def owner_demand(experiment: Experiment, name: str, cpus: float) -> Demand:
    """Resources of one owner's actor, as Ray names them."""
    place = experiment.placement.get(name, Placement())
    demand = {"CPU": place.cpus or cpus, "GPU": experiment.gpus_of(name), **place.resources}
    return {key: value for key, value in demand.items() if value}


def owner_options(experiment: Experiment, name: str, cpus: float) -> dict[str, Any]:
    """Ray options of one owner's actor. Calls are never retried: a retry would train, and charge privacy, twice."""
    place = experiment.placement.get(name, Placement())
    return {**_options(owner_demand(experiment, name, cpus), place.labels), "max_restarts": -1, "max_task_retries": 0}


def server_options(experiment: Experiment) -> dict[str, Any]:
    """Ray options of the server's actor: where it must run, and what is reserved for it."""
    seat = server_seat(experiment)
    return _options(seat.demand, seat.labels)


def key_holder_options(place: Place) -> dict[str, Any]:
    """Ray options of the key holder's actor."""
    return {**_options(dict(place.resources), place.labels), "max_restarts": -1, "max_task_retries": 0}


def named(what: str, run: str) -> dict[str, str]:
    """Ray options that give an actor a name which says something to readers of Ray's dashboard."""
    return {"name": f"{what} of {run}", "namespace": "fedray"}


def _options(demand: Demand, labels: Mapping[str, str]) -> dict[str, Any]:
    resources = {kind: amount for kind, amount in demand.items() if kind not in ("CPU", "GPU")}
    return {
        "num_cpus": demand.get("CPU", 0),
        "num_gpus": demand.get("GPU", 0),
        "resources": resources,
        **({"label_selector": dict(labels)} if labels else {}),
    }


def owner_seat(experiment: Experiment, name: str, cpus: float) -> Seat:
    """What one owner's actor asks of its node."""
    place = experiment.placement.get(name, Placement())
    demand = owner_demand(experiment, name, cpus)
    return Seat(f"owner {name!r}", f"placement.{name}", demand, place.labels, identity_at(place, name))


def server_seat(experiment: Experiment) -> Seat:
    """What the server's actor asks of its node."""
    resources = experiment.resources
    demand = {"CPU": resources.server_cpus, **resources.server.resources}
    asked = {kind: amount for kind, amount in demand.items() if amount}
    return Seat("the server", "resources.server", asked, resources.server.labels)


def key_holder_seat(experiment: Experiment) -> Seat | None:
    """What the key holder's actor asks of its node; None where there is no key holder."""
    if not isinstance(experiment.protection, Ckks | Bfv):
        return None
    place = experiment.protection.key_holder
    identity = identity_at(place, KEY_HOLDER)
    return Seat("the key holder", "protection.key_holder", dict(place.resources), place.labels, identity)


def n_pools(simulation: Pooled, cpus: float) -> int:
    """Pools that owners share: as configured, or one a CPU, or one a share of a GPU."""
    if simulation.pools != "auto":
        return simulation.pools
    if simulation.pool_gpus:
        return max(1, int(ray.cluster_resources().get("GPU", 0) / simulation.pool_gpus))
    return max(1, int(cpus))


def pool_demands(experiment: Experiment, cpus: float) -> list[Demand]:
    """Resources of each pool's actor, as Ray names them: an equal share of ``cpus``, at most one."""
    simulation = experiment.simulation
    assert isinstance(simulation, Pooled)
    n = n_pools(simulation, cpus)
    gpus = {"GPU": simulation.pool_gpus} if simulation.pool_gpus else {}
    share = max(0.0, cpus - experiment.resources.server_cpus) / n
    return [{"CPU": min(1.0, int(share * 1e4) / 1e4), **gpus}] * n


def pool_options(demand: Demand) -> dict[str, Any]:
    """Ray options of one pool's actor. Calls are never retried: a retry would train, and charge privacy, twice."""
    is_in_a_trial = get_current_placement_group() is not None
    return {
        "num_cpus": demand["CPU"],
        "num_gpus": demand.get("GPU", 0),
        "max_restarts": -1,
        "max_task_retries": 0,
        "scheduling_strategy": "DEFAULT" if is_in_a_trial else "SPREAD",
    }


def require(experiment: Experiment, names: Sequence[str], cpus: float) -> None:
    """Refuse what the cluster can never give, instead of waiting for it.

    Args:
        experiment: the experiment.
        names: all owners.
        cpus: logical CPUs that actors share where the experiment says ``auto``.

    Raises:
        ResourcesError: says what is missing and what is there.
    """
    seats = [seat for seat in (server_seat(experiment), key_holder_seat(experiment)) if seat]
    wanted: Counter[str] = Counter()
    if isinstance(experiment.simulation, Pooled):
        demands = pool_demands(experiment, cpus)
        _require_processors(len(demands), cpus)
        for demand in demands:
            wanted.update(demand)
    else:
        _require_room(len(names))
        share = owner_cpus(experiment, len(names), cpus)
        seats += [owner_seat(experiment, name, share) for name in names]
    nodes = alive_nodes()
    for seat in seats:
        wanted.update(seat.demand)
        require_a_node(seat, nodes)
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(node["Resources"])
    missing = [
        f"{amount:g} {kind} (the cluster has {total.get(kind, 0):g})"
        for kind, amount in sorted(wanted.items())
        if amount > total.get(kind, 0) + 1e-6
    ]
    if missing:
        raise ResourcesError(
            f"the experiment asks for {', '.join(missing)}",
            "no more than the cluster has",
            "lower resources.owner_cpus or owner_gpus, or simulation.pools, or connect to a larger cluster",
        )


def alive_nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that are there, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _require_processors(n_pools: int, cpus: float) -> None:
    """Pools compute all the time: more of them than processors only take memory.

    Raises:
        ResourcesError: there are more.
    """
    if n_pools > max(1, math.ceil(cpus)):
        raise ResourcesError(
            f"{n_pools} pools on {cpus:g} CPUs", "at most one a CPU", "lower simulation.pools, or set it to auto"
        )


def _require_room(n_owners: int) -> None:
    """An actor takes memory, whatever it does: refuse more than there is, before it is gone.

    Raises:
        ResourcesError: the cluster has too little.
    """
    memory = sum(node["Resources"].get("memory", 0) for node in alive_nodes())
    if n_owners * _ACTOR_BYTES > memory:
        raise ResourcesError(
            f"{n_owners:,} owners, each an actor of about {_ACTOR_BYTES / 2**20:.0f} MiB",
            f"at most {int(memory / _ACTOR_BYTES):,} in the cluster's {memory / 2**30:.0f} GiB",
            "set simulation: pooled, so that simulated owners share processes",
        )


def require_a_node(seat: Seat, nodes: Sequence[Node]) -> None:
    """Refuse what no node can ever hold.

    Raises:
        ResourcesError: no node can.
    """
    if any(seat.fits(node) for node in nodes):
        return
    raise ResourcesError(
        f"no node can hold {seat.what}, which asks for {seat}",
        "one node that has all of it",
        f"start that node and join it to the cluster, or correct {seat.setting}",
    )
