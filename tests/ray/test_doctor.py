"""``fedray doctor`` before three raylets on one machine: who can be placed, who cannot, and what differs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from own_nodes import Machines, machines
from ray.util.placement_group import placement_group

from fedray.actors.doctor import Diagnosis, _clocks, _security, _versions, diagnose
from fedray.actors.placing import Node
from fedray.actors.probe import Answer, Said, here
from fedray.cli import main, screen
from fedray.config import Experiment, replaced

SERVERS = {"labels": {"fedray.owner": "bob"}}
EXPERIMENT = Experiment(
    data={"name": "digits", "owners": 5},
    model="logistic",
    placement={
        "owner-00": {"labels": {"fedray.owner": "ann"}},
        "owner-01": {"labels": {"fedray.owner": "bob"}},
        "owner-02": {"labels": {"fedray.owner": "nobody"}},
        "owner-03": {"labels": {"fedray.owner": "ann"}, "gpus": 1},
        "owner-04": {"labels": {"fedray.owner": "ann"}, "resources": {"bed": 0.75}},
    },
    resources={"owner_cpus": 0.1, "server": SERVERS},
    protection={"name": "bfv", "key_rounds": 5, "key_holder": {"labels": {"machine": "ann"}}},
)
WELL = replaced(EXPERIMENT, {"protection": "plain", "placement": {"owner-00": {"labels": {"fedray.owner": "ann"}}}})


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Ann's node has a bed, half of which is taken; on bob's, numpy is of another version."""
    site = tmp_path_factory.mktemp("site")
    (site / "numpy-9.9.9.dist-info").mkdir()
    (site / "numpy-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    with machines() as cluster:
        cluster.join("ann", label="ann", owners=["owner-00", "owner-04"], resources={"bed": 1})
        cluster.join("bob", label="bob", owners=["dan"], env={"PYTHONPATH": str(site)})
        ray.get(placement_group([{"bed": 0.5}]).ready())
        yield cluster


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    monkeypatch.setattr(screen.console, "width", 240)

    def call(experiment: Experiment, *arguments: str) -> tuple[int, str]:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(experiment.model_dump(mode="json", exclude_unset=True)))
        monkeypatch.setattr(sys, "argv", ["fedray", "doctor", str(file), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


def test_it_says_of_each_owner_whether_it_can_be_placed_and_why_not(
    nodes: Machines, doctor: Callable[..., tuple[int, str]]
) -> None:
    code, out = doctor(EXPERIMENT, "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["well"]) == (5, False)
    owners = found["owners"]
    assert {name: owner["placeable"] for name, owner in owners.items()} == {
        "owner-00": True,
        "owner-01": False,
        "owner-02": False,
        "owner-03": False,
        "owner-04": False,
    }
    assert owners["owner-00"]["reason"] == ""
    assert nodes.node_id("ann")[:8] in owners["owner-00"]["nodes"][0]
    assert f"{nodes.identity_file('bob')} of" in owners["owner-01"]["reason"]
    assert owners["owner-01"]["reason"].endswith("names dan")
    assert owners["owner-02"]["reason"] == "no node has label fedray.owner=nobody"
    assert owners["owner-03"]["reason"].endswith("has 0 of 1 GPU there")
    assert owners["owner-04"]["reason"].endswith("has 0.5 of 0.75 bed free")
    assert all(owner["remedy"] for name, owner in owners.items() if name != "owner-00")
    assert found["others"]["server"]["placeable"]
    assert nodes.node_id("bob")[:8] in found["others"]["server"]["nodes"][0]
    assert not found["others"]["key holder"]["placeable"]
    assert found["others"]["key holder"]["reason"].endswith("names owner-00, owner-04")


def test_it_names_versions_that_differ_and_tells_what_each_node_has(
    nodes: Machines, doctor: Callable[..., tuple[int, str]]
) -> None:
    code, out = doctor(WELL, "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["well"]) == (0, True), "another numpy may give other bits, but stops nothing"
    (numpy,) = [one["found"] for one in found["findings"] if "differs" in one["found"]]
    assert numpy.startswith("numpy differs: ")
    assert f"9.9.9 on {_name(found, nodes.node_id('bob'))}" in numpy
    others = {one["found"].partition(" ")[0] for one in found["findings"] if "differs" not in one["found"]}
    assert others - {"token"} == {"TLS"}, "a token may be on this machine or not"
    by_machine = {node["labels"].get("machine", "head"): node for node in found["nodes"]}
    assert by_machine["ann"]["identity"] == ["owner-00", "owner-04"]
    assert by_machine["head"]["identity"] is None
    assert by_machine["ann"]["resources"]["bed"] == 1
    assert by_machine["ann"]["free"]["bed"] == 0.5
    assert all(abs(node["clock_ahead_s"]) < 5 for node in found["nodes"])


def _name(found: dict[str, Any], node_id: str) -> str:
    return next(node["name"] for node in found["nodes"] if node["id"] == node_id)


def test_it_shows_people_the_same(nodes: Machines, doctor: Callable[..., tuple[int, str]]) -> None:
    code, out = doctor(EXPERIMENT)
    assert code == 5
    for part in ("no node has label fedray.owner=nobody", "fedray cluster identify", "beware: numpy differs", "bed 1"):
        assert part in out
    assert "nothing stands in the way" not in out
    assert "_group_" not in out, "what Ray makes of a reservation"
    code, out = doctor(WELL)
    assert code == 0
    assert "nothing stands in the way" in out


def test_a_node_that_hangs_is_a_line_and_not_a_hang(nodes: Machines) -> None:
    """Whoever opens a pipe that nobody writes to waits for ever."""
    pinned = replaced(WELL, {"placement": {"owner-01": {"labels": {"fedray.owner": "bob"}}}})
    path = nodes.identity_file("bob")
    path.unlink()
    os.mkfifo(path)
    try:
        found = diagnose(pinned, timeout_s=8)
    finally:
        nodes.identify("bob", ["dan"])
    assert not found.is_well
    assert found.owners["owner-01"].reason.endswith("no answer within 8 s")
    assert found.owners["owner-00"].placeable
    (silent,) = [one for one in found.findings if "could not be asked" in one.found]
    assert nodes.node_id("bob")[:8] in silent.found


def test_an_identity_file_that_is_missing_is_told_from_one_of_another(nodes: Machines) -> None:
    pinned = replaced(WELL, {"placement": {"owner-01": {"labels": {"fedray.owner": "bob"}}}})
    nodes.identify("bob", None)
    missing = diagnose(pinned, timeout_s=60).owners["owner-01"]
    nodes.identify("bob", ["owner-01"])
    there = diagnose(pinned, timeout_s=60).owners["owner-01"]
    nodes.identify("bob", ["dan"])
    assert not missing.placeable
    assert f"no identity file {nodes.identity_file('bob')}" in missing.reason
    assert there.placeable


def test_what_is_too_much_in_all_is_found_where_each_fits_alone(nodes: Machines) -> None:
    """Three nodes of one CPU: five owners of 0.9 each would fit, one by one."""
    greedy = replaced(WELL, {"resources.owner_cpus": 0.9})
    found = diagnose(greedy, timeout_s=60)
    assert all(placing.placeable for placing in found.owners.values())
    assert not found.is_well
    (stop,) = [finding for finding in found.findings if finding.stops]
    assert "4.5 CPU (the cluster has 3)" in stop.found


def said(**changes: object) -> Said:
    return replace(here(), **changes)  # type: ignore[arg-type]


def node(name: str, one: Said | None, ahead_s: float = 0.0) -> Node:
    return Node(name, name, True, {}, {}, {}, Answer(one, ahead_s, "" if one else "silent"))


def test_nodes_that_could_not_understand_each_other_stop_an_experiment() -> None:
    other = {**here().versions, "ray": "1.13.0", "torch": "0.4"}
    found = _versions([node("ann", said()), node("bob", said(versions=other)), node("cat", None)])
    assert {finding.found.partition(" ")[0]: finding.stops for finding in found} == {"ray": True, "torch": False}
    assert all("on bob" in finding.found and "this process, ann" in finding.found for finding in found)
    assert not Diagnosis((), findings=tuple(found)).is_well
    assert _versions([node("ann", said())]) == []


@pytest.mark.parametrize(("ahead_s", "word"), [(6.0, "6 s ahead of"), (-7.0, "7 s behind")])
def test_clocks_that_are_apart_are_named(ahead_s: float, word: str) -> None:
    (found,) = _clocks([node("ann", said(), ahead_s), node("bob", said(), 4.0), node("cat", None)])
    assert "clock of ann" in found.found
    assert word in found.found


def test_one_node_without_a_token_or_without_tls_is_enough_to_say_so() -> None:
    safe, open_ = said(has_token=True, has_tls=True), said(has_token=False, has_tls=False)
    assert _security([node("ann", safe), node("bob", safe)]) == []
    assert len(_security([node("ann", safe), node("bob", open_)])) == 2
    assert _security([node("ann", open_)]) == [], "a cluster of this machine alone"
