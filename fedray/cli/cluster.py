"""``fedray cluster``: check a cluster's file, launch it and wait for its owners, end it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedray.cli.identify import identify
from fedray.cli.screen import console
from fedray.errors import ConfigError

if TYPE_CHECKING:
    from fedray.clusters.checking import ClusterFile
    from fedray.clusters.findings import Finding
    from fedray.clusters.launcher import LauncherFile
    from fedray.clusters.launching import Completed, Node
    from fedray.config import Experiment

app = typer.Typer(help="Ray clusters on which every owner has its own node.", no_args_is_help=True)
app.command()(identify)

File = Annotated[Path, typer.Argument(help="For `ray up`, or for KubeRay.", metavar="CLUSTER.yaml")]
ExperimentFile = Annotated[
    Path | None, typer.Argument(help="What is to run there, for `run` or `compare`.", metavar="EXPERIMENT.yaml")
]
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@app.command()
def check(file: File, experiment: ExperimentFile = None) -> None:
    """Check a cluster's file, by Ray's schema and by what fedray needs; exit code 2 if it has errors.

    Needs no cloud's library and no network: whether an instance type or an image exists only the cloud can say. Run it
    in the folder that `up` will be run in.
    """
    _checked(_read(file), _experiment(experiment))


@app.command()
def up(
    file: File,
    experiment: ExperimentFile = None,
    timeout_s: Annotated[float, typer.Option(min=0, help="How long nodes may take to join after the head.")] = 900.0,
) -> None:
    """Check a cluster's file, launch the cluster by `ray up`, and wait until every declared owner's node has joined."""
    from fedray.clusters import launching

    cluster, settings = _launcher(_read(file)), _experiment(experiment)
    _checked(cluster, settings)
    if launching.ensure_token(_run):
        console.print("made the cluster's token, ~/.ray/auth_token", highlight=False)
    launching.start(cluster, _run)
    expected = launching.Expected.of(cluster, settings)
    launching.Waiting(cluster, expected, _run, _show_who, time.monotonic, time.sleep).wait(timeout_s)


@app.command()
def down(file: File) -> None:
    """End a cluster by `ray down`, and Ray on machines of your own, where `ray down` leaves it running."""
    from fedray.clusters.launching import stop

    if silent := stop(_launcher(_read(file)), _run):
        console.print(f"[yellow]did not answer:[/] {', '.join(silent)}; run `ray stop` there", highlight=False)


@app.command()
def nodes(
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, for programs.")] = False,
) -> None:
    """Show the nodes of the cluster that this machine belongs to."""
    from fedray.actors.nodes import nodes as joined
    from fedray.clusters.launching import Node

    found = joined()
    if as_json:
        print(json.dumps({"nodes": found}))
    else:
        console.print(_nodes_table([Node(**one) for one in found]))


def _read(path: Path) -> ClusterFile:
    from fedray.clusters.checking import read_cluster

    return read_cluster(path)


def _experiment(path: Path | None) -> Experiment | None:
    """The experiment, or the first point of its search space: all points place alike."""
    from fedray.config.loading import read_yaml
    from fedray.config.space import separate

    return separate(read_yaml(path)).experiments()[0] if path else None


def _launcher(file: ClusterFile) -> LauncherFile:
    """Refuse manifests.

    Raises:
        ConfigError: the cluster is for KubeRay.
    """
    from fedray.clusters.launcher import LauncherFile

    if not isinstance(file, LauncherFile):
        raise ConfigError(
            f"{file.path} holds manifests for KubeRay",
            "a file for `ray up`",
            f"kubectl apply -f {file.path}, and kubectl delete -f {file.path}",
        )
    return file


def _checked(file: ClusterFile, experiment: Experiment | None) -> None:
    """Show what a check finds.

    Raises:
        typer.Exit: there are errors.
    """
    from fedray.actors.cluster_schema import complaint
    from fedray.clusters.checking import check as findings
    from fedray.clusters.images import Versions

    found = findings(file, experiment, Versions.installed(), complaint)
    for one in found:
        _show_finding(one)
    if any(one.severity == "error" for one in found):
        raise typer.Exit(ConfigError.exit_code)
    console.print(f"{file.path}: no errors", highlight=False, soft_wrap=True)


def _show_finding(one: Finding) -> None:
    console.print(Text.assemble((one.severity, _STYLES[one.severity]), f"  {one.where}: {one.found}"), soft_wrap=True)
    console.print(Text(f"  to do: {one.remedy}", style="dim"), soft_wrap=True)


def _nodes_table(found: Sequence[Node]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("node", "address", "CPUs", "GPUs", "labels"):
        table.add_column(heading, overflow="fold")
    for node in sorted(found, key=lambda one: (not one.is_head, one.name)):
        amounts = [f"{node.resources.get(kind, 0):g}" for kind in ("CPU", "GPU")]
        labels = ", ".join(f"{key}={value}" for key, value in node.labels.items() if not key.startswith("ray.io/"))
        table.add_row(node.name, node.address, *amounts, Text(labels))
    return table


def _show_who(joined: Sequence[Node], missing: Sequence[str]) -> None:
    if not missing:
        console.print(_nodes_table(joined))
        return
    there = ", ".join(sorted(node.name for node in joined)) or "nobody"
    console.print(f"joined: {there}; waiting for: {', '.join(missing)}", highlight=False, soft_wrap=True)


def _run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, shown: bool = False) -> Completed:
    """Run a command of Ray's or ssh, with what it needs added to this process' environment.

    Raises:
        ConfigError: there is no such command.
    """
    from fedray.clusters.launching import Completed

    caught = None if shown else subprocess.PIPE
    silent = None if shown else subprocess.DEVNULL
    full = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            list(command), env=full, stdin=silent, stdout=caught, stderr=silent, text=True, check=False
        )
    except FileNotFoundError:
        raise ConfigError(f"no command {command[0]}", "it on the path", "install it on this machine") from None
    return Completed(done.returncode, done.stdout or "")
