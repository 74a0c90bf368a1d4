"""Files of Ray's cluster launcher: their kinds of nodes, and the commands that each of them gets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.clusters.findings import Raw, mapping, number, strings
from fedray.clusters.images import Image
from fedray.clusters.node_types import NodeType

TOKEN = "~/.ray/auth_token"
"""Where Ray looks for the cluster's shared secret."""


@dataclass(frozen=True)
class LauncherFile:
    """A file for ``ray up``.

    Attributes:
        path: where it is.
        raw: what is in it.
    """

    path: Path
    raw: Raw

    @property
    def provider(self) -> str:
        """``aws``, ``gcp``, ``local`` and so on."""
        return str(mapping(self.raw.get("provider")).get("type", ""))

    @property
    def is_local(self) -> bool:
        """Whether its machines are there already, each with a file of its own that says what it is."""
        return self.provider == "local"

    @property
    def worker_addresses(self) -> list[str]:
        """Of machines that are there already; empty in a cloud."""
        return strings(mapping(self.raw.get("provider")).get("worker_ips"))

    @property
    def head_start(self) -> list[str]:
        """Commands that start Ray on the head."""
        return strings(self.raw.get("head_start_ray_commands"))

    @property
    def worker_start(self) -> list[str]:
        """Commands that start Ray on every other node."""
        return strings(self.raw.get("worker_start_ray_commands"))

    @property
    def types(self) -> dict[str, dict[str, Any]]:
        """The sections of ``available_node_types``; none where machines are there already."""
        return {name: mapping(raw) for name, raw in mapping(self.raw.get("available_node_types")).items()}

    @property
    def node_types(self) -> list[NodeType]:
        """Kinds of nodes; none where machines are there already."""
        return [self._node_type(name, raw) for name, raw in self.types.items()]

    @property
    def mounts_token(self) -> bool:
        """Whether every node gets the shared secret."""
        return any(map(is_token, mapping(self.raw.get("file_mounts"))))

    def setup_of(self, name: str) -> list[str]:
        """Commands that set a kind of node up. Its own take the place of all others, as Ray has it."""
        own = self.types[name].get("worker_setup_commands")
        if own is not None and name != self.raw.get("head_node_type"):
            return strings(own)
        more = "head_setup_commands" if name == self.raw.get("head_node_type") else "worker_setup_commands"
        return strings(self.raw.get("setup_commands")) + strings(self.raw.get(more))

    def image_of(self, name: str) -> Image | None:
        """The image of a kind of node; None where Ray runs without containers."""
        common = mapping(self.raw.get("docker"))
        own = mapping(self.types[name].get("docker"))
        key = "head_image" if name == self.raw.get("head_node_type") else "worker_image"
        found = own.get(key) or common.get(key) or common.get("image")
        return Image(str(found)) if found else None

    def _node_type(self, name: str, raw: dict[str, Any]) -> NodeType:
        at_least = int(number(raw.get("min_workers")))
        is_head = name == self.raw.get("head_node_type")
        at_most = raw.get("max_workers", 0 if is_head else self.raw.get("max_workers"))
        return NodeType(
            where=f"available_node_types.{name}",
            labels={key: str(value) for key, value in mapping(raw.get("labels")).items()},
            resources={key: number(value) for key, value in mapping(raw.get("resources")).items()},
            at_least=1 if is_head else at_least,
            at_most=1 if is_head else int(number(at_most)),
            is_head=is_head,
            is_spot=_is_spot(mapping(raw.get("node_config"))),
            image=self.image_of(name),
            account=_account(mapping(raw.get("node_config"))),
        )


def is_token(target: str) -> bool:
    """Whether a file on a node is where Ray looks for the cluster's shared secret."""
    return str(target).endswith(".ray/auth_token")


def is_ray_start(command: str) -> bool:
    """Whether a command starts Ray."""
    return bool(re.search(r"\bray\s+start\b", command))


def option(command: str, name: str) -> str | None:
    """The value of a command's ``--name=value`` or ``--name value``; None if it has none."""
    found = re.search(rf"--{name}[=\s]+(\S+)", command)
    return found[1].strip("\"'") if found else None


def _is_spot(config: Raw) -> bool:
    market = mapping(config.get("InstanceMarketOptions")).get("MarketType")
    scheduling = config.get("scheduling")
    rules = scheduling if isinstance(scheduling, list) else [scheduling]
    of_google = any(
        mapping(rule).get("preemptible") is True or mapping(rule).get("provisioningModel") == "SPOT" for rule in rules
    )
    return market == "spot" or of_google


def _account(config: Raw) -> str | None:
    """What names a node's rights: AWS' instance profile, or Google's service account."""
    profile = mapping(config.get("IamInstanceProfile"))
    accounts = config.get("serviceAccounts")
    first = mapping(accounts[0]) if isinstance(accounts, list) and accounts else {}
    found = profile.get("Name") or profile.get("Arn") or first.get("email")
    return str(found) if found else None
