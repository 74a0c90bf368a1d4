"""What ``fedray cluster up`` asks the head: who has joined."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError

from fedray.actors import nodes
from fedray.clusters.launching import Node
from fedray.errors import ResourcesError


def test_the_nodes_that_have_joined_are_one_line_of_json(ray_dir: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", "from fedray.cli import main; main()", "cluster", "nodes", "--json"],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"nodes"')]
    (node,) = (Node(**one) for one in json.loads(line)["nodes"])
    assert (node.name, node.is_head, node.resources["CPU"]) == ("head", True, 4.0)


@pytest.mark.parametrize(
    ("reason", "found"),
    [(ConnectionError(), "no Ray cluster answers here"), (AuthenticationError("none"), "token is not here")],
)
def test_whoever_cannot_connect_is_told_why(reason: Exception, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise reason

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ResourcesError, match=found):
        nodes.nodes()
