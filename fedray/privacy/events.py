"""What a release of a mechanism is, for whoever accounts for it: frozen data that a ledger can keep.

Every event bounds what one unit (an example, or a whole owner) changes, for neighbours of which one has nothing in the
unit's place ("zero-out"). Noise multipliers are deviations of the noise over the norm that one unit's part is clipped
to. An event at the level of owners is written at the level of examples by ``at_example_level``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Distance = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]

Unit = Literal["example", "owner"]
"""What is protected: one training row of an owner, or all that an owner has."""


class _Event(msgspec.Struct, frozen=True, tag_field="name", forbid_unknown_fields=True, order=True):
    pass


class Gaussian(_Event, frozen=True, tag="gaussian"):
    """A sum with Gaussian noise, or with discrete noise that has no larger loss."""

    noise_multiplier: Positive


class SampledGaussian(_Event, frozen=True, tag="sampled_gaussian"):
    """The same over a Poisson sample: every unit is in it with the same probability, secretly and independently."""

    sample_rate: Rate
    noise_multiplier: Positive


class FixedSizeGaussian(_Event, frozen=True, tag="fixed_size_gaussian"):
    """The same over a secret sample of fixed size, drawn without replacement."""

    population: Count
    size: Count
    noise_multiplier: Positive


class Tree(_Event, frozen=True, tag="tree"):
    """All prefix sums of one tree (Kairouz et al. 2021) in which a unit takes part once; noise is a node's."""

    noise_multiplier: Positive
    n_steps: Count


class Concentrated(_Event, frozen=True, tag="concentrated"):
    """A mechanism of zero-concentrated differential privacy rho (Bun and Steinke 2016).

    Attributes:
        rho: bound of its Renyi divergences over their orders.
        failure: how far, in total variation, what is really drawn is from the law that ``rho`` holds for.
    """

    rho: Positive
    failure: Distance = 0.0


class Skellam(_Event, frozen=True, tag="skellam"):
    """A sum of integer vectors with Skellam noise (Agarwal et al. 2021).

    Attributes:
        l1: largest L1 norm of one unit's part.
        l2: largest L2 norm of one unit's part.
        variance: of the noise in each coordinate of the sum.
        failure: how far, in total variation, what is really drawn is from that law.
    """

    l1: Positive
    l2: Positive
    variance: Positive
    failure: Distance = 0.0


class RandomisedResponse(_Event, frozen=True, tag="randomised_response"):
    """A class that is kept, or becomes another one (Warner 1965): pure differential privacy for a replaced class.

    Attributes:
        epsilon: logarithm of how much likelier the true class is than each other.
        n_classes: how many there are.
    """

    epsilon: Positive
    n_classes: Annotated[int, Meta(ge=2)]


Event = Gaussian | SampledGaussian | FixedSizeGaussian | Tree | Concentrated | Skellam | RandomisedResponse


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """An event that happens ``count`` times.

    Attributes:
        event: what is released.
        count: how often; may be 0 once a charge has been settled.
    """

    event: Event
    count: Annotated[int, Meta(ge=0)] = 1


def at_example_level(event: Event) -> Event:
    """An event of owners as one of examples: a changed row can move its owner's part by twice the clip.

    Amplification by sampling is given up, since it is known for parts that appear or vanish only. Randomised response
    bounds what any change does, and stays as it is.
    """
    match event:
        case Gaussian(z) | SampledGaussian(_, z) | FixedSizeGaussian(_, _, z):
            return Gaussian(z / 2)
        case Tree(z, n_steps):
            return Tree(z / 2, n_steps)
        case Concentrated(rho, failure):
            return Concentrated(4 * rho, failure)
        case Skellam(l1, l2, variance, failure):
            return Skellam(2 * l1, 2 * l2, variance, failure)
        case RandomisedResponse():
            return event
