"""Owners run on their own nodes and nowhere else, alone and in comparisons: three raylets on one machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

import fedray
from fedray.config import Experiment, replaced
from fedray.errors import ResourcesError
from fedray.tune import compare

PINNED = Experiment(
    name="pinned",
    rounds=2,
    data={"name": "digits", "owners": 3},
    model="logistic",
    placement={
        "owner-00": {"labels": {"fedray.owner": "ann"}},
        "owner-01": {"labels": {"fedray.owner": "bob"}, "resources": {"owner:bob": 0.5}},
    },
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, str]]:
    """A head and two labelled nodes; yields label to node id."""
    options = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    try:
        for name in ("ann", "bob"):
            cluster.add_node(**options, labels={"fedray.owner": name}, resources={f"owner:{name}": 1})
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield {node["Labels"].get("fedray.owner", "head"): node["NodeID"] for node in ray.nodes()}
    finally:
        ray.shutdown()
        cluster.shutdown()


def homes() -> list[str]:
    """Node ids of the owners' actors that are alive."""
    from ray._private.state import actors

    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    return [actor["Address"]["NodeID"] for actor in alive if actor["ActorClassName"] == "OwnerActor"]


def test_owners_run_where_their_placement_says(nodes: dict[str, str], tmp_path: Path) -> None:
    """Two are pinned and the third is not; masks are agreed on from node to node."""
    rounds = iter(fedray.run(PINNED, tmp_path / "run"))
    first = next(rounds)
    assert (first.n_updates, first.sum.protection, first.sum.outcome) == (3, "masked", "opened")
    found = homes()
    assert len(found) == 3
    for name in ("ann", "bob"):
        found.remove(nodes[name])
    assert found[0] in nodes.values()
    assert len(list(rounds)) == 1


def test_trials_reserve_the_owners_own_nodes(nodes: dict[str, str], tmp_path: Path) -> None:
    result = compare(PINNED, {"seed": [0, 1]}, tmp_path / "out")
    assert result.n_failed == 0
    assert [len(run.rounds) for run in result.runs] == [2, 2]


def test_an_owner_whose_node_is_missing_is_named(nodes: dict[str, str], tmp_path: Path) -> None:
    stray = replaced(PINNED, {"placement": {"owner-00": {"labels": {"fedray.owner": "cat"}}}})
    with pytest.raises(ResourcesError, match="owner-00"):
        list(fedray.run(stray, tmp_path / "run"))
