"""The built-in models, each a function of the data's schema and of its section of the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedray.config import learning as config
from fedray.config.fields import resolve
from fedray.errors import ModelError
from fedray.values import Schema


def build_module(model: config.Model, schema: Schema, n_outputs: int) -> nn.Module:
    """The module that an experiment's ``model`` section describes, with random initial parameters.

    Raises:
        ModelError: the model does not fit the schema, or a custom factory returns no module.
        ConfigError: a custom factory cannot be imported.
    """
    match model:
        case config.Logistic():
            return _logistic(model, schema, n_outputs)
        case config.Mlp():
            return _mlp(model, schema, n_outputs)
        case config.Cnn():
            return _cnn(model, schema, n_outputs)
        case config.Lstm():
            return Lstm(model, n_outputs, every_step=bool(schema.target_shape))
        case config.CustomModel():
            return _custom(model)
        case _:
            raise AssertionError(f"no module for {model!r}")


def _custom(model: config.CustomModel) -> nn.Module:
    module = resolve(model.factory)(**model.args)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the model factory returned {type(module).__name__}",
            "a torch.nn.Module",
            "return the module itself",
        )
    return module


def _logistic(model: config.Logistic, schema: Schema, n_outputs: int) -> nn.Module:
    linear = nn.Linear(math.prod(schema.feature_shape), n_outputs)
    if model.zero_init:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def _mlp(model: config.Mlp, schema: Schema, n_outputs: int) -> nn.Module:
    widths = [math.prod(schema.feature_shape), *model.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))


_NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(channels, 8), channels),
}


def _cnn(model: config.Cnn, schema: Schema, n_outputs: int) -> nn.Module:
    if len(schema.feature_shape) != 3:
        raise ModelError(
            f"a cnn on features of shape {schema.feature_shape}",
            "images of shape (channels, height, width)",
            "take the mlp, or give data.feature_shape",
        )
    depth, height, width = schema.feature_shape
    layers: list[nn.Module] = []
    for channels in model.channels:
        layers += [
            nn.Conv2d(depth, channels, 3, padding=1),
            _NORMS[model.norm](channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        depth, height, width = channels, height // 2, width // 2
    if height * width == 0:
        raise ModelError(
            f"a cnn of {len(model.channels)} blocks on images of {schema.feature_shape[1:]}",
            "at most as many blocks as the image can be halved",
            "shorten model.channels",
        )
    flat = depth * height * width
    module = nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(flat, model.hidden), nn.ReLU(), nn.Linear(model.hidden, n_outputs)
    )
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # a third faster


class Lstm(nn.Module):
    """Tokens of shape ``(n, length)`` to scores ``(n, length, n_outputs)``, or ``(n, n_outputs)`` at the last step."""

    def __init__(self, model: config.Lstm, n_outputs: int, *, every_step: bool) -> None:
        super().__init__()
        self._every_step = every_step
        self.embedding = nn.Embedding(model.vocabulary, model.embedding)
        self.lstm = nn.LSTM(model.embedding, model.hidden, batch_first=True)
        self.output = nn.Linear(model.hidden, n_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens.long()))
        scores: Tensor = self.output(states if self._every_step else states[:, -1])
        return scores
