"""The way up and down of a cluster: Ray's own commands, and what they leave undone.

``ray up`` returns as soon as the head runs: here the nodes are waited for. With machines that are there already it also
starts one worker too few, unless told to use version 1 of its autoscaler, and ``ray down`` stops Ray on the head alone.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedray.clusters.findings import mapping
from fedray.clusters.launcher import TOKEN, LauncherFile
from fedray.clusters.node_types import OWNER_LABEL, owners_of
from fedray.clusters.placing import pinned_owners
from fedray.config import Experiment
from fedray.errors import ResourcesError

NODES = "fedray cluster nodes --json"
"""Run on the head: prints a line of JSON, the nodes that have joined."""
_POLL_S = 3.0


@dataclass(frozen=True)
class Completed:
    """How a command ended: exit code and what it printed."""

    code: int
    output: str = ""


class Runs(Protocol):
    """Runs a command here and waits for it; ``shown`` lets its output through to the screen instead of returning it."""

    def __call__(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, shown: bool = False
    ) -> Completed: ...


@dataclass(frozen=True)
class Node:
    """A node that has joined.

    Attributes:
        address: under which the other nodes reach it.
        labels: Ray's node labels.
        resources: Ray's logical resources.
        is_head: whether it is the head.
    """

    address: str
    labels: Mapping[str, str]
    resources: Mapping[str, float]
    is_head: bool

    @property
    def name(self) -> str:
        """Its owner's name, or what else tells it from others."""
        return self.labels.get(OWNER_LABEL) or ("head" if self.is_head else self.address)


@dataclass(frozen=True)
class Expected:
    """Who must have joined: owners by name, and how many nodes there must be at least, with the head."""

    owners: Sequence[str]
    n_nodes: int

    @classmethod
    def of(cls, file: LauncherFile, experiment: Experiment | None) -> Expected:
        """Those that a file declares; where hosts say themselves what they are, those that an experiment pins."""
        if file.is_local:
            return cls(pinned_owners(experiment) if experiment else [], 1 + len(file.worker_addresses))
        return cls(owners_of(file.node_types), sum(one.at_least for one in file.node_types))

    def missing(self, nodes: Sequence[Node]) -> list[str]:
        """Who has not joined yet, in words."""
        absent = [name for name in self.owners if name not in {node.name for node in nodes}]
        n_nameless = self.n_nodes - len(nodes) - len(absent)
        return absent + ([f"{n_nameless} more"] if n_nameless > 0 else [])


def tool(name: str) -> str:
    """A command of this Python's environment, or the one on the path if it is not there."""
    own = Path(sys.executable).with_name(name)
    return str(own) if own.exists() else name


def ensure_token(run: Runs) -> bool:
    """Make the cluster's shared secret if there is none; True if it was made. What Ray prints of it is dropped.

    Ray leaves the file readable by every user of the machine, and nodes get it with the same rights: here it is made
    the user's own.

    Raises:
        ResourcesError: Ray could not make it.
    """
    path = Path(TOKEN).expanduser()
    if path.exists():
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if run([tool("ray"), "get-auth-token", "--generate"]).code or not path.exists():
        raise ResourcesError(f"Ray made no token in {path}", "a file that it can write", "check the folder's rights")
    path.chmod(0o600)
    return True


def start(file: LauncherFile, run: Runs) -> None:
    """``ray up``; returns when the head runs.

    Raises:
        ResourcesError: it failed.
    """
    environment = {"RAY_UP_enable_autoscaler_v2": "0"} if file.is_local else {}
    if code := run([tool("ray"), "up", "-y", str(file.path)], environment=environment, shown=True).code:
        raise ResourcesError(f"`ray up` ended with {code}", "a head that runs", "see above what it says")


@dataclass
class Waiting:
    """Waits until all have joined.

    Attributes:
        file: the cluster.
        expected: who must join.
        run: runs a command here.
        show: is told who has joined and who is missing, each time that changes.
        clock: seconds, of any beginning.
        sleep: passes so many seconds.
    """

    file: LauncherFile
    expected: Expected
    run: Runs
    show: Callable[[Sequence[Node], Sequence[str]], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    _shown: list[str] = field(default_factory=list)

    def wait(self, timeout_s: float) -> list[Node]:
        """All nodes, as soon as nobody is missing.

        Raises:
            ResourcesError: not within the time-out; says who is missing and how to look.
        """
        end = self.clock() + timeout_s
        while True:
            nodes = joined(self.file, self.run)
            missing = self.expected.missing(nodes)
            self._tell(nodes, missing)
            if not missing:
                return nodes
            if self.clock() >= end:
                raise _late(self.file, nodes, missing, timeout_s)
            self.sleep(_POLL_S)

    def _tell(self, nodes: Sequence[Node], missing: Sequence[str]) -> None:
        names = sorted(node.name for node in nodes)
        if names != self._shown or not missing:
            self.show(nodes, missing)
            self._shown = names


def joined(file: LauncherFile, run: Runs) -> list[Node]:
    """Nodes that have joined, as the head says; none as long as it does not answer."""
    done = run([tool("ray"), "exec", str(file.path), NODES])
    lines = [line.strip() for line in done.output.splitlines() if line.strip().startswith('{"nodes"')]
    return [Node(**one) for one in json.loads(lines[-1])["nodes"]] if lines and done.code == 0 else []


def stop(file: LauncherFile, run: Runs) -> list[str]:
    """``ray down``, then Ray's end on every machine that was there before; returns those that did not answer.

    Raises:
        ResourcesError: ``ray down`` failed.
    """
    if code := run([tool("ray"), "down", "-y", str(file.path)], shown=True).code:
        raise ResourcesError(f"`ray down` ended with {code}", "0", "see above what it says")
    return [address for address in file.worker_addresses if run(_stop_on(file, address)).code]


def _stop_on(file: LauncherFile, address: str) -> list[str]:
    """Ends Ray on a machine just as the file does before it starts it there."""
    auth = mapping(file.raw.get("auth"))
    key = auth.get("ssh_private_key")
    stops = [command for command in file.worker_start if "ray stop" in command] or ["ray stop"]
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=accept-new"]
    identity = ["-i", str(Path(str(key)).expanduser())] if key else []
    user = auth.get("ssh_user")
    at = f"{user}@{address}" if user else address
    command = shlex.quote("source ~/.bashrc; " + "; ".join(stops))
    return ["ssh", *options, *identity, at, f"bash --login -i -c {command}"]


def _late(file: LauncherFile, nodes: Sequence[Node], missing: Sequence[str], timeout_s: float) -> ResourcesError:
    there = ", ".join(sorted(node.name for node in nodes)) or "nobody"
    return ResourcesError(
        f"after {timeout_s:g} s these have not joined: {', '.join(missing)}; there are: {there}",
        "all nodes that the file declares",
        f"`ray monitor {file.path}` shows why; `ray exec {file.path} 'ray status'` what Ray waits for; "
        "--timeout-s gives it longer",
    )
