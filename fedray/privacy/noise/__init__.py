"""Noise for sums that are released round after round: nobody's part in them need be sampled to be private.

A server that owners trust with the noise releases ``g_t + w_t``. Training adds up what is released, so what matters is
the noise in prefix sums ``w_1 + ... + w_t``. Noise that is correlated over rounds leaves less there, at the same
privacy, provided that an owner's parts are some rounds apart.
"""

from fedray.privacy.noise.banded import BandedNoise
from fedray.privacy.noise.independent import Independent
from fedray.privacy.noise.limits import most_participations
from fedray.privacy.noise.protocol import Draw, Noise
from fedray.privacy.noise.tree import TreeNoise

__all__ = ["BandedNoise", "Draw", "Independent", "Noise", "TreeNoise", "most_participations"]
