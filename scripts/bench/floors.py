"""Federated averaging as bare PyTorch in one process: what a round of training costs without any framework.

Two loops over the owners of a round. One trains one owner after the other; the other trains many as one computation
by ``torch.func`` on stacked parameters. Both are as fast as we could make them without getting complicated: parameters
are views of one flat tensor, so that an owner starts with one copy and ends with one subtraction, and the SGD step is
one call. They draw the batches that fedray draws, so that the model after a round is fedray's but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedray import data, seeds
from fedray.config import Experiment
from fedray.config.learning import Sgd
from fedray.making import make_module
from fedray.values import Work

cross_entropy = nn.functional.cross_entropy


@dataclass(frozen=True)
class Rows:
    """Training rows of all owners, one owner after the other.

    Attributes:
        features: float32 of shape ``(n_rows, *feature_shape)``.
        targets: int64 of shape ``(n_rows,)``.
        sizes: rows of each owner, shape ``(n_owners,)``.
        starts: number of each owner's first row, shape ``(n_owners,)``.
    """

    features: Tensor
    targets: Tensor
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, device: str) -> Rows:
        """What ``write_rows`` wrote: in memory that processes share, or on the card."""
        features, targets = (torch.from_numpy(np.load(folder / name, mmap_mode="c")) for name in _FILES)
        features.sum()  # every page is there before anything is timed
        sizes = np.load(folder / _SIZES)
        return cls(features.to(device), targets.to(device), sizes, np.cumsum(sizes) - sizes)


_FILES = ("features.npy", "targets.npy")
_SIZES = "sizes.npy"


def write_rows(experiment: Experiment, folder: Path) -> None:
    """The training rows of all owners, as fedray opens them."""
    names = data.owner_names(experiment.data)
    schema, sizes = data.schema_of(experiment.data), data.sizes_of(experiment.data)
    assert sizes is not None, "owners that can be counted without being opened"
    n_rows = int(sizes.n_train.sum())
    shapes = (n_rows, *schema.feature_shape), (n_rows,)
    features, targets = (
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape)
        for name, dtype, shape in zip(_FILES, (np.float32, np.int64), shapes, strict=True)
    )
    start = 0
    for name in names:
        train = data.open_shard(experiment.data, name).train
        features[start : start + len(train)] = train.features
        targets[start : start + len(train)] = train.targets
        start += len(train)
    np.save(folder / _SIZES, sizes.n_train)


class Floor:
    """Trains owners on one model.

    Args:
        experiment: what they learn, by SGD without momentum, for one epoch.
        rows: what they learn from.
        device: where.
    """

    def __init__(self, experiment: Experiment, rows: Rows, device: str) -> None:
        optimizer = experiment.train.optimizer
        assert isinstance(optimizer, Sgd)
        assert experiment.work == Work(1, "epochs")
        self._rows, self._device = rows, device
        self._lr, self._batch_size, self._seed = optimizer.lr, experiment.train.batch_size, experiment.seed
        self._names = data.owner_names(experiment.data)
        self._module = make_module(experiment).to(device)
        self._parameters = dict(self._module.named_parameters())
        self._flat = torch.cat([one.detach().reshape(-1) for one in self._parameters.values()])
        for name, view in self._views(self._flat[None]).items():
            self._parameters[name].data = view[0]
        self._forward = vmap(lambda parameters, x: functional_call(self._module, parameters, (x,)))

    @property
    def n_values(self) -> int:
        """Length of the model's vector."""
        return self._flat.numel()

    def steps(self, owner: int) -> int:
        """Steps of an owner's epoch."""
        return -(-int(self._rows.sizes[owner]) // self._batch_size)

    def n_rows(self, owners: Sequence[int]) -> int:
        """Rows of some owners together."""
        return int(self._rows.sizes[list(owners)].sum())

    def train(self, vector: NDArray[np.float32], round: int, owners: Sequence[int], at_once: int) -> Tensor:
        """Sum of the owners' deltas, each times its rows; shape ``(n_values,)``, on the CPU.

        Args:
            vector: the model that they start from, shape ``(n_values,)``.
            round: number of the round, from 1.
            owners: their numbers.
            at_once: owners in one computation; 1 for one after the other.
        """
        start = torch.from_numpy(vector).to(self._device)
        total = torch.zeros_like(start)
        if at_once == 1:
            for owner in owners:
                total.add_(self._delta(start, round, owner), alpha=int(self._rows.sizes[owner]))
        else:
            ordered = sorted(owners, key=lambda owner: -self._rows.sizes[owner])
            for first in range(0, len(ordered), at_once):
                group = ordered[first : first + at_once]
                weights = torch.from_numpy(self._rows.sizes[group]).to(self._device, torch.float32)
                total += weights @ self._deltas(start, round, group)
        return total.cpu()

    def _delta(self, start: Tensor, round: int, owner: int) -> Tensor:
        """One owner's epoch."""
        self._flat.copy_(start)
        parameters = list(self._parameters.values())
        for rows in self._order(round, owner).to(self._device).split(self._batch_size):
            loss = cross_entropy(self._module(self._rows.features[rows]), self._rows.targets[rows])
            self._step(parameters, torch.autograd.grad(loss, parameters))
        return self._flat - start

    def _deltas(self, start: Tensor, round: int, group: Sequence[int]) -> Tensor:
        """An epoch of owners that come with most rows first; shape ``(len(group), n_values)``."""
        values = start.repeat(len(group), 1)
        stacked = self._views(values)
        for rows, weights in self._batches(round, group):
            leading = {name: view[: len(rows)].detach().requires_grad_() for name, view in stacked.items()}
            outputs = self._forward(leading, self._rows.features[rows])
            losses = cross_entropy(outputs.flatten(0, 1), self._rows.targets[rows].flatten(), reduction="none")
            loss = losses @ weights.flatten()
            self._step(list(leading.values()), torch.autograd.grad(loss, list(leading.values())))
        return values - start

    @torch.no_grad()
    def _step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        torch._foreach_add_(list(parameters), list(gradients), alpha=-self._lr)

    def _batches(self, round: int, group: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of rows, ``(k, b)``, and their weights in the owners' mean losses, for the k owners of each step."""
        sizes, size = self._rows.sizes[group][:, None], self._batch_size
        n_steps = self.steps(group[0])
        places = np.arange(n_steps * size)
        counts = np.clip(sizes - places // size * size, 0, size)
        weights = (places < sizes) / np.maximum(counts, 1)
        orders = [nn.functional.pad(self._order(round, owner), (0, len(places))) for owner in group]
        numbers = torch.stack([order[: len(places)] for order in orders]).to(self._device)
        shares = torch.from_numpy(weights.astype(np.float32)).to(self._device)
        for first in places[::size]:
            k, b = np.count_nonzero(counts[:, first]), int(counts[:, first].max())
            yield numbers[:k, first : first + b], shares[:k, first : first + b]

    def _order(self, round: int, owner: int) -> Tensor:
        """Numbers of an owner's rows in the order of its epoch, which is the one that fedray draws."""
        order = torch.Generator().manual_seed(seeds.integer(self._seed, "train", round, self._names[owner]))
        return torch.randperm(int(self._rows.sizes[owner]), generator=order) + int(self._rows.starts[owner])

    def _views(self, values: Tensor) -> Mapping[str, Tensor]:
        """Each parameter of shape ``(k, *shape)`` in vectors of shape ``(k, n_values)``."""
        ends = np.cumsum([one.numel() for one in self._parameters.values()])
        return {
            name: values[:, end - one.numel() : end].view(len(values), *one.shape)
            for (name, one), end in zip(self._parameters.items(), ends.tolist(), strict=True)
        }
