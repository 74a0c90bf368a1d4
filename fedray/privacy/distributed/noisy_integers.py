"""Updates as noisy integers: each owner rotates, rounds and adds its share of the noise, and the sum is private.

Kairouz, Liu, Steinke 2021, *The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation*, Algorithms 1 (owner) and 2 (server); the same with Skellam noise in Agarwal, Kairouz, Liu 2021, *The
Skellam Mechanism for Differentially Private Federated Learning*. Deviations: the rotation is padded to a power of two;
clipping is the caller's; one rotation serves the whole run.

One rotation is sound for privacy: signs are public and independent of the data, and every bound on privacy holds for
any signs, since a rotation changes no norm and the norm is enforced after it, in integers. Only that no sum wraps
around rests on signs being random (see ``wrapping``); later updates depend on them through earlier noise alone.

Noise and coins are the operating system's randomness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray import seeds
from fedray.errors import ConfigError, RoundAbandoned, UpdateRefused
from fedray.privacy.distributed import rounding, wrapping
from fedray.privacy.distributed.laws import Noise
from fedray.privacy.distributed.rotation import Rotation
from fedray.privacy.distributed.streams import Stream
from fedray.protection.encoding import Ring, Signed, require_vector
from fedray.protection.fixed_point import PIECE
from fedray.values import Assignment, Payload, Total, Update

NORM_BOUND = 1 + 1e-6
"""Updates have an L2 norm of at most 1, but for the rounding of whoever normalised them."""
SMALLEST_SIGMA = 3.0
"""Least noise of one owner, in integer steps: a sum of discrete Gaussians is then nearly one (see ``bounds``)."""
FINEST = 2.0**-30
"""Finest granularity: squared norms stay within 63 bits."""


@dataclass(frozen=True, slots=True)
class NoisyIntegers:
    """An encoding (see ``protection.encoding``) of one federation's updates; public, and the same for everyone.

    Args:
        n_values: length of an update.
        n_owners: most updates in one sum.
        granularity: value of one integer step.
        noise: one owner's share in each coordinate, in integer steps.
        rotation_key: 16 bytes that the rotation is drawn from; public.
        unsafe_replay_seed: draw noise and coins from this instead, for tests: whoever knows it can subtract them.

    Raises:
        ConfigError: the noise is too small, the granularity too fine, or no ring holds a sum.
    """

    n_values: int
    n_owners: int
    granularity: float
    noise: Noise
    rotation_key: bytes
    unsafe_replay_seed: int | None = None

    def __post_init__(self) -> None:
        if self.noise.sigma < SMALLEST_SIGMA or self.granularity < FINEST:
            raise ConfigError(
                f"noise of {self.noise.sigma:.3g} steps of {self.granularity:.3g}",
                f"at least {SMALLEST_SIGMA:g} steps of at least {FINEST:.3g}",
                "let fedray choose the granularity",
            )
        if self.sum_bound >= 2**31:
            raise ConfigError(
                f"sums of {self.n_owners} owners that reach {self.sum_bound:.3g} steps",
                f"at most {2**31 - 1}",
                "take a coarser granularity, or fewer owners a round",
            )

    @property
    def rotation(self) -> Rotation:
        return Rotation(self.rotation_key, self.n_values)

    @property
    def squared_l2_bound(self) -> int:
        """Largest squared L2 norm of one owner's integers, before noise."""
        return rounding.squared_l2_bound(NORM_BOUND / self.granularity, self.rotation.length)

    @property
    def sum_bound(self) -> int:
        """What no coordinate of a sum passes in absolute value, but for one round in a million."""
        return wrapping.largest_sum(NORM_BOUND / self.granularity, self.rotation.length, self.n_owners, self.noise)

    @property
    def ring(self) -> Ring:
        """The narrower of the two rings that holds every sum, signed."""
        return np.uint16 if self.sum_bound < 2**15 else np.uint32

    @property
    def length(self) -> int:
        """Integers in an encoded update: rotated values, then a one that counts it."""
        return self.rotation.length + 1

    @property
    def noise_variance(self) -> float:
        """Variance of one owner's noise in each value of the sum."""
        return self.granularity**2 * self.noise.table.variance

    @property
    def rounding_error(self) -> float:
        """Bound on the mean square of one owner's rounding error, over the variance of its noise."""
        return 1 / (4 * (1 - rounding.BETA) * self.noise.table.variance)

    def pieces(self, update: Update, assignment: Assignment, seed: int) -> Iterator[tuple[slice, NDArray[np.int32]]]:  # noqa: ARG002  # noise must not follow from it
        """The encoded update piece by piece; each is valid until the next is asked for.

        Every call draws fresh noise: an owner that sends two encodings of one update halves the noise.

        Raises:
            UpdateRefused: see ``require``.
        """
        self.require(update, assignment.weight_bound)
        rotated = self.rotation.forward(update.delta)
        coins, noise = self._stream("coins", assignment), self._stream("noise", assignment)
        integers = rounding.rounded(rotated, 1 / self.granularity, self.squared_l2_bound, coins)
        table = self.noise.table
        for start in range(0, len(integers), PIECE):
            part = slice(start, min(start + PIECE, len(integers)))
            integers[part] += table.draw(noise, part.stop - start)
            yield part, integers[part]
        yield slice(len(integers), self.length), np.ones(1, dtype=np.int32)

    def encode(self, update: Update, assignment: Assignment, seed: int) -> Payload:
        """The encoded update in the ring, shape ``(length,)``; what passes its ends wraps around.

        Raises:
            UpdateRefused: see ``require``.
        """
        encoded = np.empty(self.length, dtype=self.ring)
        for part, piece in self.pieces(update, assignment, seed):
            np.copyto(encoded[part], piece, casting="unsafe")
        return encoded

    def require(self, update: Update, weight_bound: int) -> None:  # noqa: ARG002  # owners count alike
        """Refuse what cannot be encoded.

        Raises:
            UpdateRefused: the delta is non-finite, misshapen or longer than 1, or the weight is not 1.
        """
        if update.delta.shape != (self.n_values,):
            raise UpdateRefused(f"an update of shape {update.delta.shape}", f"({self.n_values},)", "check the task")
        if update.weight != 1:
            raise UpdateRefused(f"an update of weight {update.weight}", "1", "set strategy.weighting: uniform")
        norm = math.sqrt(np.dot(update.delta, update.delta.astype(np.float64)))
        if not math.isfinite(norm):
            raise UpdateRefused("a non-finite update", "finite values only", "lower the learning rate")
        if norm > NORM_BOUND:
            raise UpdateRefused(f"an update of norm {norm:.9g}", "at most 1", "clip the update")

    def check(self, payload: Payload) -> None:
        """Refuse an array that is no vector of this ring.

        Raises:
            UpdateRefused: wrong type or shape.
        """
        require_vector(payload, self.ring, self.length)

    def check_readable(self, payload: Payload) -> None:
        """Refuse a vector that ``encode`` cannot have made, where it can be read; noise may take any value.

        Raises:
            UpdateRefused: wrong type or shape, or it counts as more or less than one.
        """
        self.check(payload)
        if (count := int(payload[-1])) != 1:
            raise UpdateRefused(f"an update that counts as {count}", "1", "check the owner")

    def signed(self, ring_sum: Payload) -> Signed:
        """A sum in the ring as signed integers, without a copy."""
        return ring_sum.view(np.int16 if self.ring is np.uint16 else np.int32)

    def decode(self, summed: Signed, weight_bound: int) -> Total:  # noqa: ARG002  # owners count alike
        """The noisy sum of the owners' vectors, and their number, from signed integers of shape ``(length,)``.

        Raises:
            RoundAbandoned: the sum does not count from 1 to ``n_owners`` updates.
        """
        count = int(summed[-1])
        if not 1 <= count <= self.n_owners:
            raise RoundAbandoned(
                f"a sum of {count} updates", f"1 to {self.n_owners}", "find the owner that runs other code"
            )
        rotated = np.multiply(summed[:-1], self.granularity, dtype=np.float64)
        values = self.rotation.backward(rotated).astype(np.float64, copy=False)
        return Total(weighted_sum=values, weight=count)

    def _stream(self, purpose: str, assignment: Assignment) -> Stream:
        """Fresh randomness of the operating system, unless a test asks for replay."""
        if self.unsafe_replay_seed is None:
            return Stream()
        return Stream(seeds.key(self.unsafe_replay_seed, purpose, assignment.plan.round, assignment.owner))
