"""``SecureTensor``: a tensor of which this process holds the shape, and three parties the shares.

It is a subclass of ``torch.Tensor`` without storage. PyTorch's own autograd runs above it and comes down to ``aten``
operators (``__torch_dispatch__``), each of which has a secure version in ``registry`` or is refused; so ``backward``,
``nn.Module``, ``nn.Parameter`` and ``torch.optim.SGD`` are PyTorch's. Before an operator is asked of the parties it is
run on meta tensors, which have shapes and no values: a misshapen call raises what PyTorch raises, and nothing has run.

Handles that share memory in PyTorch share a ``Cell`` here (``detach``). A view does not: to change it in place, or to
read it after what it shows was changed in place, is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn
from weakref import ReferenceType

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

from fedray.errors import ModelError
from fedray.mpc.engine import Parties, Ref
from fedray.mpc.held import Held, held_as, the_parties
from fedray.mpc.registry import FUNCTIONS, PRIMITIVES, REFUSED, attempt, no_secure_version

aten = torch.ops.aten


class Cell:
    """What handles of the same memory stand for; changed by operators in place.

    Args:
        held: the value at the parties.
        viewed: for a view, the cell that it shows.
    """

    def __init__(self, held: Held, viewed: Cell | None = None) -> None:
        self._held = held
        self._viewed: list[tuple[ReferenceType[Cell], Held]] = (
            [] if viewed is None else [*viewed._viewed, (ReferenceType(viewed), viewed._held)]
        )

    def read(self) -> Held:
        """The value.

        Raises:
            ModelError: it is a view of what was changed in place.
        """
        if any(cell._held is not held for cell, held in self._alive()):
            raise ModelError(
                "a view of a shared tensor that was changed in place", "a view taken after", "take the view again"
            )
        return self._held

    def write(self, held: Held) -> None:
        """Have all handles of this memory stand for another value.

        Raises:
            ModelError: it is a view of what is still needed.
        """
        if any(self._alive()):
            raise ModelError(
                "a view of a shared tensor to be changed in place",
                "a tensor that is no view",
                "write the operation out of place (inplace=False, x = x + y)",
            )
        self._held = held

    def _alive(self) -> Iterator[tuple[Cell, Held]]:
        return ((cell, held) for weak, held in self._viewed if (cell := weak()) is not None)


class SecureTensor(Tensor):
    """A shared tensor. Made by ``fedray.share``, by ``fedray.secure`` and by torch's operators on these.

    Attributes:
        cell: what it stands for.
    """

    cell: Cell

    @staticmethod
    def __new__(cls, cell: Cell, shape: Sequence[int], dtype: torch.dtype) -> SecureTensor:
        made: SecureTensor = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        made.cell = cell
        return made

    @property
    def held(self) -> Held:
        """The value at the parties."""
        return self.cell.read()

    def reveal(self) -> Tensor:
        """The values, of this tensor's shape: float64, or int64 and bool as this tensor's.

        Raises:
            ProtocolError: the caller is not among the readers of all values that it was computed from, or a party said
                something malformed.
            FedrayError: whatever has stopped a party since; RunError if one is gone.
        """
        held = self.held
        values = held.parties.reveal(held.ref).reshape(self.shape)
        return values if self.dtype.is_floating_point else values.round().to(self.dtype)

    def sealed(self, reader: bytes) -> bytes:
        """The values for somebody else, who opens them with ``fedray.mpc.conducting.opened``.

        Args:
            reader: public key of a ``fedray.mpc.keys.Reader``, who was named as reader of all values that this one was
                computed from.

        Raises:
            ProtocolError, RunError: as for ``reveal``.
        """
        held = self.held
        return held.parties.sealed(held.ref, reader)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in REFUSED:
            refuse = partial(_refuse_to_show, func)
            return attempt(refuse, refuse)
        if func in FUNCTIONS:
            return _attempted(FUNCTIONS[func], func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _SAME_MEMORY:
            return SecureTensor(args[0].cell, args[0].shape, args[0].dtype)
        if func._schema.is_mutable:
            return _changed(func, args, kwargs or {})
        return _computed(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"SecureTensor(shape={tuple(self.shape)}, dtype={self.dtype}{grad})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SecureTensor:
        if id(self) not in memo:
            memo[id(self)] = _leaf(self.held, *self._described())
        copied: SecureTensor = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A handle travels without values; where the parties were started it stands for what it stood for here."""
        held = self.held
        return _received, (held.parties, held.ref, *self._described())

    def _described(self) -> tuple[tuple[int, ...], torch.dtype, bool, bool]:
        is_learned = self.requires_grad and self.is_leaf
        return tuple(self.shape), self.dtype, is_learned, isinstance(self, torch.nn.Parameter)


