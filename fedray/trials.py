"""One trial of a comparison: a federation inside its own placement group, which survives the loss of its node.

The trial's process is the server; its owners are actors in the group's other bundles. Every round is reported and
checkpointed, so that a trial whose process or node was lost goes on where it was. A trial that failed for a reason of
its own is not tried again: it would fail again, and under differential privacy cost again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Checkpoint

from fedray import data
from fedray.actors.resources import owner_cpus, owner_demand, pool_demands, server_seat
from fedray.actors.session import ray_cohort, ray_key_holder
from fedray.build import open_federation
from fedray.config import Experiment, Placement
from fedray.config.cluster import Pooled
from fedray.config.space import Space
from fedray.errors import FedrayError, RunError
from fedray.records import PARQUET, header, read_run, write_parquet
from fedray.scheduling import rounds_of
from fedray.states import load_state, save_state
from fedray.values import RoundRecord

STATE = "state.safetensors"
LEDGERS = "ledgers"
"""Folder of a comparison: the ledgers, over all trials, of owners that have opened none on their machine."""
_SERVER_CPUS = 0.01
"""Never nothing: Ray drops an empty head bundle, and then mistakes the first owner's node for the server's."""
OWNERS_CPUS = 1.0 - _SERVER_CPUS
"""What a trial's owners share where the experiment says ``auto``: one trial a processor."""
_ON_THE_NODE = 0.001
"""Of the resource that every node has of its own name."""


def trainable(space: Space, accounts: Path, session: str, storage: str | None) -> Any:
    """What Tune runs at every point of a space.

    Args:
        space: where trials are.
        accounts: folder of what owners keep, a folder a trial in it.
        session: names this driver's turn at the comparison; what failed in another is tried again.
        storage: the node, by address, whose disk trials are kept on; None where any server's node can reach them.
    """
    trial = partial(_trial, space=space, accounts=accounts, session=session)
    return tune.with_resources(_named(trial), partial(_bundles, space=space, storage=storage))


def _named(trial: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def federation(config: dict[str, Any]) -> None:
        trial(config)

    return federation


def _trial(config: dict[str, Any], *, space: Space, accounts: Path, session: str) -> None:
    """One federation, from its start or from the trial's last checkpoint."""
    folder = accounts / tune.get_context().get_trial_id()
    failed = folder / f"failed-{session}"
    if failed.is_file():
        raise RunError(failed.read_text(), "a trial that was not lost, but failed", "mend what it says")
    try:
        _federate(_experiment(space, config), folder, accounts.parent / LEDGERS)
    except FedrayError as error:
        folder.mkdir(parents=True, exist_ok=True)
        failed.write_text(error.found)
        raise


def _federate(experiment: Experiment, folder: Path, ledgers: Path) -> None:
    checkpoint = tune.get_checkpoint()
    state, records = None, header(experiment)
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            state, records = load_state(Path(kept) / STATE), read_run(Path(kept))
    opens_cohort = ray_cohort(experiment, cpus=OWNERS_CPUS)
    federation = open_federation(experiment, opens_cohort, folder, ray_key_holder(experiment), ledgers=ledgers)
    try:
        for after, record in rounds_of(experiment)(federation, state):
            records = replace(records, rounds=(*records.rounds, record))
            if record.round == experiment.rounds:
                records = replace(records, status="complete")
            if after.is_exhausted:
                records = replace(records, status="exhausted")
            with tempfile.TemporaryDirectory() as written:
                save_state(Path(written) / STATE, after)
                write_parquet(Path(written) / PARQUET, records)
                tune.report(_reported(record), checkpoint=Checkpoint.from_directory(written))
    finally:
        federation.cohort.close()


def _reported(record: RoundRecord) -> dict[str, Any]:
    """What schedulers and searchers see."""
    return {"round": record.round, "epsilon": record.epsilon, **record.evaluation}


def _experiment(space: Space, config: Mapping[str, Any]) -> Experiment:
    return space.at({key: _plain(value) for key, value in config.items()})


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def storage_node(experiment: Experiment) -> str | None:
    """The node of the driver, where trials' servers must run if only its disk keeps them.

    Not where the comparison is kept on a file system that all nodes reach, nor where the user has placed servers.
    """
    place = experiment.resources.server
    is_elsewhere = experiment.checkpoints.path is not None or place.labels or place.resources
    return None if is_elsewhere or len(ray.nodes()) == 1 else ray.util.get_node_ip_address()


def _bundles(config: dict[str, Any], *, space: Space, storage: str | None) -> tune.PlacementGroupFactory:
    """The trial's server and each of its owners, every one with its node's labels and resources, or its pools."""
    experiment = _experiment(space, config)
    seat = server_seat(experiment)
    server = {"CPU": _SERVER_CPUS, **seat.demand, **({f"node:{storage}": _ON_THE_NODE} if storage else {})}
    if isinstance(experiment.simulation, Pooled):
        owners, labels = pool_demands(experiment, OWNERS_CPUS), []
    else:
        names = data.owner_names(experiment.data)
        share = owner_cpus(experiment, len(names), OWNERS_CPUS)
        owners = [owner_demand(experiment, name, share) for name in names]
        labels = [dict(experiment.placement.get(name, Placement()).labels) for name in names]
    selectors = [dict(seat.labels), *(labels or [{}] * len(owners))]
    if any(selectors):
        return tune.PlacementGroupFactory([server, *owners], bundle_label_selector=selectors)
    return tune.PlacementGroupFactory([server, *owners])
