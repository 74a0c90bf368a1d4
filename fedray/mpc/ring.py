"""Fixed-point numbers as integers modulo 2**64, in which torch.int64 computes.

A real number x is the integer nearest to x * 2**precision. A product has twice the fractional bits before it is
truncated, and must stay within 2**62: numbers, and whatever is computed from them, stay within 2**(62 - 2 precision).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedray.errors import DataError

WORD_BITS = 64
LARGEST_PRECISION = 26


def limit(precision: int) -> float:
    """The magnitude below which numbers and products of numbers are held: 2**(62 - 2 precision)."""
    return float(2 ** (WORD_BITS - 2 - 2 * precision))


def encoded(value: Tensor, precision: int) -> Tensor:
    """A tensor of numbers as fixed point, int64 of the same shape.

    Raises:
        DataError: a value is not finite or not below ``limit``.
    """
    return torch.round(_bounded(value, limit(precision), precision) * 2.0**precision).to(torch.int64)


def encoded_shortest(value: Tensor, precision: int) -> tuple[Tensor, int]:
    """A public tensor's words, and their fractional bits: none if all are whole, as their products need no truncation.

    Whole numbers may be as large as 2**(62 - precision), so that they can still be added to numbers with fractions.

    Raises:
        DataError: a value is not finite or too large.
    """
    if value.is_floating_point() and not bool((value == value.round()).all()):
        return encoded(value, precision), precision
    return _bounded(value, 2.0 ** (WORD_BITS - 2 - precision), precision).to(torch.int64), 0


def _bounded(value: Tensor, bound: float, precision: int) -> Tensor:
    exact = value.detach().to(torch.float64)
    if not bool((exact.abs() < bound).all()):
        raise DataError(
            "a tensor with values that are not finite or too large to be shared",
            f"finite numbers of magnitude below {bound:g}, at {precision} fractional bits",
            "scale the data, or start the parties with fewer fractional bits",
        )
    return exact


def decoded(words: Tensor, precision: int) -> Tensor:
    """The numbers that fixed-point words stand for, float64."""
    return words.to(torch.float64) / 2.0**precision


def shifted(words: Tensor, n_bits: int) -> Tensor:
    """Words shifted right as unsigned numbers."""
    return (words >> n_bits) & ((1 << (WORD_BITS - n_bits)) - 1) if n_bits else words
