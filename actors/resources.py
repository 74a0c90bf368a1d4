"""What actors ask of the cluster, and whether it has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from fedray.config import Experiment, Placement
from fedray.errors import ResourcesError

Demand = dict[str, float]


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
    demand = owner_demand(experiment, name, cpus)
    place = experiment.placement.get(name, Placement())
    return {
        "num_cpus": demand.pop("CPU", 0),
        "num_gpus": demand.pop("GPU", 0),
        "resources": demand,
        "max_restarts": -1,
        "max_task_retries": 0,
        **({"label_selector": dict(place.labels)} if place.labels else {}),
    }


def require(experiment: Experiment, names: Sequence[str], cpus: float) -> None:
    """Refuse what the cluster can never give, instead of waiting for it.

    Raises:
        ResourcesError: says what is missing and what is there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(node["Resources"])
    wanted: Counter[str] = Counter({"CPU": experiment.resources.server_cpus})
    for name in names:
        wanted.update(owner_demand(experiment, name, cpus))
        _require_a_node(experiment, name, cpus, nodes)
    missing = [
        f"{amount:g} {kind} (the cluster has {total.get(kind, 0):g})"
        for kind, amount in sorted(wanted.items())
        if amount > total.get(kind, 0) + 1e-6
    ]
    if missing:
        raise ResourcesError(
            f"the experiment asks for {', '.join(missing)}",
            "no more than the cluster has",
            "lower resources.owner_cpus or owner_gpus, take fewer owners, or connect to a larger cluster",
        )


def _require_a_node(experiment: Experiment, name: str, cpus: float, nodes: Sequence[Mapping[str, Any]]) -> None:
    demand = owner_demand(experiment, name, cpus)
    labels = experiment.placement.get(name, Placement()).labels
    if any(_fits(node, demand, labels) for node in nodes):
        return
    asked = ", ".join(
        [f"{value:g} {key}" for key, value in demand.items()] + [f"label {k}={v}" for k, v in labels.items()]
    )
    raise ResourcesError(
        f"no node can hold owner {name!r}, which asks for {asked}",
        "one node that has all of it",
        f"start that node and join it to the cluster, or correct placement.{name}",
    )


def _fits(node: Mapping[str, Any], demand: Demand, labels: Mapping[str, str]) -> bool:
    has_resources = all(node["Resources"].get(kind, 0) + 1e-6 >= amount for kind, amount in demand.items())
    return has_resources and all(node.get("Labels", {}).get(key) == value for key, value in labels.items())
