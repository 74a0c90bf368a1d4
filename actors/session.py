"""Ray for the length of a run, and the caller's hold on a server actor."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError, RayTaskError

from fedray import data
from fedray.actors.cohort import RayCohort
from fedray.actors.key_holder import RayKeyHolder
from fedray.actors.pooled_cohort import PooledCohort
from fedray.actors.resources import named, require, server_options
from fedray.actors.server import RemoteServer
from fedray.build import OpensCohort, open_federation
from fedray.config import Experiment
from fedray.config.cluster import Place, Pooled
from fedray.config.learning import Bfv, Ckks
from fedray.errors import FedrayError, ResourcesError, ServerLost
from fedray.federation import ServerState
from fedray.pooling import PoolMaker, known_population
from fedray.protecting import OpensKeyHolder
from fedray.rounds import After
from fedray.values import Population

_LOOK_S = 0.5
"""How often it is looked whether lost nodes are back."""
_REPORTED_S = 1.0
"""How often Ray's processes report what they did."""


@contextmanager
def ray_session(address: str | None = None, *, keeps_events: bool = False) -> Iterator[None]:
    """Use the Ray that is there, connect to a cluster, or start one on this machine and end it afterwards.

    Args:
        address: address of a running cluster; None for the environment's ``RAY_ADDRESS``, else this machine alone.
        keeps_events: whether a Ray started here remembers every call, for a timeline; its memory grows with them.

    Raises:
        ResourcesError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _require_reachable(address)
    system = {"worker_niceness": 0, **({} if keeps_events else {"task_events_report_interval_ms": 0})}
    own = {"include_dashboard": False, "num_cpus": os.cpu_count(), "_system_config": system}
    local: dict[str, Any] = {} if address else own
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except AuthenticationError as error:
        raise ResourcesError(
            "the cluster takes a token, which is not here", "it in ~/.ray/auth_token", "copy it from the head"
        ) from error
    except ConnectionError as error:
        raise _nobody_at(address) from error
    try:
        yield
    finally:
        ray.shutdown()


def write_timeline(path: Path) -> None:
    """Leave in a file when Ray's processes did what, in Chrome's trace format.

    Comes before actors end: what they did in their last second, and have not yet reported, ends with them.
    """
    time.sleep(_REPORTED_S)
    ray.timeline(str(path))


def _require_reachable(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        ResourcesError: nothing listens there, or it is a Ray client address.
    """
    if address.startswith("ray://"):
        raise ResourcesError(
            f"a Ray client address: {address}",
            "HOST:PORT of the cluster's head, or auto on one of its nodes",
            "run fedray on a node of the cluster, e.g. by `ray job submit`",
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise _nobody_at(address) from error


def _nobody_at(address: str | None) -> ResourcesError:
    return ResourcesError(f"no Ray cluster answers at {address}", "a running cluster", "check --address or RAY_ADDRESS")


def ray_cohort(experiment: Experiment, cpus: float, run: str | None = None) -> OpensCohort:
    """Opens a cohort of one actor an owner, or of pools.

    Args:
        experiment: what is run.
        cpus: what they share where the experiment says ``auto``.
        run: stands in the actors' names.
    """
    if not isinstance(experiment.simulation, Pooled):
        return partial(RayCohort, experiment=experiment, cpus=cpus, run=run)
    return partial(
        PooledCohort,
        experiment=experiment,
        cpus=cpus,
        makes=PoolMaker(experiment),
        population=known_population(experiment),
    )


def ray_key_holder(experiment: Experiment, run: str | None = None) -> OpensKeyHolder:
    """Opens the key holder as an actor, where the experiment places it; ``run`` stands in its name."""
    section = experiment.protection
    place = section.key_holder if isinstance(section, Ckks | Bfv) else Place()
    resources = experiment.resources
    timeout_s = max(resources.start_timeout_s, resources.answer_timeout_s)
    return partial(RayKeyHolder, place=place, timeout_s=timeout_s, run=run)


class RayServer:
    """A server actor and its owners, started; every method blocks.

    Args:
        experiment: what to run.
        state_dir: where owners keep what must outlive them.
        state: what to begin from; None for the beginning.
        run: names the run in owners' ledgers; kept in ``state_dir`` when left out.
        timeline: where Ray's timeline is left when the server is let go; nowhere when left out.
        label: what the run is called in metrics and in Ray's dashboard.
        is_restart: whether it takes the place of a server that was lost.

    Raises:
        ResourcesError: the cluster lacks something, or actors did not start in time.
        FedrayError: an owner or another part could not be opened.
    """

    def __init__(
        self,
        experiment: Experiment,
        state_dir: Path,
        state: ServerState | None = None,
        run: str | None = None,
        *,
        timeline: Path | None = None,
        label: str = "run",
        is_restart: bool = False,
    ) -> None:
        _require_in_time(experiment, experiment.resources.start_timeout_s if is_restart else 0.0)
        cpus = ray.cluster_resources().get("CPU", 1.0)
        name = f"{label} {secrets.token_hex(2)}"
        parties = ray_cohort(experiment, cpus, name), state_dir, ray_key_holder(experiment, name)
        opens = partial(open_federation, experiment, *parties, run=run)
        self._experiment = experiment
        self._timeline = timeline
        self._begun: Any = None
        options = {**server_options(experiment), **named("server", name)}
        self._server: Any = RemoteServer.options(**options, max_restarts=0, max_task_retries=0).remote(
            opens, label, is_restart
        )
        try:
            timeout_s = 2 * experiment.resources.start_timeout_s
            self.population: Population = _get(self._server.start.remote(state), timeout_s)
        except BaseException:
            self.close()
            raise

    def advance(self) -> After | None:
        """Run one round; None when the experiment is over.

        Raises:
            ServerLost: the server's process or node is gone.
            RunError: no owner answers any more.
        """
        begun, self._begun = self._begun, None
        after: After | None = _get(begun or self._server.advance.remote())
        return after

    def begin(self) -> None:
        """Begin the round that will be asked for next; not under differential privacy, of which it costs some."""
        if self._experiment.privacy.name == "none" and self._begun is None:
            self._begun = self._server.advance.remote()

    def notes(self) -> Sequence[str]:
        """Lines that tell the user how owners are run, where that was not fixed before."""
        notes: Sequence[str] = _get(self._server.notes.remote())
        return notes

    def close(self) -> None:
        """End the server, and with it the owners' actors, which are its children."""
        if self._timeline:
            write_timeline(self._timeline)
        ray.kill(self._server)


def _require_in_time(experiment: Experiment, timeout_s: float) -> None:
    """Wait for what the experiment asks of the cluster: a node that was lost with the server may be back soon.

    Raises:
        ResourcesError: it is not there in time.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            return require(experiment, data.owner_names(experiment.data), ray.cluster_resources().get("CPU", 1.0))
        except ResourcesError:
            if time.monotonic() >= until:
                raise
        time.sleep(_LOOK_S)


def _get(ref: Any, timeout_s: float | None = None) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, FedrayError):
            raise error.cause from None
        raise
    except GetTimeoutError:
        raise ResourcesError(
            f"the server did not start within {timeout_s:g} s",
            "a started server",
            "raise resources.start_timeout_s",
        ) from None
    except RayActorError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ServerLost(
            f"the server actor was lost: {reason}",
            "a server that lives through the run",
            "go on with fedray run --resume; records are kept",
        ) from error
