"""Primes that are 1 modulo twice the ring's degree: those that number-theoretic transforms work with.

SEAL picks coefficient primes by a rule, which is repeated here so that parameters can be checked without it: the
largest primes of a given length. A test holds this against SEAL.
"""

from __future__ import annotations

from collections.abc import Container
from itertools import count

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""With these the test of Miller and Rabin is exact below 3.3e24 (Sorenson and Webster 2015)."""


def is_prime(n: int) -> bool:
    """Whether ``n``, below 3.3e24, is prime."""
    if n < 2 or any(n % witness == 0 for witness in _WITNESSES):
        return n in _WITNESSES
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    return all(_passes(n, witness, twos) for witness in _WITNESSES)


def _passes(n: int, witness: int, twos: int) -> bool:
    power = pow(witness, (n - 1) >> twos, n)
    return power == 1 or any(pow(power, 1 << squarings, n) == n - 1 for squarings in range(twos))


def largest(bits: int, step: int) -> int:
    """The largest prime of so many bits that is 1 modulo ``step``."""
    start = ((1 << bits) - 2) // step * step + 1
    return next(n for n in count(start, -step) if is_prime(n))


def smallest_above(bound: int, step: int, taken: Container[int]) -> int:
    """The smallest prime above ``bound`` that is 1 modulo ``step`` and not taken."""
    start = (bound - 1) // step * step + 1 + step
    return next(n for n in count(start, step) if is_prime(n) and n not in taken)