def _leaf(held: Held, shape: Sequence[int], dtype: torch.dtype, requires_grad: bool, is_parameter: bool) -> Tensor:
    made = SecureTensor(Cell(held), shape, dtype)
    return torch.nn.Parameter(made, requires_grad) if is_parameter else made.requires_grad_(requires_grad)


def _received(parties: Parties, ref: Ref, *described: Any) -> Tensor:
    return _leaf(held_as(parties, ref), *described)


_SAME_MEMORY = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}


def on_meta(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function gives for arguments of these shapes, on meta tensors; raises what it raises for shapes."""
    metas, named = tree_map(_meta, (tuple(args), dict(kwargs)))
    if func is aten.index.Tensor and not any(isinstance(index, SecureTensor) for index in args[1]):
        metas = (metas[0], args[1])
    return func(*metas, **named)


def _meta(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty(arg.shape, dtype=torch.float32 if arg.is_floating_point() else arg.dtype, device="meta")


def _attempted(
    version: Callable[..., Any], func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a secure version gives, once the shapes fit; in a rehearsal that finds none, nothing of that shape."""
    shape = on_meta(func, args, kwargs)
    made = attempt(partial(version, *args, **kwargs), partial(_nothing, args, shape))
    return _wrapped(func, made, shape, args) if isinstance(made, Held) else made


def _nothing(args: Sequence[Any], shapes: Any) -> Any:
    held = Held(the_parties(args), Ref(0))
    return tree_map(lambda shape: SecureTensor(Cell(held), shape.shape, shape.dtype), shapes)


def _computed(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if func not in PRIMITIVES and (made := func.decompose(*args, **kwargs)) is not NotImplemented:
        return made
    return _attempted(PRIMITIVES.get(func) or partial(_refuse, func), func, args, kwargs)


def _refuse_to_show(func: Callable[..., Any]) -> NoReturn:
    raise no_secure_version(func.__name__, REFUSED[func])


def _refuse(func: OpOverload, *_: Any, **__: Any) -> NoReturn:
    raise no_secure_version(func.overloadpacket.__name__)


def _wrapped(func: Any, held: Held, shape: Tensor, args: Sequence[Any]) -> SecureTensor:
    is_view = isinstance(args[0], SecureTensor) and func._schema.returns[0].alias_info is not None
    return SecureTensor(Cell(held, args[0].cell if is_view else None), shape.shape, shape.dtype)


def _changed(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operator in place: the same out of place, and its result written to the cell of its first argument."""
    name = func._schema.name.removeprefix("aten::")
    packet, target = getattr(aten, name.removesuffix("_"), None), args[0]
    if not isinstance(target, SecureTensor) or func._overloadname not in getattr(packet, "overloads", list)():
        raise no_secure_version(f"{name} into a public tensor", "assign its result, x = x + y")
    made = _computed(getattr(packet, func._overloadname), args, kwargs)
    if made.shape != target.shape:
        raise no_secure_version(f"{name} to another shape", "assign its result, x = x.squeeze()")
    target.cell.write(made.held)
    return target
