"""``fedray doctor``: what a cluster has, what an experiment needs of it, and what to do about the difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedray.cli.screen import console
from fedray.config.loading import load
from fedray.errors import ResourcesError

if TYPE_CHECKING:
    from fedray.actors.doctor import Diagnosis
    from fedray.actors.placing import Node, Placing

_COUNTED = ("CPU", "GPU", "memory", "object_store_memory")
_OWN = ("node:", "accelerator_type:")
"""How resources begin that Ray gives every node by itself."""


def doctor(
    experiment: Annotated[Path | None, typer.Argument(help="What is to run there.", metavar="EXPERIMENT.yaml")] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, `auto` or HOST:PORT; else this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON, for scripts.")] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="How long nodes may take to answer.")] = 30.0,
) -> None:
    """Look at a cluster: its nodes, who can be placed where, versions, authentication, clocks.

    Exit code 0 if nothing stands in the way of the experiment, 5 if something does.
    """
    from fedray.actors.doctor import diagnose
    from fedray.actors.session import ray_session
    from fedray.build import check

    settings = load(experiment) if experiment else None
    if settings is not None:
        check(settings)
    with ray_session(address):
        found = diagnose(settings, timeout_s)
    if as_json:
        print(json.dumps(_facts(found), indent=2))
    else:
        _show(found)
    if not found.is_well:
        raise typer.Exit(ResourcesError.exit_code)


def _show(found: Diagnosis) -> None:
    for node in found.nodes:
        _show_node(node)
    for heading, placings in (("owner", found.owners), ("", found.others)):
        if placings:
            console.print()
            console.print(_table(heading, placings))
    console.print()
    for finding in found.findings:
        style, word = ("bold red", "wrong") if finding.stops else ("yellow", "beware")
        _print_line(word, style, finding.found, finding.remedy)
    if found.is_well:
        console.print(Text("nothing stands in the way", style="green"))


def _show_node(node: Node) -> None:
    """A line of what every node has, then a line of each thing that only some have."""
    cpus, gpus = node.resources.get("CPU", 0), node.resources.get("GPU", 0)
    memory, store = _gib(node.resources.get("memory", 0)), _gib(node.resources.get("object_store_memory", 0))
    has = f"{cpus:g} CPUs, {gpus:g} GPUs, {memory} memory, {store} object store"
    console.print(Text.assemble((node.name, "bold"), "  ", has if node.is_alive else "gone"), soft_wrap=True)
    for what, text in _details(node).items():
        if text:
            console.print(Text(f"  {what:10}{text}", style="dim"), soft_wrap=True)


def _details(node: Node) -> dict[str, str]:
    said = node.answer.said
    owners = "?" if said is None else "none" if said.owners is None else ", ".join(sorted(said.owners)) or "nobody"
    return {
        "labels": ", ".join(f"{key}={value}" for key, value in _labels(node).items()),
        "resources": ", ".join(f"{key} {value:g}" for key, value in _custom(node).items()),
        "identity": owners if node.is_alive else "",
    }


def _table(heading: str, placings: Mapping[str, Placing]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (heading, "placed", "where, or why not"):
        table.add_column(column, overflow="fold")
    for name, placing in placings.items():
        if placing.placeable:
            table.add_row(Text(name), Text("yes", style="green"), Text(", ".join(placing.nodes)))
        else:
            why = Text(placing.reason).append(f"\nto do: {placing.remedy}", style="dim")
            table.add_row(Text(name), Text("no", style="bold red"), why)
    return table


def _print_line(word: str, style: str, found: str, remedy: str) -> None:
    console.print(Text.assemble((f"{word}: ", style), found), soft_wrap=True)
    console.print(Text(f"  to do: {remedy}", style="dim"), soft_wrap=True)


def _facts(found: Diagnosis) -> dict[str, Any]:
    return {
        "well": found.is_well,
        "nodes": [_node_facts(node) for node in found.nodes],
        "owners": {name: _placing_facts(placing) for name, placing in found.owners.items()},
        "others": {name: _placing_facts(placing) for name, placing in found.others.items()},
        "findings": [{"found": one.found, "remedy": one.remedy, "stops": one.stops} for one in found.findings],
    }


def _node_facts(node: Node) -> dict[str, Any]:
    said = node.answer.said
    return {
        "id": node.id,
        "name": node.name,
        "alive": node.is_alive,
        "resources": dict(node.resources),
        "free": dict(node.free),
        "labels": dict(node.labels),
        "identity": sorted(said.owners) if said and said.owners is not None else None,
        "versions": dict(said.versions) if said else {},
        "token": said.has_token if said else None,
        "tls": said.has_tls if said else None,
        "clock_ahead_s": node.answer.ahead_s if said else None,
        "silence": node.answer.silence,
    }


def _placing_facts(placing: Placing) -> dict[str, Any]:
    return {
        "placeable": placing.placeable,
        "reason": placing.reason,
        "remedy": placing.remedy,
        "nodes": list(placing.nodes),
    }


def _labels(node: Node) -> dict[str, str]:
    return {key: value for key, value in node.labels.items() if not key.startswith("ray.io/")}


def _custom(node: Node) -> dict[str, float]:
    return {key: value for key, value in node.resources.items() if key not in _COUNTED and not key.startswith(_OWN)}


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
