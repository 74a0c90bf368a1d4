"""Gradient descent of many owners as one computation, by ``torch.func``: their parameters are stacked, and so are rows.

Each owner's parameters move as if it were alone. Without privacy one backward pass goes through the forward pass
vectorised over owners; that is faster than ``vmap`` of the gradient. With privacy every row's gradient is formed,
clipped and summed, and noise is added that each owner draws by itself, as in ``fedray.privacy.dp_sgd``. The optimizer
is the task's own, on the stacked parameters: it serves if it treats every number by itself, which is tried, not assumed
(see ``fedray.tasks.treatable``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim import Optimizer

from fedray.tasks.descent import Clipping
from fedray.tasks.losses import Loss, per_row
from fedray.tasks.padded import Batch

Parameters = Mapping[str, nn.Parameter]


class Gradients(Protocol):
    """How the gradients of a step are made."""

    def leave(self, parameters: Parameters, batch: Batch) -> None:
        """Put each owner's gradient where the optimizer looks for it."""


class MeanGradients:
    """The gradient of each owner's mean loss over its rows of the batch.

    Args:
        module: what owners train.
        loss: one of fedray's own.

    Raises:
        ModelError: a loss of the user's own, of which only the mean is known.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        def outputs(parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
            return functional_call(module, dict(parameters), (features,))  # type: ignore[no-any-return]

        self._outputs = vmap(outputs)
        self._losses = per_row(loss)

    def leave(self, parameters: Parameters, batch: Batch) -> None:
        """Put each owner's gradient where the optimizer looks for it."""
        outputs = self._outputs(dict(parameters), batch.features)
        losses = self._losses(outputs.flatten(0, 1), batch.targets.flatten(0, 1))
        (losses @ batch.weights.flatten()).backward()


class ClippedGradients:
    """The sum of each owner's clipped gradients of rows, plus noise, over the expected number of rows.

    Args:
        module: what owners train.
        loss: one of fedray's own.
        clippings: each owner's clip and noise, in the order of the stack.

    Raises:
        ModelError: a loss of the user's own, of which only the mean is known.
    """

    def __init__(self, module: nn.Module, loss: Loss, clippings: Sequence[Clipping]) -> None:
        losses = per_row(loss)

        def of_row(parameters: Mapping[str, Tensor], features: Tensor, targets: Tensor) -> Tensor:
            return losses(functional_call(module, dict(parameters), (features[None],)), targets[None])[0]

        self._gradients = vmap(vmap(grad(of_row), in_dims=(None, 0, 0)))
        self._clippings = clippings

    @torch.no_grad()
    def leave(self, parameters: Parameters, batch: Batch) -> None:
        """Put each owner's gradient where the optimizer looks for it; a row's that is not finite counts as none."""
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        rows = self._gradients(values, batch.features, batch.targets)
        norms = _norms(rows)
        if not norms.isfinite().all():
            rows = {name: torch.nan_to_num(one, nan=0.0, posinf=0.0, neginf=0.0) for name, one in rows.items()}
            norms = _norms(rows)
        clips = self._column([one.clip for one in self._clippings], batch)
        factors = ((clips / (norms + 1e-6)).clamp(max=1.0) * batch.is_row).unsqueeze(1)
        noise = self._noise(parameters, batch)
        scale = self._column([one.expected_batch_size for one in self._clippings], batch)
        for name, parameter in parameters.items():
            total = torch.bmm(factors, rows[name].flatten(2)).squeeze(1)
            parameter.grad = ((total + noise[name]) / scale).view_as(parameter)

    def _noise(self, parameters: Parameters, batch: Batch) -> dict[str, Tensor]:
        """Noise of every owner's own, drawn parameter after parameter as an owner that is alone draws it."""
        sizes = [parameter[0].numel() for parameter in parameters.values()]
        drawn = np.empty((len(batch), sum(sizes)), dtype=np.float32)
        for row, one in zip(drawn, self._clippings, strict=False):
            one.noise.standard_normal(out=row, dtype=np.float32)
        deviations = self._column([one.noise_multiplier * one.clip for one in self._clippings], batch)
        noise = deviations * torch.from_numpy(drawn).to(deviations.device)
        return dict(zip(parameters, noise.split(sizes, dim=1), strict=True))

    def _column(self, values: Sequence[float], batch: Batch) -> Tensor:
        """One value an owner, of shape ``(k, 1)``."""
        return torch.tensor(values[: len(batch)], device=batch.is_row.device).unsqueeze(1)


def _norms(rows: Mapping[str, Tensor]) -> Tensor:
    """Norms of rows' gradients over all parameters, shape ``(k, b)``."""
    norms: Tensor = torch.stack([one.flatten(2).norm(dim=2) for one in rows.values()], dim=2).norm(dim=2)
    return norms


def keep_leading(optimizer: Optimizer, parameters: Parameters, k: int) -> None:
    """Leave the first ``k`` owners in a stack, in its parameters and in what the optimizer remembers of them."""
    for parameter in parameters.values():
        if len(parameter) == k:
            continue
        remembered = optimizer.state[parameter]
        for name, value in remembered.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                remembered[name] = value[:k]
        parameter.grad = None
        parameter.data = parameter.data[:k]
