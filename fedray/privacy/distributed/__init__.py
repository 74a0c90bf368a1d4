"""Distributed differential privacy: every owner adds a share of integer noise, and only the sum is ever read."""

from fedray.privacy.distributed.bounds import draws_error, event
from fedray.privacy.distributed.choose import choose
from fedray.privacy.distributed.noisy_integers import NoisyIntegers

__all__ = ["NoisyIntegers", "choose", "draws_error", "event"]
