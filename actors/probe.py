"""What a node says of itself, asked by a small task that runs there. It must not import torch: that takes seconds.

Every node has its own time to answer in, so that one that hangs costs nobody else's answer.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled  # there is no public way
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedray.environment import environment
from fedray.errors import ResourcesError
from fedray.node_identity import identity_path, read_identity

COMPARED = ("python", "ray", "fedray", "torch", "CUDA", "numpy")
"""What should be the same on all nodes."""


@dataclass(frozen=True)
class Said:
    """What a node says of itself.

    Attributes:
        versions: names of ``COMPARED`` to versions.
        owners: whom its identity file names; None where there is none to be trusted.
        identity: why there is none, or where it is.
        clock: its time, in seconds since the epoch.
        has_token: whether its Ray takes part with those alone that have the cluster's token.
        has_tls: whether its Ray's connections are encrypted.
    """

    versions: Mapping[str, str]
    owners: frozenset[str] | None
    identity: str
    clock: float
    has_token: bool
    has_tls: bool


@dataclass(frozen=True)
class Answer:
    """What came back from a node.

    Attributes:
        said: what it says; None where nothing came.
        ahead_s: how far its clock is ahead of this one's.
        silence: why nothing came.
    """

    said: Said | None = None
    ahead_s: float = 0.0
    silence: str = ""


def here() -> Said:
    """What this process says of the node that it is on."""
    path = identity_path()
    try:
        owners, identity = read_identity(path), str(path)
    except ResourcesError as error:
        owners, identity = None, error.found
    return Said(
        versions(),
        owners,
        identity,
        time.time(),
        is_token_auth_enabled(),
        os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"),
    )


def ask(nodes: Sequence[str], timeout_s: float) -> dict[str, Answer]:
    """Node's id to what it answers.

    Args:
        nodes: ids of nodes that are alive.
        timeout_s: how long all of them together may take.
    """
    refs = {_asked(node): node for node in nodes}
    answers = {}
    until = time.monotonic() + timeout_s
    waiting = list(refs)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
        if not done:
            break
        answers[refs[done[0]]] = _answer(done[0], time.time())
    for ref in waiting:
        ray.cancel(ref, force=True)
        answers[refs[ref]] = Answer(silence=f"no answer within {timeout_s:g} s")
    return answers


def versions() -> dict[str, str]:
    """Versions of this process's Python and packages; of fedray with the first digits of its source's digest."""
    found = environment()
    built = runpy.run_path(str(_folder("torch") / "version.py"))
    return {
        **{name: found[name] for name in COMPARED if name in found},
        "fedray": f"{version('fedray')} ({_source()})",
        "CUDA": str(built.get("cuda") or "none"),
    }


def _asked(node: str) -> Any:
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(here).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned).remote()


def _answer(ref: Any, now: float) -> Answer:
    try:
        said: Said = ray.get(ref)
    except RayError as error:
        return Answer(silence=str(error).strip().rpartition("\n")[2])
    return Answer(said, said.clock - now)


def _source() -> str:
    """Two installations of one version number may hold different code."""
    found = hashlib.sha256()
    root = _folder("fedray")
    files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
    for file in sorted(file for file in files if file.suffix == ".py"):
        text = file.read_bytes()
        found.update(f"{file.relative_to(root)} {len(text)} ".encode() + text)
    return found.hexdigest()[:8]


def _folder(package: str) -> Path:
    """Where a package is, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
