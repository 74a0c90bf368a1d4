"""The values that travel between owners, server and caller: frozen, plain, serialisable.

This file owns the shapes of the messages. It must not import torch, ray or any other part of fedray.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""A flat float32 vector of shape ``(n_values,)``."""

Payload = NDArray[np.unsignedinteger[Any]]
"""A sealed update on its way: unsigned integers of the ring that sums are taken in, or bytes of ciphertexts."""

Part = Literal["train", "holdout"]


@dataclass(frozen=True, slots=True)
class Schema:
    """What every owner's examples look like; public, and all that a model factory may know of the data.

    Attributes:
        feature_shape: shape of one example's features, e.g. ``(64,)`` or ``(1, 8, 8)``.
        feature_dtype: ``float32``, or ``int64`` for token sequences.
        target_shape: shape of one target; ``()`` for a class or a single number.
        n_classes: number of classes, or None for a real-valued target.
    """

    feature_shape: tuple[int, ...]
    feature_dtype: Literal["float32", "int64"]
    target_shape: tuple[int, ...]
    n_classes: int | None

    @property
    def target_dtype(self) -> Literal["float32", "int64"]:
        return "float32" if self.n_classes is None else "int64"


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one owner: ``features`` of shape ``(n, *feature_shape)``, ``targets`` of shape ``(n, *target_shape)``."""

    features: NDArray[np.float32] | NDArray[np.int64]
    targets: NDArray[np.float32] | NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class Shard:
    """All that one owner holds. Never leaves the owner."""

    train: Examples
    holdout: Examples


@dataclass(frozen=True, slots=True)
class OwnerInfo:
    """What an owner tells the server about itself when it joins.

    Attributes:
        name: the owner's name.
        n_train: number of training rows; public, it weighs the owner's update.
        n_holdout: number of held-out rows.
    """

    name: str
    n_train: int
    n_holdout: int


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """All owners of a federation, by column: a million of them are two arrays, and names that need not be stored.

    Attributes:
        names: ascending.
        n_train: training rows of each, int64 of shape ``(n_owners,)``.
        n_holdout: held-out rows of each, int64 of shape ``(n_owners,)``.
    """

    names: Sequence[str]
    n_train: NDArray[np.int64]
    n_holdout: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, infos: Iterable[OwnerInfo]) -> Population:
        """The population that these owners make up."""
        found = sorted(infos, key=lambda info: info.name)
        return cls(
            tuple(info.name for info in found),
            np.array([info.n_train for info in found], dtype=np.int64),
            np.array([info.n_holdout for info in found], dtype=np.int64),
        )

    def place_of(self, owner: str) -> int:
        """Where an owner stands; names that are put together on demand know it themselves."""
        is_stored = isinstance(self.names, list | tuple)
        return bisect_left(self.names, owner) if is_stored else self.names.index(owner)

    def n_train_of(self, owner: str) -> int:
        """Training rows of one owner."""
        return int(self.n_train[self.place_of(owner)])


@dataclass(frozen=True, slots=True)
class Work:
    """How much one owner trains in one round: passes over its rows, or a number of optimizer steps."""

    amount: int
    unit: Literal["epochs", "steps"]


@dataclass(frozen=True, slots=True)
class Staleness:
    """What becomes of updates that were trained from a model of an earlier round.

    Attributes:
        power: how fast their weight falls.
        most: rounds after which they are thrown away.
    """

    power: float
    most: int

    def factor(self, n_rounds: int) -> float:
        """What an update so many rounds old is scaled by: at most 1."""
        return float((1 + n_rounds) ** -self.power)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What the strategy asks of every owner in the cohort of one round.

    Attributes:
        round: number of the round, from 1.
        work: the full local work.
        proximal_mu: FedProx's mu; 0 switches the proximal term off.
        accepts_partial_work: whether an owner that could not finish sends the iterate that it has.
        weighting: ``examples`` weighs an update by the owner's training rows, ``uniform`` by one.
        clip: norm to which owners clip their updates; None without owner-level privacy.
        staleness: what becomes of updates from an earlier round's model; None where all train from the same model.
    """

    round: int
    work: Work
    proximal_mu: float
    accepts_partial_work: bool
    weighting: Literal["examples", "uniform"]
    clip: float | None = None
    staleness: Staleness | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """One owner's part in a round: the plan, cut to what this owner can do in time.

    Attributes:
        owner: the owner's name.
        plan: the plan of the round.
        work: the owner's own work; less than ``plan.work`` for a simulated straggler.
        deadline_s: seconds after which local training stops where it is; None for no limit.
        weight_bound: largest weight of an update in this federation; what weights are scaled by.
        briefing: what the server's half of the protection tells this owner's half before it seals.
    """

    owner: str
    plan: RoundPlan
    work: Work
    deadline_s: float | None
    weight_bound: int = 1
    briefing: bytes = b""

    def terms(self, vector: Vector) -> bytes:
        """Digest of all that must be alike for every owner whose update is in one sum: model, plan, scale of weights.

        A server that gave some of them another model or plan could make their updates vanish, and read the others'
        (Pasquini et al. 2022, *Eluding Secure Aggregation in Federated Learning via Model Inconsistency*). Where owners
        train from models of different rounds, by design, they cannot say that these were alike.
        """
        found = hashlib.sha256(repr((self.plan, self.weight_bound, vector.shape)).encode())
        if self.plan.staleness is None:
            found.update(np.ascontiguousarray(vector, dtype="<f4").data)
        return found.digest()

    @property
    def is_partial(self) -> bool:
        return self.work != self.plan.work


