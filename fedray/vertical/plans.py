"""What the caller tells all parties: how rows are aligned, and how a model is trained. Public, and the same for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedray.errors import ConfigError
from fedray.vertical.bottom import Activations
from fedray.vertical.cut import CutNoise, NoNoise
from fedray.vertical.models import OptimizerMaker, adam

Missing = Literal["drop", "allow"]
LARGEST_EPSILON = 30.0
"""For labels; randomised response by 64 random bits keeps to no much larger one."""


@dataclass(frozen=True)
class LabelPrivacy:
    """Randomised response: labels are changed once, before any is used, and the label holder's ledger is charged.

    Args:
        epsilon: of differential privacy for one label; there is no delta.

    Raises:
        ConfigError: not a positive number, or above 30.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= LARGEST_EPSILON:
            raise ConfigError(
                f"label privacy of epsilon {self.epsilon}", f"a number up to {LARGEST_EPSILON:g}", "take 0.5 to 8"
            )


@dataclass(frozen=True)
class AlignPlan:
    """Which rows are common.

    Args:
        missing: ``drop`` takes those that all owners have, ``allow`` those that at least one has.
        holdout: share of them that is kept for predictions, or the name of a column of the label holder that is true
            for these.

    Raises:
        ConfigError: the share is not from 0 to below 1, or ``missing`` is something else.
    """

    missing: Missing = "drop"
    holdout: float | str = 0.2

    def __post_init__(self) -> None:
        if self.missing not in ("drop", "allow"):
            raise ConfigError(f"missing={self.missing!r}", "drop or allow", "correct it")
        if not isinstance(self.holdout, str) and not 0 <= self.holdout < 1:
            raise ConfigError(f"a holdout of {self.holdout}", "a share from 0 to below 1, or a column", "correct it")


@dataclass(frozen=True)
class FitPlan:
    """How a model is trained.

    Args:
        batch_size: rows a step.
        optimizer: makes each party's own optimizer.
        cut: noise on the gradients that leave the label holder.
        label_dp: how labels are randomised, if at all.
        activations: what owners do to embeddings before they leave, if anything.

    Raises:
        ConfigError: the batch size is not positive.
    """

    batch_size: int = 256
    optimizer: OptimizerMaker = field(default_factory=adam)
    cut: CutNoise = field(default_factory=NoNoise)
    label_dp: LabelPrivacy | None = None
    activations: Activations | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"a batch size of {self.batch_size}", "1 or more", "take 32 to 1024")
