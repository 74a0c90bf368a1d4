"""Whole runs through losses that the cluster has: a node that goes in the middle of rounds, a store that is full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from conftest_ray import own_ray
from own_nodes import homes, machines
from toys import study

import fedray
from fedray.config import Experiment

breaking = study("breaking")

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


def test_a_run_goes_on_without_the_owner_whose_node_is_lost_and_with_it_once_it_is_back(tmp_path: Path) -> None:
    """Under masks; the sums are those of the owners that are said to be in them."""
    pinned = Experiment(**DIGITS, placement={"owner-00": {"labels": {"fedray.owner": "ann"}}})
    records: list[fedray.RoundRecord] = []
    with machines() as nodes:
        nodes.join("ann", label="ann", owners=["owner-00"])
        for record in fedray.run(pinned, tmp_path / "run"):
            records.append(record)
            if record.round == 3:
                nodes.lose("ann")
            if outcomes(records).count("absent") == 2 and not nodes.joined():
                nodes.join("ann", label="ann", owners=["owner-00"])
            if nodes.joined() and outcomes(records)[-2:] == ["update", "update"] and record.round > 5:
                assert homes()["owner-00"] == nodes.node_id("ann")
                break
    found = outcomes(records)
    assert found[:3] == ["update"] * 3
    assert found[-2:] == ["update"] * 2
    assert found.count("absent") >= 2
    assert {record.sum.outcome for record in records} == {"opened"}
    assert {record.n_updates for record in records} == {3, 4}
    assert breaking.wrong_rounds(pinned, records) == []


def test_a_run_goes_on_while_the_object_store_is_full(tmp_path: Path) -> None:
    """With objects that are in use, so that they cannot be moved to disk."""
    experiment = Experiment(**{**DIGITS, "rounds": 12})
    records, held = [], []
    with own_ray(4):
        for record in fedray.run(experiment, tmp_path / "run"):
            records.append(record)
            if record.round == 3:
                refs = [ray.put(np.ones(25_000_000, np.uint8)) for _ in range(12)]
                held = [ray.get(ref) for ref in refs]
            if record.round == 9:
                assert sum(one.nbytes for one in held) > 200_000_000, "what the store holds"
                del refs, held
    assert [record.n_updates for record in records] == [4] * 12
    assert breaking.wrong_rounds(experiment, records) == []


def test_the_second_derivation_finds_a_sum_that_is_wrong(tmp_path: Path) -> None:
    """By one owner less than is on record."""
    experiment = Experiment(**{**DIGITS, "rounds": 3})
    records = list(fedray.run(experiment, tmp_path / "run", in_process=True))
    assert breaking.wrong_rounds(experiment, records) == []
    first, *others = records[1].owners
    less = replace(records[1], owners=(replace(first, outcome="absent"), *others))
    assert breaking.wrong_rounds(experiment, [records[0], less, records[2]]) == [2, 3]
