"""The proximal term mu/2 ||w - w_t||^2 of FedProx (Li et al. 2020, equation 2), as a pull inside the optimizer's step.

Its gradient mu (w - w_t) is added to the gradient just before the optimizer steps. Without privacy this is what adding
the term to the loss does. Under DP-SGD it must be done here: Opacus replaces the gradient by clipped and noised
per-example gradients, and a term of the loss that depends on parameters only has none, so that it would have no effect
at all. Here it acts after clipping and noise, and costs no privacy: w and w_t are released values already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def pull_to_start(optimizer: Optimizer, parameters: Sequence[Tensor], mu: float) -> None:
    """Make every step of ``optimizer`` add ``mu (p - start)`` to the gradients, ``start`` being the values now.

    Args:
        optimizer: the innermost optimizer, which Opacus steps after clip and noise.
        parameters: what it optimises.
        mu: weight of the proximal term; 0 leaves the optimizer as it is.
    """
    if mu != 0:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        pull_to(optimizer, trained, [parameter.detach().clone() for parameter in trained], mu)


def pull_to(optimizer: Optimizer, parameters: Sequence[Tensor], anchors: Sequence[Tensor], mu: float) -> None:
    """Make every step of ``optimizer`` add ``mu (p - anchor)`` to the gradients.

    Args:
        optimizer: the innermost optimizer.
        parameters: what it optimises.
        anchors: one a parameter, of its shape or one that stretches to it.
        mu: weight of the proximal term; 0 leaves the optimizer as it is.
    """
    if mu == 0:
        return

    @torch.no_grad()
    def pull(*_: Any) -> None:
        for parameter, anchor in zip(parameters, anchors, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=mu)

    optimizer.register_step_pre_hook(pull)
