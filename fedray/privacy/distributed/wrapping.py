"""How large a coordinate of the noisy sum can get, so that a ring holds it.

Let n owners hold x_i with norms of at most c, and write g for the granularity, d for the padded length, U for the
rotation. Before the ring, coordinate j of the sum is

    S_j = (U sum_i x_i)_j / g  +  sum_i (noise of owner i)_j  +  sum_i (rounding error of owner i)_j.

1. The sum v = sum_i x_i has a norm of at most n c. With random signs s, (U v)_j = d**-1/2 sum_k +-s_k v_k, so by
   Hoeffding's lemma ``log E exp(t (U v)_j) <= t**2 (n c)**2 / (2 d)``.
2. Noise is independent of the signs, and of owner to owner: ``log E exp(t sum) <= n K(t)``, with K the noise's
   ``log_moment``.
3. A rounding error is less than 1, conditioned or not, so that all together move a coordinate by less than n.

By Chernoff's bound on both sides and a union over d coordinates, |S_j| reaches n + a for some j with a probability of
at most ``2 d exp(-t a + t**2 (n c / g)**2 / (2 d) + n K(t))`` for any t > 0; that is p for

    a = (log(2 d / p) + t**2 (n c / g)**2 / (2 d) + n K(t)) / t,

and t is taken where this would be least for Gaussian noise. The bound is one of accuracy: privacy holds however the
signs fall, and a sum that wraps around gives nothing away that the sum does not. It supposes updates that were not made
with the signs in mind.
"""

from __future__ import annotations

import math

from fedray.privacy.distributed.laws import Noise

PROBABILITY = 1e-6
"""Of a sum that wraps around anywhere, in one round."""


def largest_sum(norm: float, length: int, n_owners: int, noise: Noise, probability: float = PROBABILITY) -> int:
    """What no coordinate of the sum passes in absolute value, but for ``probability``.

    Args:
        norm: bound on the L2 norm of one owner's vector, in integer steps.
        length: coordinates after padding.
        n_owners: most vectors in a sum.
        noise: of each owner.
        probability: of the opposite.
    """
    proxy = (n_owners * norm) ** 2 / length
    budget = math.log(2 * length / probability)
    rate = math.sqrt(2 * budget / (proxy + n_owners * noise.sigma**2))
    deviation = (budget + rate**2 * proxy / 2 + n_owners * noise.log_moment(rate)) / rate
    return n_owners + math.ceil(deviation)
