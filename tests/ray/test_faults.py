"""Whole runs through losses that the cluster has: a node that goes in the middle of rounds, a store that is full."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from own_nodes import Machines, homes, machines
from toys import study

import fedray
from fedray.config import Experiment

replaying = study("replaying")

DIGITS: dict[str, Any] = {
    "name": "digits",
    "rounds": 400,
    "data": {"name": "digits", "owners": 4, "split": "iid"},
    "model": "logistic",
    "train": {"steps": 2, "batch_size": 32},
    "strategy": {"name": "fedavg", "server_momentum": 0.9},
    "evaluation": {"every": 400},
    "resources": {"owner_cpus": 0.2},
}


def outcomes(records: list[fedray.RoundRecord]) -> list[str]:
    return [record.owners[0].outcome for record in records]


def test_the_second_derivation_finds_a_sum_that_is_wrong(tmp_path: Path) -> None:
    """By one owner less than is on record."""
    experiment = Experiment(**{**DIGITS, "rounds": 3})
    records = list(fedray.run(experiment, tmp_path / "run", in_process=True))
    assert replaying.wrong_rounds(experiment, records) == []
    first, *others = records[1].owners
    less = replace(records[1], owners=(replace(first, outcome="absent"), *others))
    assert replaying.wrong_rounds(experiment, [records[0], less, records[2]]) == [2, 3]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Machines]:
    """A head, and a node of the owner ann, who is called ``owner-00`` in the data."""
    with machines() as cluster:
        cluster.join("ann", label="ann", owners=["owner-00"])
        yield cluster


def pinned(server: dict[str, str], **changes: Any) -> Experiment:
    """With ann's owner on ann's node, and the server on a node with these labels."""
    placement = {"owner-00": {"labels": {"fedray.owner": "ann"}}}
    resources = {**DIGITS["resources"], "server": {"labels": server}}
    return Experiment(**{**DIGITS, **changes, "placement": placement, "resources": resources})


def on_head(nodes: Machines) -> dict[str, str]:
    """Labels of the node that is not ann's."""
    (head,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != nodes.node_id("ann")]
    return {"ray.io/node-id": head}


def test_a_run_goes_on_without_the_owner_whose_node_is_lost_and_with_it_once_it_is_back(
    nodes: Machines, tmp_path: Path
) -> None:
    """Under masks; the sums are those of the owners that are said to be in them."""
    experiment = pinned(on_head(nodes))
    records: list[fedray.RoundRecord] = []
    for record in fedray.run(experiment, tmp_path / "run"):
        records.append(record)
        if record.round == 3:
            nodes.lose("ann")
        if outcomes(records).count("absent") == 2 and not nodes.joined():
            nodes.join("ann", label="ann", owners=["owner-00"])
        if nodes.joined() and outcomes(records)[-2:] == ["update", "update"] and "absent" in outcomes(records):
            assert homes()["owner-00"] == nodes.node_id("ann")
            break
    found = outcomes(records)
    assert found[:3] == ["update"] * 3
    assert found[-2:] == ["update"] * 2
    assert {record.sum.outcome for record in records} == {"opened"}
    assert {record.n_updates for record in records} == {3, 4}
    assert replaying.wrong_rounds(experiment, records) == []


def test_a_run_goes_on_while_the_object_store_is_full(nodes: Machines, tmp_path: Path) -> None:
    """With objects that are in use, so that they cannot be moved to disk."""
    experiment = pinned(on_head(nodes), rounds=12)
    records, held = [], []
    for record in fedray.run(experiment, tmp_path / "run"):
        records.append(record)
        if record.round == 3:
            refs = [ray.put(np.ones(25_000_000, np.uint8)) for _ in range(6)]
            held = [ray.get(ref) for ref in refs]
        if record.round == 9:
            assert sum(one.nbytes for one in held) > 100_000_000, "what the store holds"
            del refs, held
    assert [record.n_updates for record in records] == [4] * 12
    assert replaying.wrong_rounds(experiment, records) == []


def test_a_server_that_is_lost_with_an_owners_node_waits_for_it(nodes: Machines, tmp_path: Path) -> None:
    """It begins with all owners, as it did before, and does the same rounds."""
    experiment = pinned({"fedray.owner": "ann"}, rounds=60)
    events = tmp_path / "run" / "events.jsonl"
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(list, fedray.run(experiment, tmp_path / "run"))
        _until(lambda: events.exists() and "round ended" in events.read_text(), running)
        nodes.lose("ann")
        _until(lambda: "server lost" in events.read_text(), running)
        nodes.join("ann", label="ann", owners=["owner-00"])
        records = running.result()
    whole = list(fedray.run(experiment, tmp_path / "whole", in_process=True))
    assert [record.parameters_sha256 for record in records] == [record.parameters_sha256 for record in whole]
    assert {record.n_updates for record in records} == {4}


def _until(holds: Callable[[], bool], running: Future[Any]) -> None:
    while not holds():
        assert not running.done(), running.result()
        time.sleep(0.05)
