"""A module as a list of stages: affine maps, and squares between them.

Layers that are affine one after another (a convolution, a mean over a window, flattening, a linear layer) are one
matrix: each is applied to the unit vectors, and the results are multiplied in float64. So no kind of layer needs code
of its own, and each run of them costs one multiplication in depth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedray.encrypted.square import Square
from fedray.errors import ModelError

AFFINE = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d)
PASSING = (nn.Flatten, nn.Identity, nn.Dropout)
"""Layers that leave values as they are, and in their order, once a model is trained."""
MOST_VALUES = 4096
"""Most values between two stages: each is a ciphertext of up to some megabytes."""

Shape = tuple[int, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Where the values between two stages lie, shape (n,) each."""

    lowest: Floats
    highest: Floats

    @property
    def bound(self) -> float:
        """Largest absolute value."""
        return float(max(-self.lowest.min(), self.highest.max()))


@dataclass(frozen=True)
class Affine:
    """``weights @ x + bias``; weights of shape (n_out, n_in), bias of shape (n_out,)."""

    weights: Floats
    bias: Floats

    def after(self, first: Affine) -> Affine:
        """This map of what the first one gives."""
        return Affine(self.weights @ first.weights, self.weights @ first.bias + self.bias)

    def reached(self, inputs: Interval) -> Interval:
        """Where outputs lie, whatever the inputs are."""
        middle = self.weights @ ((inputs.highest + inputs.lowest) / 2) + self.bias
        radius = np.abs(self.weights) @ ((inputs.highest - inputs.lowest) / 2)
        return Interval(middle - radius, middle + radius)


@dataclass(frozen=True)
class Squaring:
    """Each value times itself."""

    def reached(self, inputs: Interval) -> Interval:
        """Where outputs lie, whatever the inputs are."""
        ends = np.square(inputs.lowest), np.square(inputs.highest)
        spans_zero = (inputs.lowest < 0) & (inputs.highest > 0)
        return Interval(np.where(spans_zero, 0.0, np.minimum(*ends)), np.maximum(*ends))


Stage = Affine | Squaring


@dataclass(frozen=True)
class Network:
    """What a module computes: its stages, on flat values, and the shapes of one input and one output."""

    stages: tuple[Stage, ...]
    input_shape: Shape
    output_shape: Shape

    def bound(self, input_bound: float) -> float:
        """Largest absolute value at any place, whatever inputs within their bound are."""
        n = math.prod(self.input_shape)
        reached = Interval(np.full(n, -input_bound), np.full(n, input_bound))
        largest = input_bound
        for stage in self.stages:
            reached = stage.reached(reached)
            largest = max(largest, reached.bound)
        return largest


def network_of(module: nn.Module, input_shape: Shape) -> Network:
    """The stages of a trained module, which is not changed.

    Args:
        module: an ``nn.Sequential`` of layers in ``AFFINE`` and ``PASSING`` and ``Square``, nested or not.
        input_shape: shape of one input, without the batch.

    Raises:
        ModelError: another layer, shapes that do not fit, values that are not finite, or too many of them.
    """
    stages: list[Stage] = []
    shape = input_shape
    for name, trained in _layers(module):
        layer = copy.deepcopy(trained).double().cpu().eval()
        before, shape = shape, _shape_after(layer, shape, name)
        if isinstance(layer, Square):
            stages.append(Squaring())
        elif isinstance(layer, AFFINE):
            affine = _probed(layer, before, name)
            is_second = bool(stages) and isinstance(stages[-1], Affine)
            stages.append(affine.after(stages.pop()) if is_second else affine)  # type: ignore[arg-type]
    if not stages:
        raise ModelError("a model that computes nothing", "at least one layer with weights, or a Square", "add one")
    return Network(tuple(stages), input_shape, shape)


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers in order, under their dotted names; a layer that stands in two places comes twice."""
    if type(module) is nn.Sequential:
        for inner, layer in module._modules.items():
            yield from _layers(layer, f"{name}.{inner}".lstrip("."))
    elif type(module) in (*AFFINE, *PASSING, Square):
        yield name, module
    else:
        allowed = ", ".join(kind.__name__ for kind in (*AFFINE, Square, *PASSING))
        raise ModelError(
            f"layer {name} ({type(module).__name__})" if name else f"a model of type {type(module).__name__}",
            f"nn.Sequential of {allowed}",
            "train with fedray.encrypted.Square for an activation and AvgPool2d for a pool",
        )


def _shape_after(layer: nn.Module, shape: Shape, name: str) -> Shape:
    try:
        with torch.no_grad():
            shape = tuple(layer(torch.zeros(2, *shape, dtype=torch.float64)).shape[1:])
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"layer {name} ({type(layer).__name__}) that does not take values of shape {shape} ({error})",
            "layers that fit input_shape",
            "give the shape of one input, without the batch",
        ) from None
    if (n := math.prod(shape)) > MOST_VALUES:
        raise ModelError(
            f"layer {name} ({type(layer).__name__}), which gives {n} values", f"at most {MOST_VALUES}", "larger strides"
        )
    return shape


def _probed(layer: nn.Module, shape: Shape, name: str) -> Affine:
    """An affine layer as a matrix: what it makes of zero, and of each unit vector."""
    n = math.prod(shape)
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).reshape(-1)
        weights = (layer(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, -1) - bias).T
    if not (weights.isfinite().all() and bias.isfinite().all()):
        raise ModelError(
            f"layer {name} ({type(layer).__name__}) with weights that are not finite", "finite ones", "train anew"
        )
    return Affine(weights.numpy(), bias.numpy())
