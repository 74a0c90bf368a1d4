"""Whether a cluster can carry an experiment, and what stands in its way. It must not import torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import available_resources_per_node  # a developers' API; there is no other by node

from fedray import data
from fedray.actors.placing import Node, Placing, placing
from fedray.actors.probe import Answer, ask, here
from fedray.actors.resources import alive_nodes, key_holder_seat, owner_cpus, owner_seat, require, server_seat
from fedray.actors.seats import Seat
from fedray.config import Experiment
from fedray.config.cluster import Pooled
from fedray.errors import ResourcesError

CLOCKS_APART_S = 5.0
"""Clocks that are further apart make records and logs of several nodes hard to read, and certificates fail."""
_SEVERE = ("python", "ray", "fedray")
"""Versions without which nodes do not understand each other."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        found: in one line.
        remedy: what to do about it.
        stops: whether it stands in the way of the experiment, or only may.
    """

    found: str
    remedy: str
    stops: bool


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    Attributes:
        nodes: of the cluster, those that are there first.
        owners: of the experiment, by name; empty without an experiment, or where owners share pools.
        others: the server, and the key holder where there is one.
        findings: what is not as it should be, besides who cannot be placed.
    """

    nodes: tuple[Node, ...]
    owners: Mapping[str, Placing] = field(default_factory=dict)
    others: Mapping[str, Placing] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether nothing stands in the way."""
        placings = [*self.owners.values(), *self.others.values()]
        return all(one.placeable for one in placings) and not any(one.stops for one in self.findings)


def diagnose(experiment: Experiment | None, timeout_s: float) -> Diagnosis:
    """Ask all nodes of the cluster that this process is connected to.

    Args:
        experiment: whose actors are to be placed; None to look at the cluster alone.
        timeout_s: how long nodes may take to answer, all together.
    """
    nodes = _nodes(timeout_s)
    general = [*_silent(nodes), *_versions(nodes), *_security(nodes), *_clocks(nodes)]
    if experiment is None:
        return Diagnosis(nodes, findings=tuple(general))
    cpus = ray.cluster_resources().get("CPU", 1.0)
    seats = {"server": server_seat(experiment), "key holder": key_holder_seat(experiment)}
    owners = {name: placing(seat, nodes) for name, seat in _owners(experiment, cpus).items()}
    others = {what: placing(seat, nodes) for what, seat in seats.items() if seat}
    if all(one.placeable for one in (*owners.values(), *others.values())):
        general += _sums(experiment, cpus)
    return Diagnosis(nodes, owners, others, tuple(general))


def _owners(experiment: Experiment, cpus: float) -> dict[str, Seat]:
    if isinstance(experiment.simulation, Pooled):
        return {}
    names = data.owner_names(experiment.data)
    share = owner_cpus(experiment, len(names), cpus)
    return {name: owner_seat(experiment, name, share) for name in names}


def _nodes(timeout_s: float) -> tuple[Node, ...]:
    answers = ask([node["NodeID"] for node in alive_nodes()], timeout_s)
    free = available_resources_per_node()
    listed = sorted(ray.nodes(), key=lambda node: (not node["Alive"], node["NodeManagerHostname"], node["NodeID"]))
    return tuple(_node(one, free.get(one["NodeID"], {}), answers.get(one["NodeID"], _GONE)) for one in listed)


_GONE = Answer(silence="it is gone")


def _node(node: Mapping[str, Any], free: Mapping[str, float], answer: Answer) -> Node:
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
    return Node(node["NodeID"], name, node["Alive"], node["Resources"], free, node.get("Labels", {}), answer)


def _silent(nodes: Iterable[Node]) -> list[Finding]:
    return [
        Finding(
            f"{node.name} could not be asked: {node.answer.silence}",
            "see that fedray is installed there as here, and that nothing else keeps the node busy",
            stops=False,
        )
        for node in nodes
        if node.is_alive and node.answer.said is None
    ]


def _versions(nodes: Iterable[Node]) -> list[Finding]:
    """Versions that are not the same on all nodes and here."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    said = [("this process", here())] + [(node.name, node.answer.said) for node in nodes if node.answer.said]
    for where, one in said:
        for package, version in one.versions.items():
            found[package][version].append(where)
    return [
        Finding(
            f"{package} differs: " + "; ".join(f"{version} on {', '.join(on)}" for version, on in versions.items()),
            f"install the same {package} everywhere",
            stops=package in _SEVERE,
        )
        for package, versions in found.items()
        if len(versions) > 1
    ]


def _security(nodes: Sequence[Node]) -> list[Finding]:
    """What keeps strangers on the network out. A cluster of this machine alone needs none."""
    said = [node.answer.said for node in nodes if node.answer.said]
    if len(said) < 2:
        return []
    findings = []
    if not all(one.has_token for one in said):
        remedy = "set RAY_AUTH_MODE=token for all of Ray's processes, and give them the token"
        findings.append(Finding("token authentication is off: who reaches the cluster runs code on it", remedy, False))
    if not all(one.has_tls for one in said):
        remedy = "set RAY_USE_TLS=1 and certificates for all of Ray's processes, or use a network that is yours alone"
        findings.append(Finding("TLS is off: models and updates can be read on the network", remedy, False))
    return findings


def _clocks(nodes: Iterable[Node]) -> list[Finding]:
    return [
        Finding(
            f"the clock of {node.name} is {abs(node.answer.ahead_s):.0f} s "
            + ("ahead of" if node.answer.ahead_s > 0 else "behind")
            + " this one's",
            "set clocks by NTP",
            stops=False,
        )
        for node in nodes
        if node.answer.said and abs(node.answer.ahead_s) > CLOCKS_APART_S
    ]


def _sums(experiment: Experiment, cpus: float) -> list[Finding]:
    """What a run would be refused for, all actors together."""
    try:
        require(experiment, data.owner_names(experiment.data), cpus)
    except ResourcesError as error:
        return [Finding(error.found, error.remedy, stops=True)]
    return []
