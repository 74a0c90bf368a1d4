"""A value that three parties hold: asked for here, freed when nothing here needs it any more.

``run`` is the only way from torch's side to the parties. What is not needed any more is freed when the next operator
runs: so only a process that has them compute frees values, and one that shares a value and sends the handle does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from fedray.errors import ConfigError, DataError
from fedray.mpc.engine import Parties, Ref
from fedray.mpc.ring import limit

FORGOTTEN_AT_ONCE = 16
"""Values that are freed with one message."""

_unneeded: WeakKeyDictionary[Parties, deque[Ref]] = WeakKeyDictionary()
_living: WeakValueDictionary[tuple[int, Ref], Held] = WeakValueDictionary()


class Held:
    """A value at the parties, for as long as this object lives.

    Args:
        parties: who holds it.
        ref: what they call it.
    """

    def __init__(self, parties: Parties, ref: Ref) -> None:
        self.parties = parties
        self._ref = ref
        self._bin = _unneeded.setdefault(parties, deque())
        _living[id(parties), ref] = self

    @property
    def ref(self) -> Ref:
        return self._ref

    def __del__(self) -> None:
        if hasattr(self, "_bin"):
            self._bin.append(self._ref)


class Later(Held):
    """A value that is computed when it is first asked for: the value of a loss, of which training needs the gradient.

    Args:
        parties: who will hold it.
        compute: has them compute it.
    """

    def __init__(self, parties: Parties, compute: Callable[[], Held]) -> None:
        self.parties = parties
        self._compute = compute
        self._computed: Held | None = None

    @property
    def ref(self) -> Ref:
        self._computed = self._computed or self._compute()
        return self._computed.ref


def held_as(parties: Parties, ref: Ref) -> Held:
    """A value that came from elsewhere: one object however often it came, so that it is freed once."""
    return _living.get((id(parties), ref)) or Held(parties, ref)


def run(operator: str, *args: Any, **options: Any) -> Held:
    """Have the parties compute an operator of ``fedray.mpc.operators``.

    Args:
        operator: its name.
        args: ``Held`` values or tensors that have one, public tensors and numbers, lists of them.
        options: public.

    Raises:
        ConfigError: values of different parties.
        DataError: a public number that fixed point does not hold.
    """
    parties = the_parties(args)
    _free(parties)
    return Held(parties, parties.run(operator, *(_argument(parties, arg) for arg in args), **options))


def the_parties(args: Any) -> Parties:
    """Who holds the values among arguments.

    Raises:
        ConfigError: values of different parties.
    """
    found = list({id(held.parties): held.parties for held in _all_held(args)}.values())
    if len(found) != 1:
        raise ConfigError(
            f"tensors of {len(found)} groups of parties in one operation",
            "tensors of one group",
            "share all of them with the same parties",
        )
    return found[0]


def _all_held(args: Any) -> list[Held]:
    if isinstance(args, list | tuple):
        return [held for arg in args for held in _all_held(arg)]
    held = held_of(args)
    return [] if held is None else [held]


def held_of(value: object) -> Held | None:
    """The value at the parties that something stands for, if it stands for one."""
    found = value if isinstance(value, Held) else getattr(value, "held", None)
    return found if isinstance(found, Held) else None


def _argument(parties: Parties, arg: Any) -> Any:
    if (held := held_of(arg)) is not None:
        return held.ref
    if isinstance(arg, list):
        return [_argument(parties, one) for one in arg]
    if isinstance(arg, float) or (isinstance(arg, Tensor) and arg.is_floating_point()):
        return _checked(torch.as_tensor(arg, dtype=torch.float64), limit(parties.precision))
    return arg


def _checked(public: Tensor, bound: float) -> Tensor | float:
    if not bool((public.abs() < bound).all()):
        raise DataError(
            "a public number that is not finite or too large to compute with",
            f"finite numbers of magnitude below {bound:g}",
            "scale it; where it masks something, use torch.where with a number of moderate size",
        )
    return public.detach() if public.dim() else float(public)


def _free(parties: Parties) -> None:
    """Free what is not needed any more, many at a time: never from a destructor, which may run anywhere."""
    unneeded = _unneeded.get(parties)
    if unneeded is not None and len(unneeded) >= FORGOTTEN_AT_ONCE:
        parties.forget([unneeded.popleft() for _ in range(len(unneeded))])


def as_number(value: Any) -> float | None:
    """A public number, be it a tensor without dimensions; none if it is something else."""
    if isinstance(value, int | float):
        return float(value)
    is_number = type(value) is torch.Tensor and value.dim() == 0
    return float(value) if is_number else None
