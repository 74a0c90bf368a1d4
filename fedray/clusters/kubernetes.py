"""Manifests for KubeRay, whose schema is not here: the rules that matter, written from its API ``ray.io/v1``.

Checked by hand-written rules only. ``kubectl apply --dry-run=server`` checks the rest on a cluster that has KubeRay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.clusters.findings import Finding, Raw, error, mapping, number, strings
from fedray.clusters.images import Image, Versions, check_image
from fedray.clusters.node_types import NodeType, check_node_types

_SPOT = ("cloud.google.com/gke-spot", "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type")
_IDENTITY = "/etc/fedray"


@dataclass(frozen=True)
class Group:
    """The head or a worker group of a RayCluster: its key, and its section."""

    where: str
    raw: dict[str, Any]

    @property
    def is_head(self) -> bool:
        """Whether it is the head."""
        return self.where == "headGroupSpec"

    @property
    def pod(self) -> dict[str, Any]:
        """What its pods are made of."""
        return mapping(mapping(self.raw.get("template")).get("spec"))

    @property
    def container(self) -> dict[str, Any]:
        """The container that Ray runs in."""
        containers = self.pod.get("containers")
        return mapping(containers[0]) if isinstance(containers, list) and containers else {}

    @property
    def node_type(self) -> NodeType:
        """The kind of Ray node that its pods are."""
        limits = mapping(mapping(self.container.get("resources")).get("limits"))
        own = {key: number(value) for key, value in mapping(self.raw.get("resources")).items()}
        found = {"CPU": number(limits.get("cpu")), "GPU": number(limits.get("nvidia.com/gpu"))}
        selector = mapping(self.pod.get("nodeSelector"))
        return NodeType(
            where=self.where,
            labels={key: str(value) for key, value in mapping(self.raw.get("labels")).items()},
            resources={**{kind: amount for kind, amount in found.items() if amount}, **own},
            at_least=1 if self.is_head else int(number(self.raw.get("minReplicas"))),
            at_most=1 if self.is_head else int(number(self.raw.get("maxReplicas", 2**31 - 1))),
            is_head=self.is_head,
            is_spot=any(str(selector.get(key, "")).lower() in ("true", "spot") for key in _SPOT),
            image=Image(str(self.container["image"])) if self.container.get("image") else None,
        )


@dataclass(frozen=True)
class Manifests:
    """A file of Kubernetes objects, with one RayCluster among them.

    Attributes:
        path: where it is.
        objects: what is in it.
    """

    path: Path
    objects: Sequence[Raw]

    def of_kind(self, kind: str) -> list[Raw]:
        """All objects of a kind."""
        return [one for one in self.objects if one.get("kind") == kind]

    @property
    def spec(self) -> dict[str, Any]:
        """What the RayCluster shall be."""
        return mapping(next(iter(self.of_kind("RayCluster")), {}).get("spec"))

    @property
    def groups(self) -> list[Group]:
        """Head and worker groups."""
        workers = self.spec.get("workerGroupSpecs")
        sections = [mapping(one) for one in (workers if isinstance(workers, list) else [])]
        named = [Group(f"workerGroupSpecs.{one.get('groupName', '')}", one) for one in sections]
        return [Group("headGroupSpec", mapping(self.spec.get("headGroupSpec"))), *named]

    @property
    def node_types(self) -> list[NodeType]:
        """Kinds of nodes."""
        return [group.node_type for group in self.groups]


def check_manifests(file: Manifests, installed: Versions) -> Iterator[Finding]:
    """Everything that is wrong with a file."""
    yield from _cluster(file, installed)
    for group in file.groups:
        yield from _group(group, installed)
        yield from _owner(group, file)
    yield from check_node_types(file.node_types)
    for job in file.of_kind("RayJob"):
        yield from _job(mapping(job.get("spec")), mapping(job.get("metadata")), file)


def _cluster(file: Manifests, installed: Versions) -> Iterator[Finding]:
    spec = file.spec
    if len(file.of_kind("RayCluster")) != 1:
        yield error("kind", f"{len(file.of_kind('RayCluster'))} objects of kind RayCluster", "one a file")
    if spec.get("rayVersion") != installed.ray:
        yield error(
            "rayVersion", f"{spec.get('rayVersion')}, here is {installed.ray}", f'rayVersion: "{installed.ray}"'
        )
    if mapping(spec.get("authOptions")).get("mode") != "token":
        yield error("authOptions", "token authentication is not switched on", "authOptions: {mode: token}")
    head = mapping(spec.get("headGroupSpec"))
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield error(
            "headGroupSpec",
            "the dashboard can be reached from outside Kubernetes: whoever reaches it runs code on all nodes",
            "serviceType: ClusterIP without an ingress, and `kubectl port-forward`",
        )


def _group(group: Group, installed: Versions) -> Iterator[Finding]:
    kind = group.node_type
    if kind.image is None:
        yield error(group.where, "its pods have no container with an image", "give template.spec.containers")
    else:
        yield from check_image(group.where, kind.image, installed)
    both = {"labels", "resources"} & set(mapping(group.raw.get("rayStartParams")))
    if both:
        yield error(
            f"{group.where}.rayStartParams",
            f"{', '.join(sorted(both))} here: the operator refuses or overrides them",
            "give labels and resources of the group itself (KubeRay 1.5 or newer)",
        )
    replicas = number(group.raw.get("replicas"))
    if not group.is_head and not kind.at_least <= replicas <= kind.at_most:
        yield error(
            group.where,
            f"replicas {replicas:g} is not between {kind.at_least} and {kind.at_most}",
            "between minReplicas and maxReplicas",
        )


def _owner(group: Group, file: Manifests) -> Iterator[Finding]:
    owner = group.node_type.owner
    if owner is None:
        return
    if not group.pod.get("nodeSelector"):
        yield error(
            group.where,
            f"owner {owner}'s pod may be put on any machine",
            f"nodeSelector: {{fedray.owner: {owner}}}, with that label on its machine",
        )
    named = _identity(group, file)
    if named != [owner]:
        yield error(
            group.where,
            f"its identity file names {' and '.join(named)}" if named else f"no identity file in {_IDENTITY}",
            f"mount a ConfigMap there with owner.json: {json.dumps({'owners': [owner]})}",
        )


def _identity(group: Group, file: Manifests) -> list[str]:
    """Whom the file names that the group's pods get by a ConfigMap."""
    mounts = [mapping(one) for one in group.container.get("volumeMounts") or []]
    volumes = {str(mapping(one).get("name")): mapping(one) for one in group.pod.get("volumes") or []}
    name = next((str(one.get("name")) for one in mounts if one.get("mountPath") == _IDENTITY), None)
    wanted = mapping(volumes.get(str(name), {}).get("configMap")).get("name")
    for one in file.of_kind("ConfigMap"):
        if wanted and mapping(one.get("metadata")).get("name") == wanted:
            return _owners_in(str(mapping(one.get("data")).get("owner.json", "")))
    return []


def _owners_in(text: str) -> list[str]:
    try:
        return strings(mapping(json.loads(text)).get("owners"))
    except ValueError:
        return []


def _job(spec: Raw, metadata: Raw, file: Manifests) -> Iterator[Finding]:
    where = f"RayJob {metadata.get('name', '')}"
    (*_, name) = [None, *(mapping(one.get("metadata")).get("name") for one in file.of_kind("RayCluster"))]
    selected = mapping(spec.get("clusterSelector")).get("ray.io/cluster")
    if selected != name and "rayClusterSpec" not in spec:
        yield error(
            where, f"for cluster {selected}, the file has {name}", f"clusterSelector: {{ray.io/cluster: {name}}}"
        )
    if number(spec.get("backoffLimit")) > 0:
        yield error(
            where, "a job that fails is run again: owners would be charged twice", "backoffLimit: 0, and --resume"
        )
    if "--address auto" not in str(spec.get("entrypoint", "")):
        yield error(where, "its command does not connect to the cluster", "add --address auto to fedray's command")
