"""Whether a cluster has nodes for all that an experiment places: owners, the server and the key holder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedray.clusters.findings import Finding, error, warning
from fedray.clusters.launcher import LauncherFile
from fedray.clusters.node_types import OWNER_LABEL, OWNER_RESOURCE, NodeType, owners_of
from fedray.config import Experiment, Placement
from fedray.config.cluster import Place
from fedray.config.data import Tables
from fedray.config.learning import Bfv, Ckks


@dataclass(frozen=True)
class Asked:
    """What one actor must find on one node.

    Attributes:
        where: its key in the experiment.
        labels: node labels.
        resources: Ray's logical resources, ``CPU`` and ``GPU`` among them.
    """

    where: str
    labels: Mapping[str, str]
    resources: Mapping[str, float]

    def lacks(self, one: NodeType) -> list[str]:
        """What a kind of node has not, in words."""
        labels = [f"label {key}={value}" for key, value in self.labels.items() if one.labels.get(key) != value]
        resources = [
            f"{amount:g} {kind} (has {one.resources.get(kind, 0):g})"
            for kind, amount in self.resources.items()
            if amount > one.resources.get(kind, 0)
        ]
        return labels + resources


def check_placement(experiment: Experiment, types: Sequence[NodeType]) -> Iterator[Finding]:
    """Everything that an experiment places and the cluster has no node for.

    Args:
        experiment: what is to run.
        types: the cluster's kinds of nodes.
    """
    for asked in _asked(experiment):
        possible = [one for one in types if one.at_most > 0]
        lacking = min((asked.lacks(one) for one in possible), key=_distance, default=["any node"])
        if lacking:
            yield error(
                asked.where,
                f"no kind of node has all of it; the nearest lacks {', '.join(lacking)}",
                "add one, or correct it",
            )
    yield from _unpinned(experiment)
    yield from _unused(experiment, owners_of(types))


def check_placement_on_hosts(experiment: Experiment, file: LauncherFile) -> Iterator[Finding]:
    """The same where each host says itself what it is, so that only the number of hosts can be compared."""
    hosts, owners = len(file.worker_addresses), pinned_owners(experiment)
    if len(owners) > hosts:
        yield error("placement", f"{len(owners)} owners are pinned, each to a host, and there are {hosts}", "add hosts")
    yield from _unpinned(experiment)


def pinned_owners(experiment: Experiment) -> list[str]:
    """Whom the labels or resources name that an experiment's owners are pinned by."""
    return [name for place in experiment.placement.values() if (name := _named(place))]


def _distance(lacking: Sequence[str]) -> tuple[int, int]:
    """How far a kind of node is from what is asked: one that has the labels is the one that was meant."""
    return sum(one.startswith("label ") for one in lacking), len(lacking)


def _named(place: Place) -> str | None:
    named = [kind.removeprefix(OWNER_RESOURCE) for kind in place.resources if kind.startswith(OWNER_RESOURCE)]
    return place.labels.get(OWNER_LABEL) or next(iter(named), None)


def _asked(experiment: Experiment) -> Iterator[Asked]:
    for name, place in experiment.placement.items():
        yield Asked(f"placement.{name}", place.labels, _resources(experiment, name, place))
    server = experiment.resources.server
    yield Asked("resources.server", server.labels, server.resources)
    if isinstance(experiment.protection, Ckks | Bfv):
        holder = experiment.protection.key_holder
        yield Asked("protection.key_holder", holder.labels, holder.resources)


def _resources(experiment: Experiment, name: str, place: Placement) -> dict[str, float]:
    common = experiment.resources.owner_cpus
    cpus = place.cpus or (0.0 if common == "auto" else float(common))
    asked = {"CPU": cpus, "GPU": experiment.gpus_of(name), **place.resources}
    return {kind: amount for kind, amount in asked.items() if amount}


def _unpinned(experiment: Experiment) -> Iterator[Finding]:
    named = (experiment.data.owners or ()) if isinstance(experiment.data, Tables) else ()
    if loose := [name for name in named if name not in experiment.placement]:
        yield warning(
            "placement",
            f"not pinned: {', '.join(loose)}",
            "pin them, or their actors may start where neither their rows nor their ledgers are",
        )


def _unused(experiment: Experiment, owners: Sequence[str]) -> Iterator[Finding]:
    pinned = pinned_owners(experiment)
    if idle := [name for name in owners if name not in pinned]:
        yield warning(
            "placement", f"nodes are paid for and not used: {', '.join(idle)}", "pin these owners, or leave out"
        )
