"""Where the values of shared tensors stand: shapes, parts, and several as one. None of it costs a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedray.mpc.held import Held, run
from fedray.mpc.registry import no_secure_version, primitive
from fedray.mpc.tensor import SecureTensor, on_meta

aten = torch.ops.aten


def _reshaped(operator: str, *functions: Any) -> None:
    """Register functions that keep values in their order, or repeat them, by the shape that torch gives."""
    for found in functions:

        def version(x: SecureTensor, *args: Any, _found: Callable[..., Any] = found, **kwargs: Any) -> Held:
            return run(operator, x, tuple(on_meta(_found, (x, *args), kwargs).shape))

        primitive(found)(version)


_reshaped("expand", aten.expand.default)
_reshaped(
    "reshape",
    aten.view.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)


@primitive(aten.permute.default)
def permute(x: SecureTensor, dims: Sequence[int]) -> Held:
    """Dimensions in another order."""
    return run("permute", x, tuple(dims))


@primitive(aten.transpose.int)
def transpose(x: SecureTensor, first: int, second: int) -> Held:
    """Two dimensions exchanged."""
    dims = list(range(x.dim()))
    dims[first], dims[second] = dims[second], dims[first]
    return run("permute", x, tuple(dims))


@primitive(aten.t.default)
def transposed(x: SecureTensor) -> Held:
    """A matrix's transpose."""
    return run("permute", x, tuple(reversed(range(x.dim()))))


@primitive(aten.select.int)
def select(x: SecureTensor, dim: int, index: int) -> Held:
    """One place of a dimension."""
    return run("index", x, index=_at(x.dim(), dim, index))


@primitive(aten.slice.Tensor)
def part(x: SecureTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Held:
    """A range of a dimension."""
    return run("index", x, index=_at(x.dim(), dim, slice(start, end, step)))


@primitive(aten.index.Tensor)
def chosen(x: SecureTensor, indices: Sequence[Tensor | None]) -> Held:
    """Places by public numbers or a public mask."""
    return run("index", x, index=_public(indices))


@primitive(aten.select_backward.default)
def select_backward(grad: SecureTensor, shape: Sequence[int], dim: int, index: int) -> Held:
    """The gradient of ``select``."""
    return run("put", grad, index=_at(len(shape), dim, index), shape=tuple(shape))


@primitive(aten.slice_backward.default)
def part_backward(grad: SecureTensor, shape: Sequence[int], dim: int, start: int, end: int, step: int) -> Held:
    """The gradient of ``part``."""
    return run("put", grad, index=_at(len(shape), dim, slice(start, end, step)), shape=tuple(shape))


@primitive(aten._unsafe_index_put.default, aten.index_put.default)
def put(x: Tensor, indices: Sequence[Tensor | None], values: SecureTensor, accumulate: bool = False) -> Held:
    """Values added to a tensor at public places."""
    if not accumulate:
        raise no_secure_version("index_put that replaces values", "torch.where with a public mask")
    index = _public(indices)
    full = aten.expand(values, aten.index(torch.empty(x.shape), indices).shape)
    return run("add", run("put", full, index=index, shape=tuple(x.shape)), x)


@primitive(aten.constant_pad_nd.default)
def pad(x: SecureTensor, padding: Sequence[int], value: float = 0) -> Held:
    """Zeros around the last dimensions."""
    if value != 0:
        raise no_secure_version("pad with a value other than 0", "subtract the value, pad with 0, and add it")
    return run("pad", x, tuple(padding))


@primitive(aten.cat.default)
def concatenate(tensors: Sequence[Tensor], dim: int = 0) -> Held:
    """Several tensors one after the other; some may be public."""
    return run("concatenate", list(tensors), dim=dim)


@primitive(aten.stack.default)
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    """Several tensors of one shape along a new dimension; some may be public."""
    return aten.cat([aten.unsqueeze(tensor, dim) for tensor in tensors], dim)


@primitive(aten.split.Tensor)
def split(x: SecureTensor, size: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of one size, the last perhaps smaller."""
    n_parts = max(1, math.ceil(x.shape[dim] / size)) if size else 1
    return tuple(aten.slice(x, dim, size * number, size * (number + 1)) for number in range(n_parts))


@primitive(aten.split_with_sizes.default)
def split_with_sizes(x: SecureTensor, sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of these sizes."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return tuple(aten.slice(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True))


@primitive(aten.unbind.int)
def unbind(x: SecureTensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Every place of a dimension."""
    return tuple(aten.select(x, dim, place) for place in range(x.shape[dim]))


@primitive(aten.clone.default, aten._to_copy.default)
def clone(x: SecureTensor, **options: Any) -> Held:
    """The same values in a tensor of its own; between numbers of any size, and from truth to number."""
    dtype = options.get("dtype")
    if dtype is not None and x.dtype.is_floating_point and not dtype.is_floating_point:
        raise no_secure_version(f"a conversion to {dtype}", "a comparison, which gives truth values")
    return x.held


@primitive(aten.copy.default)
def copy(x: SecureTensor, source: Tensor, _non_blocking: bool = False) -> Any:
    """The values of another shared tensor."""
    if not isinstance(source, SecureTensor):
        raise no_secure_version("copy_ of a public tensor", "fedray.share it first")
    return run("expand", source, tuple(x.shape))


@primitive(aten.zero.default)
def zero(x: SecureTensor) -> Held:
    """Zeros."""
    return run("multiply", x, 0)


def _empty(x: Tensor, **options: Any) -> Tensor:
    return torch.empty(x.shape, dtype=options.get("dtype") or x.dtype)


@primitive(aten.zeros_like.default)
def zeros_like(x: SecureTensor, **options: Any) -> Tensor:
    """Public zeros."""
    return torch.zeros_like(_empty(x, **options))


@primitive(aten.ones_like.default)
def ones_like(x: SecureTensor, **options: Any) -> Tensor:
    """Public ones."""
    return torch.ones_like(_empty(x, **options))


@primitive(aten.new_zeros.default)
def new_zeros(x: SecureTensor, size: Sequence[int], **options: Any) -> Tensor:
    """Public zeros of a shape."""
    return torch.zeros(tuple(size), dtype=options.get("dtype") or x.dtype)


def _at(n_dims: int, dim: int, index: Any) -> tuple[Any, ...]:
    """An index into one dimension."""
    return (*[slice(None)] * (dim % n_dims), index)


def _public(indices: Sequence[Tensor | None]) -> tuple[Any, ...]:
    if any(isinstance(index, SecureTensor) for index in indices):
        raise no_secure_version(
            "indexing by a shared tensor", "multiply by comparisons with all numbers that the index could be"
        )
    return tuple(slice(None) if index is None else index for index in indices)
