"""Small models and optimizers to begin with; any module and any optimizer of PyTorch's will do as well.

A bottom model is a module, or makes one of the shape of an owner's rows. A top model is a module, or makes one of
the width of its input and the number of outputs. What makes one is called inside the party, under the run's seed:
whoever knows the seed knows the initial weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedray.errors import ConfigError, ModelError

BottomMaker = nn.Module | Callable[[tuple[int, ...]], nn.Module]
TopMaker = nn.Module | Callable[[int, int], nn.Module]
OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]


def mlp(n_inputs: int, width: int, hidden: Iterable[int] = (64,)) -> nn.Sequential:
    """Rows of ``n_inputs`` to embeddings of ``width``, by ReLU layers; rows of more axes are flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_hidden in hidden:
        layers += [nn.Linear(n_inputs, n_hidden), nn.ReLU()]
        n_inputs = n_hidden
    return nn.Sequential(*layers, nn.Linear(n_inputs, width))


def mlp_of(width: int, hidden: Iterable[int] = (64,)) -> Callable[[tuple[int, ...]], nn.Module]:
    """The same for whatever rows an owner has."""
    return partial(_mlp_for, width=width, hidden=tuple(hidden))


def _mlp_for(shape: tuple[int, ...], width: int, hidden: tuple[int, ...]) -> nn.Module:
    return mlp(math.prod(shape), width, hidden)


def head(n_inputs: int, n_outputs: int = 1, hidden: Iterable[int] = (32,)) -> nn.Sequential:
    """A top model: embeddings to outputs, by a ReLU before each layer."""
    layers: list[nn.Module] = [nn.ReLU()]
    for n_hidden in hidden:
        layers += [nn.Linear(n_inputs, n_hidden), nn.ReLU()]
        n_inputs = n_hidden
    return nn.Sequential(*layers, nn.Linear(n_inputs, n_outputs))


def head_of(hidden: Iterable[int] = (32,)) -> Callable[[int, int], nn.Module]:
    """The same for whatever embeddings and labels there are."""
    return partial(head, hidden=tuple(hidden))


def linear(n_inputs: int, n_outputs: int = 1) -> nn.Linear:
    """A bottom model of a linear or logistic baseline: zeros to begin with. Its top is the identity."""
    layer = nn.Linear(n_inputs, n_outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def adam(lr: float = 1e-3, **options: Any) -> OptimizerMaker:
    """Makes ``torch.optim.Adam`` at each party."""
    return partial(torch.optim.Adam, lr=lr, **options)


def sgd(lr: float = 0.1, **options: Any) -> OptimizerMaker:
    """Makes ``torch.optim.SGD`` at each party."""
    return partial(torch.optim.SGD, lr=lr, **options)


def made_bottom(maker: BottomMaker, shape: tuple[int, ...]) -> nn.Module:
    """A party's own copy of a module, or a new one.

    Raises:
        ModelError: it is none, or cannot be made.
    """
    return copy.deepcopy(maker) if isinstance(maker, nn.Module) else _made(partial(maker, shape), "a bottom model")


def made_top(maker: TopMaker, width: int, n_outputs: int) -> nn.Module:
    """The label holder's own copy of a module, or a new one.

    Raises:
        ModelError: it is none, or cannot be made.
    """
    return (
        copy.deepcopy(maker) if isinstance(maker, nn.Module) else _made(partial(maker, width, n_outputs), "a top model")
    )


def _made(make: Callable[[], nn.Module], what: str) -> nn.Module:
    expected = "a module, or what makes one: of the shape of a row, or of the embeddings' width and the outputs' number"
    try:
        module = make()
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what} that cannot be made: {error}", expected, "correct what makes it") from None
    if not isinstance(module, nn.Module):
        raise ModelError(f"a {type(module).__name__} as {what}", expected, "correct what makes it")
    return module


def made_optimizer(maker: OptimizerMaker, module: nn.Module) -> Optimizer | None:
    """An optimizer of all parameters; None where there are none.

    Raises:
        ConfigError: it cannot be made.
    """
    parameters = list(module.parameters())
    try:
        return maker(parameters) if parameters else None
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"an optimizer that cannot be made: {error}", "what makes one of parameters", "correct its settings"
        ) from None


def outputs_of(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network makes of rows.

    Raises:
        ModelError: it is one row, and the network trains on statistics of several.
    """
    try:
        outputs: Tensor = network(inputs)
    except ValueError:
        if len(inputs) != 1 or not network.training:
            raise
        raise ModelError(
            "a batch with one row for a model that takes statistics of several (BatchNorm)",
            "two rows or more in every batch",
            "take another batch_size, or LayerNorm in its place",
        ) from None
    return outputs


def outputs_on_zeros(module: nn.Module, shape: tuple[int, ...], what: str) -> Tensor:
    """What a module makes of two rows of zeros.

    Raises:
        ModelError: it cannot take them.
    """
    was_training = module.training
    try:
        with torch.no_grad():
            outputs: Tensor = module.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(
            f"{what} that cannot take rows of shape {tuple(shape)}: {str(error).splitlines()[0]}",
            "a first layer that fits",
            "correct the model, or give a callable that makes it of the shape",
        ) from None
    finally:
        module.train(was_training)
    return outputs
