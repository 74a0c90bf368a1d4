"""Owners run on their own nodes and nowhere else, alone and in comparisons: three raylets on one machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_nodes import Machines, homes, machines
from ray import cloudpickle

import fedray
from fedray.actors.resources import require, server_options
from fedray.actors.session import ray_key_holder
from fedray.config import Experiment, replaced
from fedray.config.cluster import Place
from fedray.config.learning import Bfv
from fedray.errors import ResourcesError
from fedray.tune import compare

cloudpickle.register_pickle_by_value(sys.modules[__name__])

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
def nodes() -> Iterator[Machines]:
    """A head and two labelled nodes, whose identity files name their owners."""
    with machines() as cluster:
        cluster.join("ann", label="ann", owners=["owner-00"])
        cluster.join("bob", label="bob", owners=["owner-01", "key holder"], resources={"owner:bob": 1})
        yield cluster


def test_owners_run_where_their_placement_says(nodes: Machines, tmp_path: Path) -> None:
    """Two are pinned and the third is not; masks are agreed on from node to node."""
    rounds = iter(fedray.run(PINNED, tmp_path / "run"))
    first = next(rounds)
    assert (first.n_updates, first.sum.protection, first.sum.outcome) == (3, "masked", "opened")
    found = homes()
    assert found["owner-00"] == nodes.node_id("ann")
    assert found["owner-01"] == nodes.node_id("bob")
    assert "owner-02" in found
    assert len(list(rounds)) == 1


def test_trials_reserve_the_owners_own_nodes(nodes: Machines, tmp_path: Path) -> None:
    result = compare(PINNED, {"seed": [0, 1]}, tmp_path / "out")
    assert result.n_failed == 0
    assert [len(run.rounds) for run in result.runs] == [2, 2]


def test_an_owner_whose_node_is_missing_is_named(nodes: Machines, tmp_path: Path) -> None:
    stray = replaced(PINNED, {"placement": {"owner-00": {"labels": {"fedray.owner": "cat"}}}})
    with pytest.raises(ResourcesError, match="owner-00"):
        list(fedray.run(stray, tmp_path / "run"))


def test_an_owner_does_not_start_on_a_node_that_its_identity_file_gives_to_another(
    nodes: Machines, tmp_path: Path
) -> None:
    """One clear error, soon; the label alone would have let it run there."""
    swapped = replaced(PINNED, {"placement": {"owner-00": {"labels": {"fedray.owner": "bob"}}}})
    with pytest.raises(ResourcesError, match=r"owner\.json of key holder, owner-01") as refused:
        list(fedray.run(swapped, tmp_path / "run"))
    assert nodes.node_id("bob")[:16] in refused.value.found
    assert "owner-00" in refused.value.expected


def test_the_key_holder_starts_on_its_own_node_alone(nodes: Machines) -> None:
    def opened(label: str) -> object:
        protection = Bfv(key_rounds=5, key_holder=Place(labels={"fedray.owner": label}))
        return ray_key_holder(replaced(PINNED, {"protection": protection}))(_NoKeyHolder)

    kept = opened("bob")
    assert homes()["key holder"] == nodes.node_id("bob")
    del kept
    with pytest.raises(ResourcesError, match="of owner-00"):
        opened("ann")


class _NoKeyHolder:
    """Stands for a key holder: that it is asked for its identity is all that is needed here."""

    identity = b"public"


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"resources.server.labels": {"fedray.owner": "nobody"}}, "resources.server"),
        ({"resources.server.resources": {"quiet": 1}}, "resources.server"),
        ({"protection": Bfv(key_rounds=5, key_holder=Place(resources={"vault": 1}))}, "protection.key_holder"),
    ],
)
def test_a_server_or_key_holder_without_a_node_is_refused_before_the_start(
    nodes: Machines, settings: dict[str, object], setting: str
) -> None:
    names = ["owner-00", "owner-01", "owner-02"]
    require(PINNED, names, 3.0)
    with pytest.raises(ResourcesError, match="no node can hold") as refused:
        require(replaced(PINNED, settings), names, 3.0)
    assert setting in refused.value.remedy


def test_what_the_server_reserves_counts_with_what_owners_reserve(nodes: Machines) -> None:
    """Half of what bob's node has is for its owner: two thirds for the server are too much, a third is not."""
    names = ["owner-00", "owner-01", "owner-02"]
    require(replaced(PINNED, {"resources.server.resources": {"owner:bob": 0.3}}), names, 3.0)
    with pytest.raises(ResourcesError, match="owner:bob"):
        require(replaced(PINNED, {"resources.server.resources": {"owner:bob": 0.6}}), names, 3.0)


def test_the_servers_options_are_its_place() -> None:
    place = Place(labels={"fedray.role": "server"}, resources={"server": 0.5})
    experiment = replaced(PINNED, {"resources": {"server": place, "server_cpus": 2}})
    assert server_options(experiment) == {
        "num_cpus": 2,
        "num_gpus": 0,
        "resources": {"server": 0.5},
        "label_selector": {"fedray.role": "server"},
    }
    assert "label_selector" not in server_options(PINNED)
