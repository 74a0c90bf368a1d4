"""Shamir's secret sharing (A. Shamir, *How to Share a Secret*, CACM 1979) of 32-byte secrets.

The field is that of the integers modulo ``PRIME``, the smallest prime above 2**256, so that every secret fits.
Coefficients come from the operating system's generator.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod

PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, n_holders: int) -> list[bytes]:
    """Shares for holders at 1 to ``n_holders``, any ``threshold`` of which give the secret and fewer tell nothing."""
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(polynomial, point).to_bytes(SHARE_BYTES, "big") for point in range(1, n_holders + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret from exactly ``threshold`` shares by holder's point; None where they cannot all be true."""
    points = tuple(sorted(shares))
    weights = _weights_at_zero(points)
    values = (int.from_bytes(shares[point], "big") for point in points)
    secret = sum(weight * value for weight, value in zip(weights, values, strict=True)) % PRIME
    return secret.to_bytes(32, "big") if secret < 2**256 else None


def _value(polynomial: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


@lru_cache(maxsize=4096)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients of the value at zero: products of small integers, inverted all at once."""
    below = [point * prod(other - point for other in points if other != point) for point in points]
    above = prod(points)
    return tuple(above * inverse % PRIME for inverse in _inverses(below))


def _inverses(values: Sequence[int]) -> list[int]:
    """Inverses of many values for the price of one (P. Montgomery 1987): only the product of all is inverted."""
    before = list(accumulate(values, lambda product, value: product * value % PRIME, initial=1))
    left = pow(before[-1], -1, PRIME)
    found = []
    for value, product in zip(reversed(values), reversed(before[:-1]), strict=True):
        found.append(left * product % PRIME)
        left = left * value % PRIME
    return found[::-1]
