"""A cluster of several raylets on one machine, each with an identity file of its own; imported as ``own_nodes``."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}
"""A node whose processes were killed is given up within seconds, one that is slow is not."""


class Machines:
    """The head and nodes that join and leave. They share a disk, but not where they look for identity and ledgers.

    Args:
        folder: short, for Ray's sockets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options = {"num_cpus": 1, "object_store_memory": 100_000_000}
        head = {**self._options, "include_dashboard": False, "temp_dir": str(folder), "_system_config": _HEALTH}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "env_vars": self._env("head")})
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def identity_file(self, machine: str) -> Path:
        return self.folder / machine / "owner.json"

    def join(
        self,
        machine: str,
        *,
        label: str,
        owners: Sequence[str] | None,
        env: Mapping[str, str] | None = None,
        **options: object,
    ) -> str:
        """Start a node that claims a label; returns its id.

        Args:
            machine: a name of our own.
            label: which owner's node it says it is.
            owners: whom its identity file names; None for no file.
            env: what its processes have in their environment besides.
            options: of Ray's ``add_node``.
        """
        self.identify(machine, owners)
        labels = {"fedray.owner": label, "machine": machine}
        options = {**self._options, **options}
        self._nodes[machine] = self._cluster.add_node(
            **options, labels=labels, env_vars={**self._env(machine), **(env or {})}
        )
        return self.node_id(machine)

    def identify(self, machine: str, owners: Sequence[str] | None) -> None:
        path = self.identity_file(machine)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if owners is not None:
            path.write_text(json.dumps({"owners": list(owners)}))
            path.chmod(0o644)

    def joined(self) -> set[str]:
        return set(self._nodes)

    def lose(self, machine: str) -> None:
        """Kill a node's processes, without a word to the others."""
        self._cluster.remove_node(self._nodes.pop(machine), allow_graceful=False)

    def node_id(self, machine: str) -> str:
        return str(self._nodes[machine].node_id)

    def settle(self) -> None:
        """Wait until Ray has noticed which nodes are lost."""
        known = {node.node_id for node in self._nodes.values()}
        while {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Labels"].get("machine")} - known:
            time.sleep(0.1)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def ledgers(self, machine: str) -> Path:
        return self.folder / machine / "ledgers"

    def _env(self, machine: str) -> dict[str, str]:
        return {"FEDRAY_NODE": str(self.identity_file(machine)), "FEDRAY_LEDGERS": str(self.ledgers(machine))}


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster with a head alone, and this process connected to it."""
    with tempfile.TemporaryDirectory(prefix="fn", dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = Machines(Path(folder))
        try:
            ray.init(address=started.address, log_to_driver=False, logging_level=logging.ERROR)
            yield started
        finally:
            started.close()


def homes() -> dict[str, str]:
    """Names of actors that are alive, without the run, to the ids of their nodes."""
    from ray._private.state import actors

    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    return {actor["Name"].partition(" of ")[0]: actor["Address"]["NodeID"] for actor in alive}
