"""The shipped clusters pass Ray's own schema and fedray's rules, and every mistake that is made in them is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_files import ALL_FILES, LAUNCHER_FILES, ROOT, Documents, documents, errors, findings, hospitals
from ray.autoscaler._private.util import prepare_config, validate_config

from fedray.config import Experiment

Raw = dict[str, Any]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Paths in the files are taken from the checkout's root, and the token from a home that has none."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_rays_own_schema_accepts_every_launcher_file(name: str) -> None:
    validate_config(prepare_config(yaml.safe_load((ROOT / name).read_text())))


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_shipped_cluster_has_neither_errors_nor_warnings(name: str, tmp_path: Path) -> None:
    found = findings(documents(name), tmp_path, hospitals())
    assert [one for one in found if one.severity != "note"] == []


@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/gcp.yaml", "clusters/kuberay.yaml"])
def test_the_gpu_of_a_shipped_cluster_is_where_an_experiment_may_ask_for_it(name: str, tmp_path: Path) -> None:
    def asking(owner: str) -> Experiment:
        wants = {"labels": {"fedray.owner": owner}, "resources": {f"owner:{owner}": 0.1}, "gpus": 0.5}
        return hospitals(placement={**hospitals().model_dump()["placement"], owner: wants})

    assert errors(findings(documents(name), tmp_path, asking("hospital-a"))) == []
    (found,) = errors(findings(documents(name), tmp_path, asking("hospital-b")))
    assert found.startswith("placement.hospital-b")
    assert "0.5 GPU (has 0)" in found


def types(raw: Raw) -> Raw:
    found: Raw = raw["available_node_types"]
    return found


def set_in(*path: str | int, to: Any) -> Callable[[Raw], None]:
    """A mistake: one value is another."""

    def change(raw: Any) -> None:
        *way, last = path
        for part in way:
            raw = raw[part]
        raw[last] = to

    return change


def without(*path: str | int) -> Callable[[Raw], None]:
    """A mistake: one value is left out."""

    def change(raw: Any) -> None:
        *way, last = path
        for part in way:
            raw = raw[part]
        del raw[last]

    return change


def said(key: str, old: str, new: str) -> Callable[[Raw], None]:
    """A mistake in a list of commands or options."""

    def change(raw: Raw) -> None:
        section, _, last = key.rpartition(".")
        lines = (raw[section] if section else raw)[last]
        assert any(old in line for line in lines)
        lines[:] = [line.replace(old, new) for line in lines]

    return change


def both_accounts(raw: Raw) -> None:
    for name in ("hospital-a", "hospital-b"):
        types(raw)[name]["node_config"]["IamInstanceProfile"] = {"Name": "shared"}


def owner_twice(raw: Raw) -> None:
    types(raw)["other"] = types(raw)["hospital-b"]


OPEN = [{"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
B = ("available_node_types", "hospital-b")

AWS_MISTAKES: dict[str, tuple[Callable[[Raw], None], str]] = {
    "a key is misspelt": (set_in("avalable_node_types", to={}), "avalable_node_types"),
    "a resource is a fraction": (set_in(*B, "resources", "owner:hospital-b", to=0.5), "0.5 is not of type 'integer'"),
    "no such head": (set_in("head_node_type", to="heat"), "`head_node_type` must be one of"),
    "fewer nodes allowed than owners": (set_in("max_workers", to=2), "`max_workers` is smaller than the sum"),
    "an owner may have two nodes": (set_in(*B, "max_workers", to=2), "owner hospital-b has 1 to 2 nodes"),
    "an owner may have no node": (set_in(*B, "min_workers", to=0), "owner hospital-b has 0 to 1 nodes"),
    "an owner has no label": (without(*B, "labels"), "no label fedray.owner"),
    "an owner has no resource": (set_in(*B, "resources", to={"CPU": 4}), "no resource owner:hospital-b"),
    "label and resource name two owners": (
        set_in(*B, "labels", to={"fedray.owner": "hospital-x"}),
        "owner:hospital-b on the node of hospital-x",
    ),
    "two nodes of one owner": (owner_twice, "2 of them belong to owner hospital-b"),
    "an owner on spot": (
        set_in(*B, "node_config", "InstanceMarketOptions", to={"MarketType": "spot"}),
        "hospital-b is on a spot node",
    ),
    "the head is an owner": (
        set_in("available_node_types", "head", "labels", "fedray.owner", to="hospital-x"),
        "the head is owner hospital-x's node",
    ),
    "no identity file": (set_in(*B, "worker_setup_commands", 2, to="true"), "no identity file is written"),
    "another owner's identity file": (
        set_in(*B, "worker_setup_commands", 2, to="sudo fedray cluster identify hospital-c"),
        "identity file would name hospital-c",
    ),
    "own set-up commands forget fedray": (
        set_in(*B, "worker_setup_commands", to=["sudo fedray cluster identify hospital-b"]),
        "no command installs fedray",
    ),
    "an image without a version": (set_in("docker", "image", to="rayproject/ray:latest"), "does not say which Ray"),
    "an image of another Ray": (set_in("docker", "image", to="rayproject/ray:2.54.1-py311"), "has Ray 2.54.1"),
    "an image of another Python": (set_in("docker", "image", to="rayproject/ray:2.60.0-py312"), "Python 3.12"),
    "a GPU without CUDA": (
        set_in("available_node_types", "hospital-a", "docker", "worker_image", to="rayproject/ray:2.60.0-py311"),
        "has no CUDA",
    ),
    "another Ray is installed": (
        set_in("setup_commands", 0, to="pip install ray[default]==2.9.0"),
        "installs Ray 2.9.0",
    ),
    "the dashboard is open": (
        said("head_start_ray_commands", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        "--dashboard-host=0.0.0.0",
    ),
    "Ray's own start command": (without("head_start_ray_commands"), "opens the dashboard to everyone"),
    "the head starts no nodes": (
        said("head_start_ray_commands", "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        "no --autoscaling-config",
    ),
    "no token": (
        said("docker.run_options", "--env RAY_AUTH_MODE=token", ""),
        "token authentication is not switched on",
    ),
    "nodes get no token": (without("file_mounts", "/home/ray/.ray/auth_token"), "do not get the cluster's token"),
    "the secret is in the file": (
        said("docker.run_options", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN=0f1e"),
        "secret is written into the file",
    ),
    "a folder that is not there": (set_in("file_mounts", "/home/ray/data", to="no/such/folder"), "no/such/folder"),
    "a port is open to everyone": (set_in("provider", "security_group", "IpPermissions", to=OPEN), "8265 to 8265"),
}

LOCAL_MISTAKES: dict[str, tuple[Callable[[Raw], None], str]] = {
    "no head": (without("provider", "head_ip"), "head_ip"),
    "all hosts claim one owner": (
        said("worker_start_ray_commands", "fedray.owner=$FEDRAY_OWNER", "fedray.owner=hospital-a"),
        "does not take label and resource from the host",
    ),
    "a host twice": (set_in("provider", "worker_ips", 0, to="10.0.0.10"), "10.0.0.10 is named twice"),
    "one start command without the token": (
        said("worker_start_ray_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        "worker_start_ray_commands: token authentication",
    ),
}


def group_b(documents: Documents) -> Raw:
    found: Raw = documents[0]["spec"]["workerGroupSpecs"][1]
    return found


def in_b(change: Callable[[Raw], None]) -> Callable[[Documents], None]:
    return lambda documents: change(group_b(documents))


POD = ("template", "spec")
KUBERAY_MISTAKES: dict[str, tuple[Callable[[Any], None], str]] = {
    "another Ray": (set_in(0, "spec", "rayVersion", to="2.9.0"), "2.9.0, here is 2.60.0"),
    "no token": (without(0, "spec", "authOptions"), "token authentication is not switched on"),
    "a public dashboard": (set_in(0, "spec", "headGroupSpec", "serviceType", to="LoadBalancer"), "dashboard can be"),
    "an owner may have many pods": (in_b(without("maxReplicas")), "owner hospital-b has 1 to 2147483647 nodes"),
    "an owner on any machine": (in_b(without(*POD, "nodeSelector")), "pod may be put on any machine"),
    "an owner on spot": (
        in_b(set_in(*POD, "nodeSelector", "cloud.google.com/gke-spot", to="true")),
        "is on a spot node",
    ),
    "another owner's identity file": (
        in_b(set_in(*POD, "volumes", 0, "configMap", "name", to="fedray-hospital-c")),
        "its identity file names hospital-c",
    ),
    "no identity file": (in_b(without(*POD, "containers", 0, "volumeMounts")), "no identity file"),
    "labels where the operator refuses them": (
        in_b(set_in("rayStartParams", to={"labels": "fedray.owner=hospital-b"})),
        "labels here",
    ),
    "no resource": (in_b(without("resources")), "no resource owner:hospital-b"),
    "more pods than there may be": (in_b(set_in("replicas", to=2)), "replicas 2 is not between 1 and 1"),
    "an image without a version": (
        in_b(set_in(*POD, "containers", 0, "image", to="fedray:latest")),
        "does not say which Ray",
    ),
    "a job for another cluster": (
        set_in(-1, "spec", "clusterSelector", to={"ray.io/cluster": "other"}),
        "for cluster other, the file has fedray",
    ),
    "a job that is run again": (set_in(-1, "spec", "backoffLimit", to=3), "owners would be charged twice"),
    "a job on its own": (set_in(-1, "spec", "entrypoint", to="fedray compare x.yaml"), "does not connect"),
}


@pytest.mark.parametrize("mistake", AWS_MISTAKES)
def test_a_mistake_in_cluster_yaml_is_found(mistake: str, tmp_path: Path) -> None:
    change, expected = AWS_MISTAKES[mistake]
    (raw,) = documents("cluster.yaml")
    change(raw)
    found = errors(findings([raw], tmp_path))
    assert [one for one in found if expected in one], found


@pytest.mark.parametrize("mistake", LOCAL_MISTAKES)
def test_a_mistake_in_the_file_for_machines_of_ones_own_is_found(mistake: str, tmp_path: Path) -> None:
    change, expected = LOCAL_MISTAKES[mistake]
    (raw,) = documents("clusters/local.yaml")
    change(raw)
    found = errors(findings([raw], tmp_path))
    assert [one for one in found if expected in one], found


@pytest.mark.parametrize("mistake", KUBERAY_MISTAKES)
def test_a_mistake_in_the_manifests_is_found(mistake: str, tmp_path: Path) -> None:
    change, expected = KUBERAY_MISTAKES[mistake]
    raw = documents("clusters/kuberay.yaml")
    change(raw)
    found = errors(findings(raw, tmp_path))
    assert [one for one in found if expected in one], found


def test_a_spot_owner_is_found_on_google_too(tmp_path: Path) -> None:
    for rule in ({"preemptible": True}, {"provisioningModel": "SPOT"}):
        (raw,) = documents("clusters/gcp.yaml")
        types(raw)["hospital-b"]["node_config"]["scheduling"] = [rule]
        assert any("hospital-b is on a spot node" in one for one in errors(findings([raw], tmp_path)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (both_accounts, "2 owners' nodes have the rights of shared"),
        (said("docker.run_options", "--shm-size=4g", ""), "no --shm-size"),
    ],
)
def test_what_may_be_meant_is_a_warning(change: Callable[[Raw], None], expected: str, tmp_path: Path) -> None:
    (raw,) = documents("cluster.yaml")
    change(raw)
    found = findings([raw], tmp_path)
    assert errors(found) == []
    assert any(expected in one.found for one in found if one.severity == "warning")


def test_a_token_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    token = Path("~/.ray/auth_token").expanduser()
    token.parent.mkdir()
    token.write_text("0f1e")
    for mode, n_warnings in ((0o644, 1), (0o600, 0)):
        token.chmod(mode)
        found = findings(documents("cluster.yaml"), tmp_path)
        assert len([one for one in found if one.severity == "warning"]) == n_warnings
        assert "0f1e" not in str(found)
