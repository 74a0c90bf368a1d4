"""The nodes of a running cluster, as the node that this process is on sees them."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from fedray.errors import ResourcesError

_HEAD = "node:__internal_head__"


def nodes() -> list[dict[str, Any]]:
    """Address, labels, resources and ``is_head`` of every node that is alive.

    Raises:
        ResourcesError: no cluster runs on this machine, or it wants another token.
    """
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise ResourcesError(
            "the cluster's token is not here", "it in ~/.ray/auth_token", "mount it, as clusters/local.yaml does"
        ) from error
    except ConnectionError as error:
        raise ResourcesError(
            "no Ray cluster answers here, or it takes this machine's token for a wrong one",
            "a node of a running cluster",
            "run it there, by `ray exec`",
        ) from error
    try:
        return [_shown(node) for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _shown(node: dict[str, Any]) -> dict[str, Any]:
    resources = {kind: amount for kind, amount in node["Resources"].items() if not kind.startswith("node:")}
    return {
        "address": node["NodeManagerAddress"],
        "labels": node.get("Labels", {}),
        "resources": resources,
        "is_head": _HEAD in node["Resources"],
    }
