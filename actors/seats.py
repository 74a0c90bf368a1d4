"""What one actor asks of a node, and which nodes have it. It must not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedray.config.cluster import Place

Demand = dict[str, float]
Node = Mapping[str, Any]
"""What ``ray.nodes`` says of one."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Seat:
    """What one actor asks of a node.

    Attributes:
        what: who sits there, for messages, e.g. ``owner 'hospital-a'``.
        setting: where the experiment says so.
        demand: resources, as Ray names them.
        labels: node labels.
        identity: what the node's identity file must name; None where any node will do.
    """

    what: str
    setting: str
    demand: Demand
    labels: Mapping[str, str] = field(default_factory=dict)
    identity: str | None = None

    def __str__(self) -> str:
        """What is asked for, e.g. ``1 CPU, label fedray.owner=hospital-a``."""
        demand = [f"{amount:g} {kind}" for kind, amount in self.demand.items()]
        return ", ".join(demand + [f"label {key}={value}" for key, value in self.labels.items()])

    def fits(self, node: Node) -> bool:
        """Whether a node could hold it, if nobody else were there."""
        return self.is_labelled(node) and not self.lacking(node["Resources"])

    def is_labelled(self, node: Node) -> bool:
        """Whether a node has all labels."""
        return all(node.get("Labels", {}).get(key) == value for key, value in self.labels.items())

    def lacking(self, resources: Mapping[str, float]) -> list[str]:
        """Kinds of resources of which these are too few."""
        return [kind for kind, amount in self.demand.items() if resources.get(kind, 0) + _ROUNDING < amount]


def identity_at(place: Place, name: str) -> str | None:
    """What the identity file must name where a party is pinned; None where it is not."""
    return name if place.labels or place.resources else None
