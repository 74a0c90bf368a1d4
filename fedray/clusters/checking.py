"""A cluster's file, read and checked, with or without an experiment that is to run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedray.clusters.findings import Finding, Raw, error
from fedray.clusters.images import Versions
from fedray.clusters.kubernetes import Manifests, check_manifests
from fedray.clusters.launcher import LauncherFile
from fedray.clusters.launcher_rules import check_launcher_file
from fedray.clusters.placing import check_placement, check_placement_on_hosts
from fedray.config import Experiment
from fedray.errors import ConfigError

ClusterFile = LauncherFile | Manifests
Schema = Callable[[dict[str, Any]], str | None]
"""Ray's own validation of a launcher's file: what it has against it, or None."""


def read_cluster(path: Path) -> ClusterFile:
    """The cluster in a file.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds neither kind of cluster.
    """
    try:
        found = [one for one in yaml.safe_load_all(path.read_text()) if one is not None]
    except OSError as reason:
        raise ConfigError(f"cannot read {path}: {reason.strerror}", "a cluster's file", "check the path") from reason
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise ConfigError(f"{path} is not YAML: {reason}", "a cluster's file", "correct the line it names") from reason
    if not all(isinstance(one, Mapping) for one in found):
        raise _unknown(path)
    if any("apiVersion" in one for one in found):
        return Manifests(path, found)
    if len(found) != 1 or "cluster_name" not in found[0]:
        raise _unknown(path)
    return LauncherFile(path, found[0])


def check(file: ClusterFile, experiment: Experiment | None, installed: Versions, schema: Schema) -> list[Finding]:
    """All that is wrong with a cluster's file, and with an experiment on that cluster; errors first.

    Args:
        file: the cluster.
        experiment: what is to run on it, if that is known.
        installed: what Ray and Python all nodes must have.
        schema: Ray's own validation.
    """
    order = ("error", "warning", "note")
    found = dict.fromkeys(_findings(file, experiment, installed, schema))
    return sorted(found, key=lambda one: order.index(one.severity))


def _findings(
    file: ClusterFile, experiment: Experiment | None, installed: Versions, schema: Schema
) -> Iterator[Finding]:
    if isinstance(file, LauncherFile):
        yield from _schema(file.raw, schema)
        yield from check_launcher_file(file, installed)
    else:
        yield from check_manifests(file, installed)
    if experiment is None:
        return
    if isinstance(file, LauncherFile) and file.is_local:
        yield from check_placement_on_hosts(experiment, file)
    else:
        yield from check_placement(experiment, file.node_types)


def _schema(raw: Raw, schema: Schema) -> Iterator[Finding]:
    if complaint := schema(dict(raw)):
        yield error("Ray's schema", complaint, "correct it: `ray up` would refuse the file")


def _unknown(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is neither a file for Ray's launcher nor manifests for Kubernetes",
        "cluster_name and provider, or objects with apiVersion",
        "start from cluster.yaml or a file in clusters/",
    )
