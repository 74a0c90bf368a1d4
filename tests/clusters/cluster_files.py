"""What tests of clusters share: the files that are shipped, changed in one place, and what a check finds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from fedray.actors.cluster_schema import complaint
from fedray.clusters.checking import check, read_cluster
from fedray.clusters.findings import Finding
from fedray.clusters.images import Versions
from fedray.config import Experiment

ROOT = Path(__file__).parents[2]
LAUNCHER_FILES = ("cluster.yaml", "clusters/gcp.yaml", "clusters/local.yaml")
ALL_FILES = (*LAUNCHER_FILES, "clusters/kuberay.yaml")
PINNED_VERSIONS = Versions("2.60.0", "3.11")
"""Those that the shipped files name, whatever these tests run on."""

Documents = list[dict[str, Any]]


def documents(name: str) -> Documents:
    """A shipped file's documents; each part is there once, even where YAML says it once for many."""
    return copy.deepcopy([_alone(one) for one in yaml.safe_load_all((ROOT / name).read_text())])


def _alone(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _alone(item) for key, item in value.items()}
    return [_alone(item) for item in value] if isinstance(value, list) else value


def findings(raw: Documents, folder: Path, experiment: Experiment | None = None) -> list[Finding]:
    """What a check finds in documents, written into a folder and read again."""
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump_all(raw))
    return check(read_cluster(path), experiment, PINNED_VERSIONS, complaint)


def errors(found: list[Finding]) -> list[str]:
    """Errors among findings, as text."""
    return [f"{one.where}: {one.found}" for one in found if one.severity == "error"]


def hospitals(**more: Any) -> Experiment:
    """An experiment that the shipped clusters have nodes for."""
    owners = ["hospital-a", "hospital-b", "hospital-c"]
    placement = {name: {"labels": {"fedray.owner": name}, "resources": {f"owner:{name}": 0.1}} for name in owners}
    tables = {"name": "tables", "path": "/data/hospital", "owners": owners, "features": ["age"], "classes": [0, 1]}
    return Experiment.model_validate({"data": tables, "placement": placement, **more})
