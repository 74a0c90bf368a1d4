"""Configuration of where a run's processes are, what they reserve, and how the run outlives them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fedray.config.fields import BY_NAME, Section


class Place(Section):
    """Nodes on which an actor may run: those that have all that is given."""

    labels: dict[str, str] = {}
    """Node labels, e.g. ``fedray.owner: hospital-a``."""
    resources: dict[str, PositiveFloat] = {}
    """Custom resources, e.g. ``owner:hospital-a: 0.1``."""


class Placement(Place):
    """Where one owner's actor must run: all that is given must hold, or the run is refused."""

    cpus: PositiveFloat | None = None
    """Logical CPUs, instead of ``resources.owner_cpus``."""
    gpus: NonNegativeFloat | None = None
    """GPUs or a share of one, instead of ``resources.owner_gpus``."""


class Resources(Section):
    """What Ray reserves for each actor. Every actor computes on one thread."""

    owner_cpus: PositiveFloat | Literal["auto"] = "auto"
    """Logical CPUs an owner; ``auto`` shares the cluster's out, at most one each."""
    owner_gpus: NonNegativeFloat = 0.0
    """GPUs an owner; may be a share of one."""
    server_cpus: NonNegativeFloat = 0.0
    """Logical CPUs of the server."""
    server: Place = Place()
    """Where the server must run; in a comparison the server of each trial."""
    start_timeout_s: PositiveFloat = 120.0
    """How long all actors may take to start."""
    answer_timeout_s: PositiveFloat = 60.0
    """How long an owner may take to answer a message of a protection's protocol."""


class OwnActors(Section):
    """No simulation: every owner is a Ray actor of its own, which may be pinned to its node."""

    name: Literal["none"] = "none"


class Pooled(Section):
    """Simulated owners share processes: a thousand of them fit a laptop, and a million a cluster."""

    name: Literal["pooled"] = "pooled"
    pools: PositiveInt | Literal["auto"] = "auto"
    """Processes that owners share; ``auto``: as many as there are CPUs, or shares of GPUs."""
    pool_gpus: NonNegativeFloat = 0.0
    """GPUs a process; may be a share of one."""
    at_once: PositiveInt | Literal["auto"] = "auto"
    """Owners trained as one batched computation. ``auto`` measures once a machine and model; a run is repeated bit by
    bit by the number on record; 1 gives the same bits as ``simulation: none``."""


Simulation = Annotated[OwnActors | Pooled, Field(discriminator="name"), BY_NAME]


class Faults(Section):
    """What a run does about processes and nodes that are lost."""

    wait_s: NonNegativeFloat = 15.0
    """How long rounds wait, before they begin, for an owner of their cohort that was lost, from when it was: a process
    is started again within seconds. Then they go on without it until it is back."""
    server_restarts: NonNegativeInt = 3
    """How often in a row a lost server is started again from the last checkpoint, without a round in between."""


class Checkpoints(Section):
    """The state after each round, from which a run goes on. Older ones are deleted but for those that a rule keeps."""

    path: str | None = None
    """Folder or URI of a file system that outlives this machine, e.g. ``s3://bucket/run``; the run directory when left
    out."""
    last: PositiveInt = 2
    """Keep the newest so many."""
    every: PositiveInt | None = None
    """Keep every so many rounds' besides."""
    best: bool = False
    """Keep the best by ``search.metric`` besides."""
