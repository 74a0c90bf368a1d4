"""How an actor refuses the node that it was put on, and how its caller reads that.

It raises in its constructor, so that Ray never sends it a call, nor a model with it. Of such an error Ray keeps the
text alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import ray

from fedray.errors import ResourcesError
from fedray.node_identity import identity_path, require_identity

_TEXT = re.compile(r"node (\w+): (.+)\n  expected: (.+)\n  to do:    (.+)")
_SHORT = 16
"""Digits of a node's id that are shown."""


@dataclass(frozen=True)
class Refusal:
    """What an actor found on a node that is not its party's.

    Attributes:
        node: the first digits of the node's id.
        error: what it raised.
    """

    node: str
    error: ResourcesError


def require_here(party: str) -> None:
    """Refuse to be this party's actor on a node whose identity file does not name it.

    Raises:
        ResourcesError: it does not, or cannot be trusted.
    """
    try:
        require_identity(party, identity_path())
    except ResourcesError as error:
        node = ray.get_runtime_context().get_node_id()[:_SHORT]
        raise ResourcesError(f"node {node}: {error.found}", error.expected, error.remedy) from None


def refusal_in(error: Exception) -> Refusal | None:
    """What an actor raised in its constructor, from the error of a call to it; None where it died otherwise."""
    found = _TEXT.search(str(error))
    if found is None:
        return None
    node, what, expected, remedy = found.groups()
    return Refusal(node, ResourcesError(f"node {node}: {what}", expected, remedy))


def elsewhere(refused: Iterable[str], nodes: Iterable[str]) -> dict[str, str]:
    """A label selector that leaves out nodes that refused an actor, where it has others left.

    Args:
        refused: the first digits of their ids.
        nodes: ids of all nodes that fit the actor.
    """
    fitting = list(nodes)
    barred = [node for node in fitting if node.startswith(tuple(refused))]
    return {"ray.io/node-id": f"!in({','.join(barred)})"} if barred and len(barred) < len(fitting) else {}
