"""Configuration of what is learned and how: model, local training, strategy, cohort, protection."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedray.config.cluster import Place
from fedray.config.fields import BY_NAME, Reference, Section

NonNegative = Annotated[float, Field(ge=0)]


class Logistic(Section):
    """One linear layer: (multinomial) logistic or linear regression."""

    name: Literal["logistic"] = "logistic"
    zero_init: bool = False
    """Start from zeros instead of PyTorch's random initialisation."""


class Mlp(Section):
    """A multi-layer perceptron with ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (64,)
    """Widths of the hidden layers."""


class Cnn(Section):
    """Convolution blocks (3 x 3, ReLU, 2 x 2 max-pool), then one hidden layer."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[PositiveInt, ...] = (16, 32)
    """Channels of the convolution blocks."""
    hidden: PositiveInt = 64
    """Width of the layer before the output."""
    norm: Literal["none", "batch", "group"] = "none"
    """Normalisation after each convolution; ``batch`` is refused under DP, ``group`` is not."""


class Lstm(Section):
    """An embedding, an LSTM and an output at every step or at the last: for token sequences."""

    name: Literal["lstm"] = "lstm"
    vocabulary: PositiveInt = 128
    """Number of distinct tokens."""
    embedding: PositiveInt = 8
    """Width of the embedding."""
    hidden: PositiveInt = 64
    """Width of the LSTM's state."""


class CustomModel(Section):
    """Your own model: a callable that returns a ``torch.nn.Module``."""

    name: Literal["custom"] = "custom"
    factory: Reference
    """The callable, or its import path ``package.module:name``."""
    args: dict[str, Any] = {}
    """Keyword arguments for it."""


Model = Annotated[Logistic | Mlp | Cnn | Lstm | CustomModel, Field(discriminator="name"), BY_NAME]


class Sgd(Section):
    """torch.optim.SGD."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    """Learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum; its buffer starts empty in every round."""
    weight_decay: NonNegative = 0.0
    """L2 penalty."""


class Adam(Section):
    """torch.optim.Adam; its moments start empty in every round, since owners may be away for many."""

    name: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: NonNegative = 0.0
    """L2 penalty."""


Optimizer = Annotated[Sgd | Adam, Field(discriminator="name"), BY_NAME]


class Train(Section):
    """Local training of one owner in one round."""

    batch_size: PositiveInt = 32
    """Rows a step; under DP the expected number of rows of a Poisson batch."""
    epochs: PositiveInt | None = None
    """Passes over the owner's rows; 1 if neither this nor ``steps`` is given."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""
    optimizer: Optimizer = Sgd()
    """The local optimizer."""

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; give one of them")
        return self


class FedAvg(Section):
    """Federated averaging (McMahan et al. 2017), with server momentum (Hsu et al. 2019)."""

    name: Literal["fedavg"] = "fedavg"
    weighting: Literal["examples", "uniform"] = "examples"
    """Weigh updates by training rows, or all alike."""
    server_lr: PositiveFloat = 1.0
    """Factor on the mean update."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the server's steps."""


class FedProx(Section):
    """FedProx (Li et al. 2020): a proximal term in local training, and partial work is used."""

    name: Literal["fedprox"] = "fedprox"
    mu: NonNegative = 0.1
    """Weight of the proximal term mu/2 ||w - w_t||^2."""
    weighting: Literal["examples", "uniform"] = "examples"
    """Weigh updates by training rows, or all alike."""
    server_lr: PositiveFloat = 1.0
    """Factor on the mean update."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the server's steps."""


Strategy = Annotated[FedAvg | FedProx, Field(discriminator="name"), BY_NAME]


class EveryOwner(Section):
    """Every owner takes part in every round."""

    name: Literal["all"] = "all"


class FixedSize(Section):
    """A fixed number of owners a round, drawn uniformly without replacement."""

    name: Literal["fixed"] = "fixed"
    size: PositiveInt
    """Owners a round."""
    over_select: NonNegative = 0.0
    """Ask so many more, as a share of ``size``; the round is closed with the first ``size`` updates that arrive."""

    @property
    def n_asked(self) -> int:
        """Owners that a round asks."""
        return self.size + math.ceil(self.size * self.over_select)


class PoissonSampling(Section):
    """Every owner takes part with the same probability, independently; a round may be empty."""

    name: Literal["poisson"] = "poisson"
    rate: Annotated[float, Field(gt=0, le=1)]
    """Probability of taking part."""


class Cyclic(Section):
    """A fixed number of owners a round, in turn, in an order that the seed decides: without sampling.

    Between two rounds of one owner lie always as many as the federation has cohorts: ``owners // size``.
    """

    name: Literal["cyclic"] = "cyclic"
    size: PositiveInt
    """Owners a round."""


Selection = Annotated[EveryOwner | FixedSize | PoissonSampling | Cyclic, Field(discriminator="name"), BY_NAME]


class Stragglers(Section):
    """Simulated slow owners, as in the FedProx paper: they manage only part of the round's work."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the cohort that is slow; a slow owner manages uniformly 1 to (full - 1) epochs or steps."""


class _FixedPoint(Section):
    """How updates become integers; the same values give the same bits under every protection."""

    clip: PositiveFloat = 8.0
    """Largest absolute value of an update; one beyond it is refused."""
    precision: PositiveFloat = 1e-5
    """Resolution of an update of full weight, rounded down to a power of two."""


class Plain(_FixedPoint):
    """No protection: the server reads every update. Sums are exact all the same."""

    name: Literal["plain"] = "plain"


PublicKeys = dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


KEY_HOLDER = "key holder"
"""The key holder's name among ``identities``."""


class _Protected(_FixedPoint):
    min_owners: Annotated[int, Field(ge=3)] = 3
    """Fewest updates of which a sum is ever opened."""
    identities: PublicKeys = {}
    """Owner's name to its public signing key in hexadecimal, as ``fedray enrol`` prints it. Without, a party's first
    key is trusted: a server that lies can then pass off owners of its own at any time, and read updates."""


class Masked(_Protected):
    """Masked secure aggregation (Bonawitz et al. 2017; above 50 owners on the graph of Bell et al. 2020)."""

    name: Literal["masked"] = "masked"
    server: Literal["honest", "may_lie"] = "honest"
    """``honest`` follows the protocol and tries to learn from what it sees; one that ``may_lie`` takes a threshold of
    two thirds, enrolled identities and the full graph of owners."""
    corrupt: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share of owners that may join with the server; sets the graph above 50 owners, and under ``privacy: distributed``
    the noise: of every cohort then, or of all enrolled owners where the server may lie."""
    dropouts: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of owners that may drop out in a round; sets the graph above 50 owners."""


class _Homomorphic(_Protected):
    key_rounds: PositiveInt = 100
    """Rounds after which the key holder makes a new key."""
    key_holder: Place = Place()
    """Where the key holder's actor must run."""


class Ckks(_Homomorphic):
    """Homomorphic sums by an approximate scheme (Cheon et al. 2017) through TenSEAL, opened by a key holder, who rounds
    its errors away."""

    name: Literal["ckks"] = "ckks"


class Bfv(_Homomorphic):
    """Exact homomorphic sums (Fan and Vercauteren 2012) through TenSEAL, opened by a key holder."""

    name: Literal["bfv"] = "bfv"


Protection = Annotated[Plain | Masked | Ckks | Bfv, Field(discriminator="name"), BY_NAME]
