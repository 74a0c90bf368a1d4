"""An experiment is compared with a cluster before either is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster_files import ROOT, documents, errors, findings, hospitals

from fedray.clusters.findings import Finding


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def pinned(name: str, **more: Any) -> dict[str, Any]:
    return {name: {"labels": {"fedray.owner": name}, **more}}


@pytest.mark.parametrize(
    ("more", "where", "lacks"),
    [
        ({"placement": pinned("hospital-x")}, "placement.hospital-x", "label fedray.owner=hospital-x"),
        ({"placement": pinned("hospital-b", gpus=1)}, "placement.hospital-b", "1 GPU (has 0)"),
        ({"placement": pinned("hospital-b", cpus=8)}, "placement.hospital-b", "8 CPU (has 4)"),
        (
            {"placement": pinned("hospital-b", resources={"owner:hospital-b": 2})},
            "placement.hospital-b",
            "2 owner:hospital-b (has 1)",
        ),
        ({"resources": {"owner_gpus": 0.5}}, "placement.hospital-b", "0.5 GPU (has 0)"),
        ({"resources": {"owner_cpus": 5}}, "placement.hospital-b", "5 CPU (has 4)"),
        ({"resources": {"server": {"labels": {"fedray.node": "vault"}}}}, "resources.server", "fedray.node=vault"),
        (
            {"protection": {"name": "bfv", "key_rounds": 5, "key_holder": {"resources": {"owner:trustee": 0.1}}}},
            "protection.key_holder",
            "0.1 owner:trustee (has 0)",
        ),
    ],
)
@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/kuberay.yaml"])
def test_what_no_node_has_is_an_error_that_names_it(
    name: str, more: dict[str, Any], where: str, lacks: str, tmp_path: Path
) -> None:
    found = errors(findings(documents(name), tmp_path, hospitals(**more)))
    assert any(one.startswith(where) and lacks in one for one in found), found


def test_the_server_has_its_place_on_the_head(tmp_path: Path) -> None:
    at_the_head = hospitals(resources={"server": {"labels": {"fedray.node": "server"}}})
    assert errors(findings(documents("cluster.yaml"), tmp_path, at_the_head)) == []


def warnings(found: list[Finding]) -> str:
    return "; ".join(one.found for one in found if one.severity == "warning")


def test_an_owner_that_is_not_pinned_is_warned_of_and_so_is_a_node_for_nobody(tmp_path: Path) -> None:
    two = {**pinned("hospital-a"), **pinned("hospital-b")}
    found = warnings(findings(documents("cluster.yaml"), tmp_path, hospitals(placement=two)))
    assert "not pinned: hospital-c" in found
    assert "not used: hospital-c" in found


def test_more_owners_than_hosts_of_ones_own_are_an_error(tmp_path: Path) -> None:
    (raw,) = documents("clusters/local.yaml")
    raw["provider"]["worker_ips"].pop()
    assert errors(findings([raw], tmp_path, hospitals())) == [
        "placement: 3 owners are pinned, each to a host, and there are 2"
    ]
