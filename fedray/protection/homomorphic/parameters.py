"""Parameters of the two schemes, chosen from the bound of the sum: public, and equal at all parties.

A chain has two primes. Ciphertexts live modulo the first. The second, SEAL's special prime, is dropped in encryption;
it is as short as noise allows, since security falls with the chain's total length. There is no level to multiply in,
no key to rotate slots with, and relinearisation would drown in noise: a sum is all that can be computed.

Noise. A fresh public-key ciphertext (c0, c1) decrypts to ``c0 + c1 s``, message plus noise. Encryption adds Gaussians
of deviation 3.2 to ``pk * u``, then divides by the special prime (2**17 at least) and rounds. What the Gaussians leave
is ``3.2 sqrt(4N/3 + 1) / 2**17 < 0.002``; rounding leaves an error uniform in +-1/2 in every coefficient of c0 and c1.
With s uniform in {-1, 0, 1} the noise in a coefficient is normal with variance ``(1 + 2N/3) / 12`` a contribution,
15.1**2 at N = 4096, and grows with the number n of contributions as sqrt(n).

* BFV decodes a sum while every coefficient's noise is below ``q / 2t``. Demanded: 10 deviations, 1.5e-23 a value.
* CKKS decodes a slot as an evaluation of the polynomial at a root of unity: ``sqrt(N / 2)`` times the deviation in the
  real part. But here rounding errors multiply ``s`` at that root, whose size varies from slot to slot like a complex
  normal's, so that over slots the noise is Laplace: beyond k deviations with probability ``exp(-k sqrt 2)``. An integer
  is recovered while it is below half the scale. Demanded: 32 deviations, 2.2e-20 a value.

Security follows the table of the Homomorphic Encryption Standard (Albrecht et al. 2018) for ternary secrets against
classical attacks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from fedray.errors import ConfigError
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic import primes

Scheme = Literal["ckks", "bfv"]

POLY_DEGREE = 4096
SPECIAL_BITS = 18
DATA_BITS = (32, 40, 48, 54)
"""Lengths of the data prime that are tried, shortest first: on the wire a coefficient takes whole bytes."""
SECURITY: dict[int, tuple[tuple[int, int], ...]] = {4096: ((256, 58), (192, 75), (128, 109))}
"""Ring's degree to pairs of a security level in bits and the longest chain that has it."""
HEADROOM = 0.98
"""Share of the range of a CKKS coefficient that the largest sum may take; the rest is for noise."""


@dataclass(frozen=True)
class Parameters(ABC):
    """A ring and its chain of primes.

    Args:
        poly_degree: degree N of the ring.
        coefficient_bits: lengths of data prime and special prime.

    Raises:
        ConfigError: the chain is too long for 128 bits of security.
    """

    poly_degree: int
    coefficient_bits: tuple[int, int]

    scheme: ClassVar[Scheme]

    def __post_init__(self) -> None:
        if not self.security_bits:
            raise ConfigError(
                f"primes of {self.coefficient_bits} bits at degree {self.poly_degree}",
                "128 bits of security by the Homomorphic Encryption Standard",
                "take shorter primes",
            )

    @property
    def security_bits(self) -> int:
        """Security level by the standard; 0 where it has none."""
        levels = SECURITY.get(self.poly_degree, ())
        return next((level for level, longest in levels if sum(self.coefficient_bits) <= longest), 0)

    @property
    def step(self) -> int:
        """All primes are 1 modulo this."""
        return 2 * self.poly_degree

    @cached_property
    def modulus(self) -> int:
        """The data prime q: ciphertexts are pairs of polynomials with coefficients below it."""
        return primes.largest(self.coefficient_bits[0], self.step)

    @property
    def word_bytes(self) -> int:
        """Bytes of a coefficient on the wire."""
        return -(-self.coefficient_bits[0] // 8)

    @property
    @abstractmethod
    def n_slots(self) -> int:
        """Integers in a ciphertext."""

    @property
    @abstractmethod
    def encoding(self) -> int | float:
        """The one number that says how integers are encoded."""

    @abstractmethod
    def margin(self, fixed_point: FixedPoint) -> float:
        """Noise that sums can bear over the noise that they are demanded to bear; 1 is enough."""

    def n_pieces(self, length: int) -> int:
        """Ciphertexts that ``length`` integers take."""
        return -(-length // self.n_slots)

    def noise_deviation(self, n: int) -> float:
        """Standard deviation of the noise in a coefficient of a sum of ``n`` ciphertexts."""
        return math.sqrt(n * (1 + 2 * self.poly_degree / 3) / 12)


@dataclass(frozen=True)
class BfvParameters(Parameters):
    """Args: plain_modulus: t, a prime above twice the bound of the sum; sums are signed integers modulo it."""

    plain_modulus: int

    scheme = "bfv"
    DEVIATIONS: ClassVar[float] = 10.0

    @property
    def n_slots(self) -> int:
        return self.poly_degree

    @property
    def encoding(self) -> int:
        return self.plain_modulus

    def margin(self, fixed_point: FixedPoint) -> float:
        borne = self.modulus / (2 * self.plain_modulus)
        return borne / (self.DEVIATIONS * self.noise_deviation(fixed_point.n_owners))


@dataclass(frozen=True)
class CkksParameters(Parameters):
    """Args: scale: what an integer is multiplied by before it is rounded into the ring."""

    scale: float

    scheme = "ckks"
    DEVIATIONS: ClassVar[float] = 32.0

    @property
    def n_slots(self) -> int:
        return self.poly_degree // 2

    @property
    def encoding(self) -> float:
        return self.scale

    def margin(self, fixed_point: FixedPoint) -> float:
        deviation = self.noise_deviation(fixed_point.n_owners) * math.sqrt(self.poly_degree / 2)
        return self.scale / 2 / (self.DEVIATIONS * deviation)


def choose(scheme: Scheme, fixed_point: FixedPoint) -> Parameters:
    """The parameters with the smallest ciphertexts that hold every sum of ``fixed_point.n_owners`` updates exactly.

    Raises:
        ConfigError: none does.
    """
    for bits in DATA_BITS:
        parameters = _fitting(scheme, bits, fixed_point)
        if parameters.margin(fixed_point) >= 1:
            return parameters
    raise ConfigError(
        f"sums of {fixed_point.sum_bound.bit_length() + 1} bits from {fixed_point.n_owners} owners under {scheme}",
        f"sums that a {DATA_BITS[-1]}-bit prime holds exactly beside their noise",
        "raise protection.precision, lower protection.clip, take fewer owners a round, or use masked protection",
    )


def _fitting(scheme: Scheme, data_bits: int, fixed_point: FixedPoint) -> Parameters:
    bits = (data_bits, SPECIAL_BITS)
    step = 2 * POLY_DEGREE
    chain = [primes.largest(length, step) for length in bits]
    if scheme == "bfv":
        return BfvParameters(POLY_DEGREE, bits, primes.smallest_above(2 * fixed_point.sum_bound, step, chain))
    return CkksParameters(POLY_DEGREE, bits, HEADROOM * chain[0] / 2 / fixed_point.sum_bound)
