"""``secure``: an ordinary module whose parameters are shares.

The module is the user's own class with the user's own ``forward``. Before it first runs on inputs of new shapes it is
rehearsed: on handles of parties that do nothing, which finds every operation without a secure version, and where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from fedray.errors import ModelError
from fedray.mpc.engine import Cost, Parties, Ref
from fedray.mpc.held import Held
from fedray.mpc.registry import noting
from fedray.mpc.sharing import share
from fedray.mpc.tensor import Cell, SecureTensor

Module = TypeVar("Module", bound=nn.Module)


def secure(module: Module, parties: Parties, readers: Collection[bytes] | None = None) -> Module:
    """A copy of a module whose parameters and buffers the parties hold.

    Inputs are tensors of ``fedray.share``; ``torch.optim.SGD`` trains it. Batch normalisation in eval mode is folded
    into its weight and bias before these are shared.

    Args:
        module: of any class; left as it is.
        parties: who will hold its parameters.
        readers: public keys of those who may learn them, and what is computed with them together with what they may
            learn besides. The caller alone if left out.

    Raises:
        DataError: a parameter is not finite, or beyond what fixed point holds.
        ModelError: when it is called, before anything runs: operations without a secure version, each with its place.
    """
    secured, shared = deepcopy(module), dict[Tensor, Tensor]()
    for part in secured.modules():
        if isinstance(part, _BatchNorm) and not part.training:
            _fold(part)
        for name, value in _own(part):
            if value not in shared:
                shared[value] = _shared_like(value, parties, readers)
            setattr(part, name, shared[value])
    secured.register_forward_pre_hook(_Rehearsed(), with_kwargs=True)
    return secured


def _own(part: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers with fractions, less running statistics that are folded."""
    own: list[tuple[str, Tensor]] = [*part.named_parameters(recurse=False, remove_duplicate=False)]
    if not (isinstance(part, _BatchNorm) and not part.training):
        own += part.named_buffers(recurse=False, remove_duplicate=False)
    return [(name, value) for name, value in own if value.is_floating_point()]


def _shared_like(value: Tensor, parties: Parties, readers: Collection[bytes] | None) -> Tensor:
    made = share(value, parties, readers)
    return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


@torch.no_grad()
def _fold(norm: _BatchNorm) -> None:
    """Have running statistics of mean 0 and deviation 1, and all else in weight and bias."""
    if norm.running_mean is None or norm.running_var is None:
        return
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)


class _Nobody:
    """Parties that do nothing."""

    precision = 20

    def share(self, *_: Any) -> Ref:
        return Ref(0)

    def run(self, *_: Any, **__: Any) -> Ref:
        return Ref(0)

    def reveal(self, *_: Any) -> NoReturn:
        raise ModelError("a module that asks for values while it runs", "shares only", "reveal() its results")

    sealed = reveal

    def forget(self, *_: Any) -> None:
        pass

    def costs(self) -> list[Cost]:
        return []


class _Rehearsed:
    """Rehearses a module before it first runs on inputs of these shapes."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes = tuple(leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        key = (shapes, tuple(part.training for part in module.modules()))
        if key in self._seen:
            return
        self._seen.add(key)
        try:
            rehearse(module, args, kwargs)
        except Exception:
            self._seen.discard(key)
            raise


def rehearse(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Run a module on shapes alone.

    Raises:
        ModelError: operations without a secure version, each with its place.
    """
    nobody, found = _Nobody(), list[str]()
    state = {name: value for name, value in _state(module) if isinstance(value, SecureTensor)}
    stand_ins, args, kwargs = tree_map(lambda leaf: _stand_in(leaf, nobody), (state, args, kwargs))
    with torch.no_grad(), _places(module) as place, noting(lambda called: found.append(f"{called} in {place()}")):
        try:
            functional_call(module, stand_ins, args, kwargs)
        except Exception:
            if not found:
                raise
    if found:
        raise ModelError(
            "operations without a secure version: " + "; ".join(dict.fromkeys(found)),
            "those that docs/secure-computation.md lists",
            "replace these layers; what comes after them was checked only as far as shapes were known",
        )


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _stand_in(leaf: Any, nobody: _Nobody) -> Any:
    return SecureTensor(Cell(Held(nobody, Ref(0))), leaf.shape, leaf.dtype) if isinstance(leaf, SecureTensor) else leaf


@contextmanager
def _places(module: nn.Module) -> Iterator[Callable[[], str]]:
    """Says which part of a module runs.

    A module that came from another process has numbers of hooks from there, which numbers here may repeat: torch then
    gives a hook more arguments than it asked for.
    """
    names, running = {part: name for name, part in module.named_modules()}, list[str]()

    def enter(part: nn.Module, *_: Any) -> None:
        running.append(f"{names.get(part) or 'the module'} ({type(part).__name__})")

    def leave(*_: Any) -> None:
        running.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield lambda: running[-1]
    finally:
        for hook in hooks:
            hook.remove()
