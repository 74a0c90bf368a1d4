"""DP-SGD that never forms the gradient of an example: ghost clipping, by Opacus.

X. Li, F. Tramèr, P. Liang, T. Hashimoto, "Large Language Models Can Be Strong Differentially Private Learners" (arXiv
2021, ICLR 2022), section 4: a first backward pass finds every example's gradient norm, a second one the gradient of
the losses weighted by min(1, C / norm), which is the sum of the clipped gradients. For a linear layer on one vector an
example, the norm is that of its input times that of its output's gradient (I. Goodfellow, "Efficient Per-Example
Gradient Computations", 2015). Embeddings have a rule of their own; of every other layer the per-example gradients are
formed and dropped, one layer at a time (J. Lee, D. Kifer, "Scaling up Differentially Private Deep Learning with Fast
Per-Example Gradient Clipping", PoPETs 2021), which for convolutions is the choice of Z. Bu, J. Mao, S. Xu, "Scalable
and Efficient Training of Large Convolutional Neural Networks with Differential Privacy", NeurIPS 2022, where it is
cheaper.

Deviation: a linear layer on sequences is such an other layer too. The paper's norm, the sum of the entrywise product of
two Gram matrices, is a difference of large numbers where positions cancel: in float32 an example can be built whose
norm comes out as 0 and is thousands, so that nothing would clip it.

Clipping as ``fedray.privacy.dp_sgd`` does it holds for whatever gradients it is given. Here it holds if the norms are
those of the gradients, which ``check_ghost`` tries on a few rows, and up to rounding: the second pass computes afresh
what the first one measured, so that an example whose gradient is a sum of terms 1e7 times the clip may exceed it.
"""

from __future__ import annotations

import warnings
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.grad_sample.linear import compute_linear_grad_sample, compute_linear_norm_sample
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn
from torch.optim import Optimizer

from fedray.errors import ModelError
from fedray.privacy.dp_sgd import NoisyOptimizer, PrivateDescent
from fedray.privacy.private_modules import FAILURES, is_close, probe_of
from fedray.tasks.descent import Draws, Steps
from fedray.tasks.losses import Loss, per_row
from fedray.values import Schema


class _NoisyOptimizer(NoisyOptimizer, DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus ships no types
    """Adds noise to a sum of gradients that the second backward pass has clipped."""

    def pre_step(self, closure: Any = None) -> bool | None:
        """Add noise; an empty batch has no gradients."""
        for parameter in self.params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ready: bool | None = super().pre_step(closure)
        return ready


@dataclass(frozen=True)
class _GhostSteps(Steps):
    """Steps whose backward pass leaves the sum of the clipped gradients."""

    model: Any

    def backward(self, loss: Loss, features: Tensor, targets: Tensor) -> None:
        """Clip every row's gradient and sum them; a row whose norm is not finite counts as none.

        Such a row has to be left out from the start: weighted by 0, its infinities would be no numbers.
        """
        losses = per_row(loss)(self.model(features), targets)
        DPTensorFastGradientClipping(self.model, self.optimizer, losses, "sum").backward()
        finite = self.model.per_sample_gradient_norms.isfinite()
        if finite.all():
            return
        self.optimizer.zero_grad()
        if finite.any():
            self.backward(loss, features[finite], targets[finite])


def _linear_norms(layer: nn.Linear, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Opacus's norms for one vector an example, and for sequences those of the gradients themselves."""
    if backprops.dim() == 2:
        norms: dict[nn.Parameter, Tensor] = compute_linear_norm_sample(layer, activations, backprops)
        return norms
    gradients = compute_linear_grad_sample(layer, activations, backprops)
    return {parameter: found.flatten(1).norm(dim=1) for parameter, found in gradients.items()}


class _GhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # Opacus ships no types
    """Opacus's module; a norm serves one batch only."""

    NORM_SAMPLERS = ChainMap({nn.Linear: _linear_norms}, GradSampleModuleFastGradientClipping.NORM_SAMPLERS)

    def norms_of_parts(self) -> dict[str, Tensor]:
        """Norms of the rows' gradients by parameter, of shape ``(n,)``.

        Raises:
            ModelError: a parameter had no part in this batch, or one that Opacus did not see.
        """
        trained = {name: parameter for name, parameter in self._module.named_parameters() if parameter.requires_grad}
        found: dict[str, Any] = {name: getattr(parameter, "_norm_sample", None) for name, parameter in trained.items()}
        if missing := [name for name, norms in found.items() if norms is None]:
            raise _no_norms(f"none for {', '.join(missing)}")
        return found

    def get_norm_sample(self) -> Tensor:
        """Norms of the rows' gradients over all parameters, shape ``(n,)``."""
        self.norms_of_parts()
        norms: Tensor = super().get_norm_sample()
        for parameter in self.trainable_parameters:
            parameter._norm_sample = None
        return norms


class GhostDescent(PrivateDescent):
    """The same batches, noise and charges as ``PrivateDescent``, and the same steps by two backward passes each."""

    _optimizer = _NoisyOptimizer
    _steps = _GhostSteps

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with Opacus's hooks, which find the norm of every row's gradient."""
        return _GhostModule(module, loss_reduction="sum")

    def steps(self, model: nn.Module, optimizer: Optimizer, draws: Draws) -> Steps:
        """Opacus's optimizer around the given one; the model, which owners share, clips at this owner's norm."""
        steps = super().steps(model, optimizer, draws)
        steps.model.max_grad_norm = self._plan.clip  # type: ignore[attr-defined]
        return steps


def check_ghost(module: nn.Module, loss: Loss, schema: Schema) -> None:
    """Hold the norms that ghost clipping finds on a few rows against each row's own gradient.

    Comes after ``check_private``, with another copy of the module.

    Raises:
        ModelError: the loss is the user's own, Opacus finds no norms for the model, or others than the gradients'.
    """
    losses = per_row(loss)
    probe = probe_of(module, loss, schema)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ghost = _GhostModule(module, loss_reduction="sum")
            losses(ghost(probe.features), probe.targets).sum().backward()
            norms = ghost.norms_of_parts()
    except FAILURES as error:
        raise _no_norms(str(error)) from error
    expected = {name: gradients.flatten(1).norm(dim=1) for name, gradients in probe.gradients.items()}
    if wrong := [name for name in expected if probe.is_repeatable and not is_close(norms[name], expected[name])]:
        raise _no_norms(f"others than the gradients' for {', '.join(wrong)}")


def _no_norms(detail: str) -> ModelError:
    return ModelError(
        f"a model for which ghost clipping finds no norms: {detail}",
        "layers that are called once a forward pass, each with parameters of its own, and all of them on every batch",
        "set privacy.gradients: per_example",
    )
