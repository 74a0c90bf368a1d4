"""A module as one flat float32 vector: parameters first, then floating-point buffers.

Parameters are stepped by the strategy. Buffers (BatchNorm's running mean and variance) are statistics, not directions:
they are averaged over owners and no server learning rate or momentum touches them. Integer buffers (BatchNorm's batch
counter) stay what they are at each owner.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedray.errors import ModelError
from fedray.values import Vector


class Layout:
    """Reads a module into a vector and back, in the order of ``parameters`` and ``buffers``.

    Tensors are looked up at every read and write, so that a module may put new buffers in place of old ones.

    Raises:
        ModelError: a parameter or floating-point buffer is not float32, or there is none to train.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        parameters, tensors = list(module.parameters()), self._tensors()
        odd = sorted({str(tensor.dtype) for tensor in tensors if tensor.dtype != torch.float32})
        if odd or not parameters:
            raise ModelError(
                f"a model with {', '.join(odd) + ' parameters' if odd else 'no parameters'}",
                "float32 parameters",
                "call .float() on the model in its factory",
            )
        self._sizes = [tensor.numel() for tensor in tensors]
        self.n_parameters = sum(tensor.numel() for tensor in parameters)
        self.n_values = sum(self._sizes)
        self._staged = torch.empty(self.n_values)

    @property
    def is_trained(self) -> NDArray[np.bool_]:
        """Shape ``(n_values,)``: True for parameters that require a gradient."""
        flags = [isinstance(tensor, nn.Parameter) and tensor.requires_grad for tensor in self._tensors()]
        return np.repeat(flags, self._sizes)

    @torch.no_grad()
    def read(self) -> Vector:
        """The module's values, shape ``(n_values,)``."""
        flat: Vector = torch.cat([tensor.reshape(-1) for tensor in self._tensors()]).cpu().numpy()
        return flat

    @torch.no_grad()
    def write(self, vector: Vector) -> None:
        """Set the module's values from a vector of shape ``(n_values,)``, which may be read-only.

        Raises:
            ModelError: the vector has another length.
        """
        if vector.shape != (self.n_values,):
            raise ModelError(
                f"a vector of shape {vector.shape}", f"({self.n_values},), the model's values", "take the model's own"
            )
        self._staged.numpy()[...] = vector
        for tensor, piece in zip(self._tensors(), self._staged.split(self._sizes), strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def stacked(self, values: Tensor) -> dict[str, Tensor]:
        """Views of the trained parameters in ``values``, of shape ``(k, n_values)``: names to ``(k, *shape)``."""
        pieces = values[:, : self.n_parameters].split([one.numel() for one in self._module.parameters()], dim=1)
        return {
            name: piece.view(len(values), *parameter.shape)
            for (name, parameter), piece in zip(self._module.named_parameters(), pieces, strict=True)
            if parameter.requires_grad
        }

    def _tensors(self) -> list[Tensor]:
        buffers = [buffer for buffer in self._module.buffers() if buffer.is_floating_point()]
        return [*self._module.parameters(), *buffers]
