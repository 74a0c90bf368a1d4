"""Whether a node of a cluster can take an actor, and if not, why: what is told to people, not what Ray decides by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedray.actors.probe import Answer
from fedray.actors.seats import Seat


@dataclass(frozen=True)
class Node:
    """One node of the cluster.

    Attributes:
        id: as Ray gives it.
        name: host name, with the address.
        is_alive: whether it is there.
        resources: all that it has, as Ray names it.
        free: what nobody has reserved of it.
        labels: what it says that it is.
        answer: what it says when asked.
    """

    id: str
    name: str
    is_alive: bool
    resources: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str]
    answer: Answer


@dataclass(frozen=True)
class Placing:
    """Whether one of the experiment's actors can be placed.

    Attributes:
        placeable: whether a node can take it now.
        reason: why none can; empty where one can.
        nodes: names of those that can.
        remedy: what to do about it.
    """

    placeable: bool
    reason: str = ""
    nodes: tuple[str, ...] = ()
    remedy: str = ""


def placing(seat: Seat, nodes: Iterable[Node]) -> Placing:
    """Whether one of these nodes can take an actor; else what the likeliest of them lacks."""
    alive = [node for node in nodes if node.is_alive]
    labelled = [node for node in alive if seat.is_labelled({"Labels": node.labels})]
    large = [node for node in labelled if not seat.lacking(node.resources)]
    known = [node for node in large if _belongs(node, seat)]
    free = [node for node in known if not seat.lacking(node.free)]
    if free:
        return Placing(True, nodes=tuple(node.name for node in free))
    if known:
        return Placing(False, _short(seat, known[0], known[0].free, "free"), remedy="end what else runs there, or wait")
    if large:
        return _unknown(seat, large)
    if labelled:
        reason = _short(seat, labelled[0], labelled[0].resources, "there")
        return Placing(False, reason, remedy=f"start Ray there with more, or lower {seat.setting}")
    labels = ",".join(f"{key}={value}" for key, value in seat.labels.items())
    remedy = f'start Ray on its node with --labels="{labels}", or correct {seat.setting}'
    return Placing(False, f"no node has label {labels}", remedy=remedy)


def _belongs(node: Node, seat: Seat) -> bool:
    said = node.answer.said
    return seat.identity is None or (said is not None and seat.identity in (said.owners or ()))


def _unknown(seat: Seat, nodes: Sequence[Node]) -> Placing:
    node = nodes[0]
    said = node.answer.said
    if said is None:
        return Placing(False, f"{node.name} does not say whose it is: {node.answer.silence}", remedy="see below")
    remedy = f'run `fedray cluster identify "{seat.identity}"` on it if it is theirs, or correct its labels'
    if said.owners is None:
        return Placing(False, f"{node.name} has {said.identity}", remedy=remedy)
    named = ", ".join(sorted(said.owners)) or "nobody"
    return Placing(False, f"the identity file {said.identity} of {node.name} names {named}", remedy=remedy)


def _short(seat: Seat, node: Node, resources: Mapping[str, float], where: str) -> str:
    lacking = [f"{resources.get(kind, 0):g} of {seat.demand[kind]:g} {kind}" for kind in seat.lacking(resources)]
    return f"{node.name} has {', '.join(lacking)} {where}"
