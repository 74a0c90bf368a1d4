"""An owner's bottom model: rows to embeddings, a learned embedding for rows that the owner lacks, and its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedray import seeds
from fedray.errors import ModelError
from fedray.tasks.randomness import own_randomness
from fedray.vertical.models import (
    BottomMaker,
    OptimizerMaker,
    made_bottom,
    made_optimizer,
    outputs_of,
    outputs_on_zeros,
)

Leaving = Callable[[Tensor], Tensor]
"""What is done to an embedding before it leaves; gradients are taken of what this gives."""
_SMALL = 0.1
"""Bound of the first embedding of missing rows; above 0, where a ReLU that follows lets gradients pass."""
_CPU = torch.device("cpu")


class Bottom(nn.Module):
    """A bottom model with an embedding of its own for whom the owner does not have.

    Args:
        network: rows of shape ``(n, *shape)`` to embeddings ``(n, width)``.
        shape: of one row.

    Raises:
        ModelError: the network cannot take such rows, or gives no such embeddings.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        found = outputs_on_zeros(network, shape, "a bottom model")
        if found.ndim != 2 or len(found) != 2 or found.dtype != torch.float32:
            raise ModelError(
                f"a bottom model that makes {found.dtype} of shape {tuple(found.shape)} of two rows",
                "float32 of shape (2, width)",
                "flatten its output",
            )
        self.network = network
        self.missing = nn.Parameter(_SMALL * torch.rand(found.shape[1]))

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return len(self.missing)

    def forward(self, features: Tensor, rows: Tensor) -> Tensor:
        """Embeddings of these rows, shape ``(n, width)``; -1 stands for a row that the owner lacks."""
        is_here = rows >= 0
        if bool(is_here.all()):
            return outputs_of(self.network, features[rows])
        filled = self.missing.expand(len(rows), -1).clone()
        if bool(is_here.any()):
            filled[is_here] = outputs_of(self.network, features[rows[is_here]])
        return filled


@dataclass(frozen=True)
class Activations:
    """What an owner does to its embeddings before they leave: values clipped, then Gaussian noise.

    It makes inversion harder and bounds nothing by itself: no differential privacy is claimed for it.

    Attributes:
        clip: largest absolute value.
        deviation: of the noise in each value.
    """

    clip: float = 1.0
    deviation: float = 0.1

    def applied(self, embedding: Tensor, noise: np.random.Generator) -> Tensor:
        """The embedding as it leaves, shape ``(n, width)``."""
        draws = torch.from_numpy(noise.standard_normal(tuple(embedding.shape), dtype=np.float32))
        return embedding.clamp(-self.clip, self.clip) + self.deviation * draws


@dataclass
class Trainer:
    """Trains one bottom model, a step for each gradient that comes back.

    Args:
        bottom: the model.
        features: all rows of the owner.
        seed: of dropout and the like, with the names that follow.
        name: the owner's.
    """

    bottom: Bottom
    features: Tensor = field(repr=False)
    seed: int
    name: str
    _optimizer: torch.optim.Optimizer | None = None
    _embedding: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, maker: BottomMaker, features: Tensor, seed: int, name: str) -> Trainer:
        """A trainer of a new model.

        Raises:
            ModelError: the model cannot take the owner's rows.
        """
        shape = tuple(features.shape[1:])
        with own_randomness(seeds.integer(seed, "bottom", name), _CPU):
            return cls(Bottom(made_bottom(maker, shape), shape), features, seed, name)

    def begin(self, optimizer: OptimizerMaker) -> None:
        """Take a new optimizer; a step that was cut off is forgotten.

        Raises:
            ConfigError: the optimizer cannot be made.
        """
        self._embedding = None
        self._optimizer = made_optimizer(optimizer, self.bottom)

    @property
    def awaits(self) -> tuple[int, ...] | None:
        """Shape of the gradient that the last step waits for; None where none does."""
        return None if self._embedding is None else tuple(self._embedding.shape)

    def embeddings(self, rows: Tensor, leaving: Leaving) -> Tensor:
        """Embeddings for predictions, shape ``(n, width)``."""
        with own_randomness(0, _CPU), torch.no_grad():
            return leaving(self.bottom.eval()(self.features, rows))

    def forward(self, rows: Tensor, epoch: int, batch: int, leaving: Leaving) -> Tensor:
        """Embeddings of one step of training, shape ``(n, width)``; ``step`` must come next."""
        with own_randomness(seeds.integer(self.seed, "dropout", self.name, epoch, batch), _CPU):
            self._embedding = leaving(self.bottom.train()(self.features, rows))
        return self._embedding

    def step(self, gradient: NDArray[np.float32]) -> None:
        """Finish the step by the gradient of its loss, shape ``(n, width)``."""
        assert self._embedding is not None
        with own_randomness(0, _CPU):
            self._descend(self._embedding, torch.from_numpy(gradient))
        self._embedding = None

    def _descend(self, embedding: Tensor, gradient: Tensor) -> None:
        if self._optimizer is None or not embedding.requires_grad:
            return
        self._optimizer.zero_grad()
        embedding.backward(gradient)
        self._optimizer.step()
