"""Parameters of CKKS, from how deep a model is and from the largest value in it: public, and equal at both parties.

A chain has a first prime, one prime a multiplication in depth, and SEAL's special prime. A multiplication is followed
by a division by one of the primes between, which are as long as the scale, so that the scale stays what it is. The
first prime is longer than the scale by what the largest value takes, so that no value can wrap around, whatever the
inputs are. SEAL wants the special prime to be as long as the longest.

Security: at most the length of chain that the Homomorphic Encryption Standard (Albrecht et al. 2018) allows for 128
bits, ternary secrets and classical attacks (109, 218, 438 and 881 bits), less one to three in a hundred, since newer
estimates (Bossuat et al. 2024, *Security Guidelines for Implementing Homomorphic Encryption*) are a little lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedray.errors import ModelError

LONGEST_CHAIN = {4096: 106, 8192: 214, 16384: 430, 32768: 868}
"""Ring's degree to the bits of the longest chain that is taken."""
SCALE_BITS = (40, 24)
"""Longest and shortest scale: beyond the first, precision is more than a float32 shows; below the second, too low."""
LONGEST_PRIME = 60
ROOM = 1.1
"""Share by which the first prime exceeds the largest value: for noise, and since a prime of b bits is below 2**b."""


@dataclass(frozen=True)
class Parameters:
    """A ring, and what its primes are for.

    Args:
        poly_degree: degree N of the ring.
        scale_bits: bits behind the point.
        value_bits: bits before the point, with the sign.
        depth: multiplications, one after another.
    """

    poly_degree: int
    scale_bits: int
    value_bits: int
    depth: int

    @property
    def coefficient_bits(self) -> tuple[int, ...]:
        """Lengths of the primes in SEAL's order: the first, one a multiplication, the special one."""
        ends = self.scale_bits + self.value_bits
        return ends, *[self.scale_bits] * self.depth, ends

    @property
    def is_secure(self) -> bool:
        """Whether the chain is short enough for 128 bits of security, and each prime for SEAL."""
        is_short = sum(self.coefficient_bits) <= LONGEST_CHAIN.get(self.poly_degree, 0)
        return is_short and max(self.coefficient_bits) <= LONGEST_PRIME

    @property
    def scale(self) -> float:
        return 2.0**self.scale_bits

    @property
    def n_slots(self) -> int:
        """Images that one ciphertext holds a value of."""
        return self.poly_degree // 2


def parameters_for(depth: int, bound: float) -> Parameters:
    """The smallest ring that is deep enough, and in it the longest scale.

    Args:
        depth: multiplications, one after another.
        bound: largest absolute value that can occur.

    Raises:
        ModelError: no ring is.
    """
    value_bits = 1 + max(1, math.ceil(math.log2(ROOM * bound)))
    longest, shortest = SCALE_BITS
    for poly_degree, chain in LONGEST_CHAIN.items():
        fitting = min(longest, LONGEST_PRIME - value_bits, (chain - 2 * value_bits) // (depth + 2))
        if fitting >= shortest:
            return Parameters(poly_degree, fitting, value_bits, depth)
    raise ModelError(
        f"a model of {depth} multiplications in depth with values of up to {bound:.3g}",
        "one that 128 bits of security leave room for",
        "take fewer layers, or smaller weights or inputs: a square doubles the bits of what it is given",
    )
