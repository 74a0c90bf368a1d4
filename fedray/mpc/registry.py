"""Which torch operators and functions have a secure version: two tables that other files fill.

``PRIMITIVES`` has what PyTorch's autograd ends in, one entry an ``aten`` operator. ``FUNCTIONS`` has what is taken
before autograd sees it, since PyTorch's own way, or its gradient, would cost more on shares; it is written in terms of
primitives, so that autograd goes through it. This file imports nothing of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from fedray.errors import ModelError

Version = TypeVar("Version", bound=Callable[..., Any])

PRIMITIVES: dict[OpOverload, Callable[..., Any]] = {}
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {}

_REVEAL = "reveal() says the values to those who may read them; to choose by a shared condition, use torch.where"
REFUSED: dict[Callable[..., Any], str] = dict.fromkeys(
    (Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__),
    _REVEAL,
)
"""What would show values here, and what to do instead."""

_HOMES = (torch, Tensor, torch.nn.functional)
_noted: ContextVar[Callable[[str], None] | None] = ContextVar("noted", default=None)


class NoSecureVersion(ModelError):
    """A torch operator or function that cannot be computed on shares, or not with these options."""


def primitive(*operators: OpOverload) -> Callable[[Version], Version]:
    """Register the secure version of ``aten`` operators. It takes what they take, and returns ``Held`` or tensors."""

    def register(version: Version) -> Version:
        PRIMITIVES.update(dict.fromkeys(operators, version))
        return version

    return register


def function(*names: str) -> Callable[[Version], Version]:
    """Register the secure version of functions, wherever torch has them under this name."""

    def register(version: Version) -> Version:
        for found in (getattr(home, name) for name in names for home in _HOMES if hasattr(home, name)):
            FUNCTIONS[found] = version
        return version

    return register


def no_secure_version(called: str, remedy: str | None = None) -> NoSecureVersion:
    """The error for what cannot be computed on shares.

    Args:
        called: the operator or function, with the options that are at fault if it has a secure version without them.
        remedy: what to write instead; names of the same sound if left out.
    """
    known = supported()
    near = get_close_matches(called, known, n=5, cutoff=0.5)
    said = f"near it are {', '.join(near)}" if near else "write it in terms of those that have one"
    return NoSecureVersion(
        f"{called}, which has no secure version",
        f"one of the {len(known)} operators and functions that docs/secure-computation.md lists",
        remedy or said,
    )


def supported() -> list[str]:
    """Names of all that can be computed on shares, as torch, its tensors or ``torch.nn.functional`` have them."""
    names = {operator.overloadpacket.__name__ for operator in PRIMITIVES} | {one.__name__ for one in FUNCTIONS}
    public = {name.strip("_") for name in names if "backward" not in name}
    return sorted(name for name in public if any(hasattr(home, name) for home in _HOMES))


@contextmanager
def noting(note: Callable[[str], None]) -> Iterator[None]:
    """Tell ``note`` of whatever has no secure version, instead of stopping there."""
    token = _noted.set(note)
    try:
        yield
    finally:
        _noted.reset(token)


def attempt(version: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """What a secure version gives; in a rehearsal that finds none, something of the same shape."""
    try:
        return version()
    except NoSecureVersion as error:
        if (note := _noted.get()) is None:
            raise
        note(error.found.split(",")[0])
        return otherwise()
