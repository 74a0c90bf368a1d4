"""Kinds of nodes that a cluster has, whatever file they stand in, and the rules on those that belong to an owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedray.clusters.findings import Finding, error, warning
from fedray.clusters.images import Image

OWNER_LABEL = "fedray.owner"
OWNER_RESOURCE = "owner:"
"""Custom resource of an owner's node, before the owner's name."""


@dataclass(frozen=True)
class NodeType:
    """One kind of node.

    Attributes:
        where: its key in the file.
        labels: Ray's node labels.
        resources: Ray's logical resources, ``CPU`` and ``GPU`` among them, as far as the file gives them.
        at_least: nodes that are always there.
        at_most: nodes that there may be.
        is_head: whether it is the head.
        is_spot: whether the cloud may take its nodes back.
        image: what its containers are made of, where they are containers.
        account: what the cloud lets its nodes do, by name.
    """

    where: str
    labels: Mapping[str, str]
    resources: Mapping[str, float]
    at_least: int
    at_most: int
    is_head: bool = False
    is_spot: bool = False
    image: Image | None = None
    account: str | None = None

    @property
    def owner(self) -> str | None:
        """The owner whose node it is, by label or else by resource."""
        named = [kind.removeprefix(OWNER_RESOURCE) for kind in self.resources if kind.startswith(OWNER_RESOURCE)]
        return self.labels.get(OWNER_LABEL) or next(iter(named), None)


def owners_of(types: Sequence[NodeType]) -> list[str]:
    """Names of all owners that have a kind of node, in the file's order."""
    return [one.owner for one in types if one.owner]


def check_node_types(types: Sequence[NodeType]) -> Iterator[Finding]:
    """Everything that is wrong with any kind of node."""
    for one in types:
        yield from _gpu_images(one)
        if one.owner:
            yield from _owner(one, one.owner)
    yield from _shared(types)


def _owner(one: NodeType, name: str) -> Iterator[Finding]:
    if (one.at_least, one.at_most) != (1, 1) and not one.is_head:
        yield error(
            one.where,
            f"owner {name} has {one.at_least} to {one.at_most} nodes",
            "exactly one: its rows and its ledger are on one disk. Set both numbers to 1",
        )
    if one.is_head:
        yield error(one.where, f"the head is owner {name}'s node", "give the owner a node type of its own")
    if one.is_spot:
        yield error(
            one.where, f"owner {name} is on a spot node", "take on-demand: with the node its ledger would be taken back"
        )
    yield from _names(one, name)


def _names(one: NodeType, name: str) -> Iterator[Finding]:
    """An owner's node has label and resource, and both name the same owner."""
    if one.labels.get(OWNER_LABEL) != name:
        yield error(
            f"{one.where}.labels",
            f"no label {OWNER_LABEL}, but a resource of owner {name}",
            f'add labels: {{"{OWNER_LABEL}": "{name}"}}',
        )
    others = [kind for kind in one.resources if kind.startswith(OWNER_RESOURCE) and kind != OWNER_RESOURCE + name]
    if others:
        yield error(f"{one.where}.resources", f"{', '.join(others)} on the node of {name}", f"owner:{name} alone")
    if one.resources.get(OWNER_RESOURCE + name, 0) < 1:
        yield error(
            f"{one.where}.resources",
            f"no resource {OWNER_RESOURCE}{name}",
            f'add "{OWNER_RESOURCE}{name}": 1: comparisons reserve the owner by it',
        )


def _gpu_images(one: NodeType) -> Iterator[Finding]:
    if one.resources.get("GPU") and one.image and one.image.is_official and not one.image.has_cuda:
        yield error(
            one.where, f"a GPU, but the image {one.image.name} has no CUDA", "take the image whose tag ends in -cu128"
        )


def _shared(types: Sequence[NodeType]) -> Iterator[Finding]:
    """What two owners must not have in common."""
    for name, n in Counter(owners_of(types)).items():
        if n > 1:
            yield error("node types", f"{n} of them belong to owner {name}", "one: an owner is in one place")
    accounts = Counter(one.account for one in types if one.owner and one.account)
    for account, n in accounts.items():
        if n > 1:
            yield warning(
                "node types",
                f"{n} owners' nodes have the rights of {account}",
                "give each owner's node rights of its own, or any of them may read all owners' data",
            )
