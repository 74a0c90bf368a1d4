"""Updates as integers, so that sums are exact, alike under every protection, and free of the order of arrival.

An update becomes ``[w / w_bound * delta, w]`` in multiples of a step. The weight rides inside the vector, in limbs
that are no larger than any other value, so that it is hidden as the delta is. No sum of up to ``n_owners`` updates can
leave the ring: what could is refused before.

Stochastic rounding (Gupta et al. 2015, *Deep Learning with Limited Numerical Precision*) keeps sums unbiased. It draws
16 bits a value from AES-128 in counter mode under a public key of (seed, round, owner): a replayed run gives the same
bits under any protection. It hides nothing and need not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedray import seeds
from fedray.errors import ConfigError, RoundAbandoned, UpdateRefused
from fedray.protection.encoding import Ring, Signed, require_vector
from fedray.values import Assignment, Payload, Total, Update, Vector

WEIGHT_BITS = 24
"""A cohort's weights sum up to at most 2**24."""
WEIGHT_BOUND = 2**WEIGHT_BITS
PIECE = 2**15
"""Values that are worked on at a time, so that they stay in the cache."""

_SMALLEST = 2.0**-64


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How updates of one federation become integers; public, and the same for everyone.

    Args:
        n_values: length of an update.
        n_owners: most updates in one sum.
        clip: largest absolute value of an update.
        precision: the step is the largest power of two up to this.

    Raises:
        ConfigError: not even the 32-bit ring holds a sum.
    """

    n_values: int
    n_owners: int
    clip: float
    precision: float

    def __post_init__(self) -> None:
        if not (_SMALLEST < self.precision < 1 / _SMALLEST and self.clip < 1 / _SMALLEST):
            raise ConfigError(
                f"protection.clip {self.clip:g} at protection.precision {self.precision:g}",
                "settings near those of your updates",
                "leave them out: the defaults are 8 and 1e-5",
            )
        if not self._fits(self.step):
            raise ConfigError(
                f"protection.clip {self.clip:g} at protection.precision {self.precision:g} for {self.n_owners} owners, "
                f"which takes {self.sum_bound.bit_length() + 1} bits",
                "sums within 32 bits",
                f"raise protection.precision to {1.01 * self._finest_step():.3g}, lower protection.clip, or take fewer "
                "owners a round",
            )

    def _fits(self, step: float) -> bool:
        return 2 * self.n_owners * math.ceil(self.clip / step) < 2**32

    def _finest_step(self) -> float:
        """The smallest power of two with which sums fit."""
        step = self.step
        while not self._fits(step):
            step *= 2
        return step

    @property
    def step(self) -> float:
        """Value of one unit in an update of full weight: a power of two."""
        _, exponent = math.frexp(self.precision)
        return math.ldexp(1.0, exponent - 1)

    @property
    def value_bound(self) -> int:
        """Largest absolute integer in an encoded update."""
        return math.ceil(self.clip / self.step)

    @property
    def sum_bound(self) -> int:
        """Largest absolute integer in a sum."""
        return self.n_owners * self.value_bound

    @property
    def ring(self) -> Ring:
        """The narrower of the two rings that holds every sum, signed."""
        return np.uint16 if 2 * self.sum_bound < 2**16 else np.uint32

    @property
    def limb_bits(self) -> int:
        """Bits of a weight's limb: none of its values passes ``value_bound``."""
        return max(1, (self.value_bound + 1).bit_length() - 1)

    @property
    def n_limbs(self) -> int:
        """Limbs of a weight."""
        return -(-(WEIGHT_BITS + 1) // self.limb_bits)

    @property
    def length(self) -> int:
        """Integers in an encoded update: values, then the weight's limbs, lowest first."""
        return self.n_values + self.n_limbs

    def pieces(self, update: Update, assignment: Assignment, seed: int) -> Iterator[tuple[slice, NDArray[np.int32]]]:
        """The encoded update piece by piece; each is valid until the next is asked for.

        Raises:
            UpdateRefused: see ``require``.
        """
        self.require(update, assignment.weight_bound)
        factor = update.weight / assignment.weight_bound / self.step
        rounding = _Rounding(seeds.key(seed, "rounding", assignment.plan.round, assignment.owner))
        for start in range(0, self.n_values, PIECE):
            part = slice(start, min(start + PIECE, self.n_values))
            yield part, rounding.rounded(update.delta[part], factor)
        yield slice(self.n_values, self.length), self._limbs(update.weight)

    def encode(self, update: Update, assignment: Assignment, seed: int) -> Payload:
        """The encoded update in the ring, shape ``(length,)``; negative numbers wrap around.

        Raises:
            UpdateRefused: see ``require``.
        """
        encoded = np.empty(self.length, dtype=self.ring)
        for part, piece in self.pieces(update, assignment, seed):
            np.copyto(encoded[part], piece, casting="unsafe")
        return encoded

    def check_readable(self, payload: Payload) -> None:
        """Refuse a vector that ``encode`` cannot have made, where it can be read.

        Raises:
            UpdateRefused: wrong type or shape, or a value or weight beyond its bound.
        """
        self.check(payload)
        signed = self.signed(payload)
        if _largest(signed) > self.value_bound:
            raise UpdateRefused("a value beyond its bound", f"at most {self.value_bound} units", "check the owner")
        if not 1 <= (weight := self._weight(signed)) <= WEIGHT_BOUND:
            raise UpdateRefused(f"a weight of {weight}", f"1 to {WEIGHT_BOUND}", "check the owner")

    def check(self, payload: Payload) -> None:
        """Refuse an array that is no vector of this ring.

        Raises:
            UpdateRefused: wrong type or shape.
        """
        require_vector(payload, self.ring, self.length)

    def signed(self, ring_sum: Payload) -> Signed:
        """A sum in the ring as signed integers, without a copy."""
        return ring_sum.view(np.int16 if self.ring is np.uint16 else np.int32)

    def decode(self, summed: Signed, weight_bound: int) -> Total:
        """The sum in the clear, from signed integers of shape ``(length,)``.

        Raises:
            RoundAbandoned: the sum is one that ``encode`` cannot give; an owner sent something else.
        """
        weight = self._weight(summed)
        is_bounded = _largest(summed) <= self.sum_bound
        if not 1 <= weight <= WEIGHT_BOUND or not is_bounded:
            raise RoundAbandoned(
                f"a sum of weight {weight}" if is_bounded else "a sum beyond its bound",
                f"weights of 1 to {WEIGHT_BOUND} and values within {self.sum_bound} units",
                "find the owner that runs other code, or set strategy.weighting: uniform",
            )
        values = np.multiply(summed[: self.n_values], self.step * weight_bound, dtype=np.float64)
        return Total(weighted_sum=values, weight=weight)

    def _weight(self, signed: Signed) -> int:
        limbs = [int(limb) for limb in signed[self.n_values :]]
        return sum(limb << (self.limb_bits * position) for position, limb in enumerate(limbs))

    def _limbs(self, weight: int) -> NDArray[np.int32]:
        mask = (1 << self.limb_bits) - 1
        limbs = [(weight >> (self.limb_bits * position)) & mask for position in range(self.n_limbs)]
        return np.array(limbs, dtype=np.int32)

    def require(self, update: Update, weight_bound: int) -> None:
        """Refuse what cannot be encoded.

        Raises:
            UpdateRefused: the delta is non-finite, misshapen or beyond ``clip``, or the weight beyond its bound.
        """
        if update.delta.shape != (self.n_values,):
            raise UpdateRefused(f"an update of shape {update.delta.shape}", f"({self.n_values},)", "check the task")
        if not 1 <= update.weight <= weight_bound:
            raise UpdateRefused(
                f"an update of weight {update.weight}", f"a weight of 1 to {weight_bound}", "check the task"
            )
        lowest, highest = float(update.delta.min(initial=0.0)), float(update.delta.max(initial=0.0))
        if not (math.isfinite(lowest) and math.isfinite(highest)):
            raise UpdateRefused("a non-finite update", "finite values only", "lower the learning rate")
        if lowest < -self.clip or highest > self.clip:
            raise UpdateRefused(
                f"an update with values beyond +-{self.clip:g}, protection.clip",
                f"values within +-{self.clip:g}",
                "lower the learning rate, or raise protection.clip",
            )


class _Rounding:
    """Stochastic rounding of one vector, piece by piece, in buffers that stay in the cache."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._zeros = bytes(2 * PIECE)
        self._bytes = np.empty(2 * PIECE, dtype=np.uint8)
        self._scaled = np.empty(PIECE)
        self._draws = np.empty(PIECE)
        self._integers = np.empty(PIECE, dtype=np.int32)

    def rounded(self, values: Vector, factor: float) -> NDArray[np.int32]:
        """``floor(values * factor + u)`` with fresh u in [0, 1); valid until the next call."""
        n = len(values)
        scaled, draws, integers = self._scaled[:n], self._draws[:n], self._integers[:n]
        self._stream.update_into(memoryview(self._zeros)[: 2 * n], self._bytes.data[: 2 * n])
        np.copyto(draws, self._bytes[: 2 * n].view("<u2"))
        draws *= 2.0**-16
        np.copyto(scaled, values)
        scaled *= factor
        scaled += draws
        np.copyto(integers, np.floor(scaled, out=scaled), casting="unsafe")
        return integers


def _largest(signed: Signed) -> int:
    """Largest absolute value; the weight is always there, so that there is one."""
    return max(int(signed.max()), -int(signed.min()))


def power_of_two_from(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()