@dataclass(frozen=True, slots=True)
class Update:
    """What training gives: the model's delta, before it is sealed. Leaves the owner only inside a ``Sealed``.

    Attributes:
        delta: new minus old vector, shape ``(n_values,)``.
        weight: the update's weight in the mean; an integer, so that sums are exact.
        n_steps: optimizer steps taken.
        is_complete: False where a deadline cut the work short.
    """

    delta: Vector
    weight: int
    n_steps: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What an owner says of an update that it keeps until it is asked to seal it.

    Attributes:
        owner: the owner's name.
        round: the round whose model it was trained from.
        spent: the owner's privacy account after training; None without differential privacy.
    """

    owner: str
    round: int
    spent: Spent | None


Accountant = Literal["PLD", "RDP"]
"""Privacy loss distributions, or Renyi differential privacy."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Privacy that one owner has spent so far: ``(epsilon, delta)``, an upper bound.

    Attributes:
        epsilon: the smallest valid figure of those at hand.
        accountant: whose figure that is.
        epsilon_rdp: the figure by Renyi DP, beside it.
        delta: the failure probability both refer to.
        charges: what they are the figures of, in the JSON of a ledger.
    """

    epsilon: float
    accountant: Accountant
    epsilon_rdp: float
    delta: float
    charges: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Cover:
    """What is written on the outside of a sealed update: all that the server may know of it.

    Attributes:
        owner: the owner's name.
        round: the round it belongs to.
        terms: digest of what the owner was asked and given; see ``Assignment.terms``.
        proof: the owner's signed word on this payload, for protections that ask for it.
        n_steps: optimizer steps taken.
        is_complete: False where the work is partial.
        seconds: time that training took at the owner.
        spent: the owner's privacy account after this round; None without differential privacy.
    """

    owner: str
    round: int
    n_steps: int
    is_complete: bool
    seconds: float
    spent: Spent | None
    terms: bytes = b""
    proof: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed(Cover):
    """The first thing that leaves an owner: its update under the run's protection, with its cover.

    Attributes:
        payload: what the protection's sealer made of update and weight.
    """

    payload: Payload

    @property
    def cover(self) -> Cover:
        """What is left without the payload."""
        return Cover(**{part.name: getattr(self, part.name) for part in fields(Cover)})


@dataclass(frozen=True, slots=True)
class Subtotal:
    """The sum of several owners' sealed updates, taken in the process that they share.

    Attributes:
        payload: the sum, in the ring that the protection adds in.
        covers: one of each owner whose update is in it.
    """

    payload: Payload
    covers: tuple[Cover, ...]


AbsentOutcome = Literal["absent", "dropped", "rejected", "refused", "exhausted", "failed"]
Outcome = Literal["update", "partial", "idle", "unopened"] | AbsentOutcome


@dataclass(frozen=True, slots=True)
class Absent:
    """Why an owner of the cohort gave no update.

    Attributes:
        outcome: ``dropped`` (too slow for a strategy that takes no partial work, for the closing of the round or for
            its model to be still of use), ``rejected`` (non-finite or misshapen update), ``refused`` (what it was asked
            breaks a rule), ``exhausted`` (its privacy budget is spent), ``failed`` (it raised) or ``absent`` (its actor
            is gone).
        reason: one line for the record; never holds data.
    """

    owner: str
    round: int
    outcome: AbsentOutcome
    reason: str
    spent: Spent | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """How many owners are best trained at once in one process.

    Attributes:
        at_once: owners in one batched computation; 1 for one after the other.
        line: why, for the reader.
        seconds: time that one owner's round takes so; 0 where it was not measured.
    """

    at_once: int
    line: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Total:
    """The opened sum of a cohort's updates.

    Attributes:
        weighted_sum: sum of weight x delta, shape ``(n_values,)``, float64.
        weight: sum of weights.
    """

    weighted_sum: NDArray[np.float64]
    weight: int

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.weighted_sum / self.weight


@dataclass(frozen=True, slots=True)
class Released:
    """What a round's sum gives to the strategy and to the record.

    Attributes:
        mean: mean update, shape ``(n_values,)``; noised under owner-level privacy.
        metrics: noised means over the cohort's held-out rows, of the model that the round began with.
    """

    mean: NDArray[np.float64]
    metrics: Mapping[str, float] = field(default_factory=dict)


SumOutcome = Literal["opened", "abandoned", "empty"]


@dataclass(frozen=True, slots=True)
class SumRecord:
    """How one round's sum was protected: what a reader needs to check the promises, and no secret.

    Attributes:
        protection: ``plain``, ``masked``, ``ckks`` or ``bfv``.
        outcome: ``opened``; ``abandoned`` without a sum; ``empty`` where there was nothing to open.
        reason: why it was abandoned.
        stages: stage of the protocol to the number of owners that passed it, in order.
        threshold: owners whose help opening takes; 0 where it takes none.
        min_owners: fewest contributions of which a sum is opened.
        neighbours: owners that each owner shares keys with; 0 where they share none.
        key_bits: entropy of the weakest secret that hides an update; 0 where nothing is hidden.
        identities: where owners' signing keys were learned: ``enrolled`` beforehand, at ``first use``, or ``none``.
        key_id: which key of the key holder the sum was under; empty where there is no key holder.
        bytes_up: protocol messages from owners and key holder to the server, sealed updates left out.
        bytes_down: protocol messages from the server.
    """

    protection: str
    outcome: SumOutcome
    reason: str
    stages: Mapping[str, int]
    threshold: int
    min_owners: int
    neighbours: int
    key_bits: int
    identities: Literal["enrolled", "first use", "none"]
    key_id: str
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over one owner's examples; sums and counts travel, means are taken once.

    Attributes:
        sums: name of a metric (or ``loss``) to its sum over examples.
        count: number of examples.
    """

    sums: Mapping[str, float]
    count: int

    @property
    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()} if self.count else {}


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """One owner's line in a round's record: of every owner that was asked or evaluated, and under differential privacy
    of all others too.

    ``charges`` are all that its epsilon covers, since the run began, in the JSON of a ledger. ``staleness`` is how many
    rounds ago the model was the server's that its update was trained from.
    """

    name: str
    outcome: Outcome
    reason: str
    n_steps: int
    seconds: float
    epsilon: float | None
    epsilon_rdp: float | None
    n_holdout: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    charges: str = ""
    staleness: int = 0


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """All that is kept of one round.

    Attributes:
        round: number of the round, from 1.
        n_owners: owners of the federation.
        cohort: names of the owners that were asked.
        n_updates: updates that entered the sum.
        n_rejected: updates refused as non-finite or misshapen.
        metrics: federated means over all owners' held-out rows (``loss`` among them); empty where not evaluated.
        train_metrics: the same over training rows, where asked for.
        central_metrics: the same on the server's own test set, where there is one.
        epsilon: largest epsilon that any owner has spent; None without differential privacy.
        epsilon_rdp: that owner's by Renyi DP.
        accountant: whose figure ``epsilon`` is.
        sum: how the sum was protected.
        bytes_up: sealed updates and protocol messages received, as many as owners sent, wherever they were added up.
        bytes_down: model, one copy an owner, and protocol messages sent.
        seconds: wall time by phase: prepare, train, combine, open, step, evaluate, and the round's total.
        at_once: owners that a process trained as one batched computation; 1 where it trained one after the other.
        work: seconds of all processes of owners together, by what they did; see ``Cohort.work``.
        owners: lines of owners.
        parameters_sha256: digest of the model after the round.
    """

    round: int
    n_owners: int
    cohort: tuple[str, ...]
    n_updates: int
    n_rejected: int
    metrics: Mapping[str, float]
    train_metrics: Mapping[str, float]
    central_metrics: Mapping[str, float]
    epsilon: float | None
    epsilon_rdp: float | None
    accountant: Accountant | None
    sum: SumRecord
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    at_once: int
    work: Mapping[str, float]
    owners: tuple[OwnerRecord, ...]
    parameters_sha256: str

    @property
    def evaluation(self) -> Mapping[str, float]:
        """The means that the round is judged by: the owners', or the server's own where owners gave none."""
        return self.metrics or self.central_metrics


def sha256(vector: Vector) -> str:
    """Digest of a vector's bytes (little-endian float32)."""
    return hashlib.sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
