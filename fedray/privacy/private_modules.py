"""Models under example-level privacy: made such that Opacus can treat them, and checked on a few rows.

What is checked is that Opacus's per-example gradients are each row's own, by plain autograd: DP-SGD bounds a row's
share of a gradient, and where rows act on each other nobody has one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedray.errors import ModelError
from fedray.tasks.losses import Loss
from fedray.values import Schema

FAILURES = (NotImplementedError, RuntimeError, IndexError, ValueError, TypeError)
"""What Opacus and modules raise when they cannot."""


def make_private(module: nn.Module) -> nn.Module:
    """The module in a form that Opacus can take per-example gradients of.

    Recurrent and attention layers are replaced by Opacus's own, which compute the same from the same parameters.
    Weights are laid out in the order of their dimensions: from others Opacus makes wrong gradients of rows.

    Raises:
        ModelError: the module mixes examples of a batch (BatchNorm) or keeps statistics of them.
    """
    statistical = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    culprits = sorted(
        {
            type(part).__name__
            for part in module.modules()
            if isinstance(part, statistical)
            and (isinstance(part, nn.modules.batchnorm._BatchNorm) or part.track_running_stats)
        }
    )
    if culprits:
        raise ModelError(
            f"a model with {', '.join(culprits)} under example-level privacy",
            "layers that treat every example by itself: a batch statistic mixes them, so that no example's share "
            "of the gradient can be bounded",
            "use GroupNorm (model.norm: group for the built-in cnn), or return "
            "opacus.validators.ModuleValidator.fix(model) from your factory",
        )
    return _replaced(module, {}).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


def _replaced(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """What takes a module's place, the same in every place where the module stands."""
    if module not in made:
        fixer = ModuleValidator.FIXERS.get(type(module))
        made[module] = module if fixer is None else fixer(module)
        for name, part in list(module._modules.items()) if fixer is None else []:
            if part is not None:
                setattr(module, name, _replaced(part, made))
    return made[module]


def check_private(module: nn.Module, loss: Loss, schema: Schema) -> None:
    """Hold Opacus's per-example gradients of model and loss on a few rows against each row's own gradient.

    Random layers are switched off for it; where randomness remains, only the shapes can be checked.

    Raises:
        ModelError: Opacus cannot take them, rows or losses are mixed, or the model keeps statistics of rows.
    """
    probe = probe_of(module, loss, schema)
    n_rows = len(probe.targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss(GradSampleModule(module)(probe.features), probe.targets).backward()
    except FAILURES as error:
        raise untreatable(str(error)) from error
    found: dict[str, Any] = {name: getattr(probe.parameters[name], "grad_sample", None) for name in probe.gradients}
    shapes = {name: getattr(gradients, "shape", ()) for name, gradients in found.items()}
    if missing := [name for name, shape in shapes.items() if shape != (n_rows, *probe.parameters[name].shape)]:
        raise untreatable(f"no per-example gradient for {', '.join(missing)}")
    for name, expected in probe.gradients.items():
        if probe.is_repeatable and not is_close(found[name], expected):
            raise ModelError(
                f"a model or loss under example-level privacy in which rows act on each other (seen at {name})",
                "a model that treats every row by itself, and a loss that is the mean over rows",
                "take out what mixes rows: means over the batch, class weights, sums, contrastive losses",
            )


@dataclass(frozen=True)
class Probe:
    """A few rows, and each one's own gradient, by plain autograd on that row alone.

    Attributes:
        features: of shape ``(n, ...)``.
        targets: of shape ``(n, ...)``.
        parameters: the trained ones, by name.
        gradients: every row's, by parameter, of shapes ``(n, *parameter.shape)``.
        is_repeatable: whether the same row gives the same gradient twice.
    """

    features: Tensor
    targets: Tensor
    parameters: dict[str, nn.Parameter]
    gradients: dict[str, Tensor]
    is_repeatable: bool


def probe_of(module: nn.Module, loss: Loss, schema: Schema) -> Probe:
    """Rows and their gradients, in training mode but for random layers.

    Raises:
        ModelError: the model fails on one row, or keeps statistics of rows.
    """
    features, targets = _rows(schema)
    for part in module.modules():
        part.train(not isinstance(part, nn.modules.dropout._DropoutNd))
    _require_still_buffers(module, features)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        *alone, again = [
            _gradients(loss(module(features[i : i + 1]), targets[i : i + 1]), parameters)
            for i in (*range(len(targets)), 0)
        ]
    except FAILURES as error:
        raise untreatable(str(error)) from error
    gradients = {name: torch.stack([one[name] for one in alone]) for name in parameters}
    is_repeatable = all(torch.equal(alone[0][name], again[name]) for name in parameters)
    return Probe(features, targets, parameters, gradients, is_repeatable)


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways to the same gradients agree, up to their rounding."""
    tolerance = 1e-4 * (1 + float(expected.abs().max()))
    return torch.allclose(found, expected, rtol=1e-2, atol=tolerance)


def _rows(schema: Schema) -> tuple[Tensor, Tensor]:
    """Three rows unlike each other, with targets: random features (tokens 0 and 1), classes in turn."""
    draw, n = torch.Generator().manual_seed(0), 3
    if schema.feature_dtype == "int64":
        features = torch.randint(0, 2, (n, *schema.feature_shape), generator=draw)
    else:
        features = torch.randn((n, *schema.feature_shape), generator=draw)
    if schema.n_classes is None:
        return features, torch.randn((n, *schema.target_shape), generator=draw)
    return features, torch.randint(0, schema.n_classes, (n, *schema.target_shape), generator=draw)


def _gradients(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


@torch.no_grad()
def _require_still_buffers(module: nn.Module, features: Tensor) -> None:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        module(features)
    except FAILURES as error:
        raise untreatable(str(error)) from error
    if moved := [name for name, buffer in module.named_buffers() if not torch.equal(before[name], buffer)]:
        raise ModelError(
            f"a model that changes its buffers {', '.join(moved)} in training, under example-level privacy",
            "buffers that stay: they would be released without noise",
            "leave such statistics out, or make them constants",
        )


def untreatable(detail: str) -> ModelError:
    """The refusal of a model that Opacus fails on."""
    return ModelError(
        f"Opacus cannot take this model's per-example gradients: {detail}",
        "a model all of whose trainable parameters act on one example at a time",
        "freeze the parameters in question, or register a grad sampler with opacus.grad_sample",
    )
