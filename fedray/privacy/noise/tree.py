"""Noise of the nodes of binary trees: DP-FTRL's.

P. Kairouz, B. McMahan, S. Song, O. Thakkar, A. Thakurta, Z. Xu, *Practical and Private (Deep) Learning without Sampling
or Shuffling*, ICML 2021, Algorithm 1 with restarts (Appendix D); the tree is that of C. Dwork et al., *Differential
Privacy under Continual Observation*, STOC 2010, and T.-H. H. Chan, E. Shi, D. Song, *Private and Continual Release of
Statistics*, 2011.

The rounds of a tree are its leaves, and a node stands for the sum over the leaves under it, with its own noise. The
sum of rounds 1 to t is that of one node for each binary digit of t that is set. A round is under at most as many of
these nodes as the number of leaves has binary digits, and the first round is.

Where this differs from the paper: no variance reduction (J. Honaker, *Efficient Use of Differentially Private Binary
Trees*, 2015), and no virtual rounds that complete a tree before a restart (Appendix D too). Without the latter a
finished tree of ``m`` rounds leaves the noise of as many nodes as ``m`` has set digits: powers of two are best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.privacy.events import Charge, Tree
from fedray.privacy.noise import limits
from fedray.privacy.noise.protocol import Draw
from fedray.protocols import State


@dataclass(frozen=True, slots=True)
class TreeNoise:
    """The noise of a round is the difference of what its prefix sum has and what the one before had.

    A round whose number in its tree ends in ``level`` binary zeros finishes a node of that level. Its noise replaces
    that of the latest node of each lower level, all of the same tree.

    Args:
        noise_multiplier: deviation of a node's noise over the norm of one part.
        n_rounds: rounds of the run.
        restart_every: rounds of a tree; the last may have fewer.
        max_participations: most rounds that one owner takes part in: in a tree at most once, which their separation by
            ``restart_every`` rounds ensures.

    Raises:
        ConfigError: the noise multiplier is not positive, a tree has more rounds than the run, or there are more
            participations than trees.
    """

    noise_multiplier: float
    n_rounds: int
    restart_every: int
    max_participations: int

    def __post_init__(self) -> None:
        limits.check_noise_multiplier(self.noise_multiplier)
        limits.check_within("restart_every", self.restart_every, self.n_rounds)
        limits.check_participations(
            self.max_participations, limits.most_participations(self.n_rounds, self.restart_every)
        )

    @property
    def separation(self) -> int:
        return self.restart_every

    def init(self, n_values: int) -> State:
        """The noise of the latest node of each level, leaves first: shape ``(n_levels, n_values)``."""
        return {"round": np.zeros(1), "nodes": np.zeros((self.restart_every.bit_length(), n_values))}

    def next(self, state: State, draw: Draw) -> tuple[State, NDArray[np.float64]]:
        passed = limits.rounds_before(state, self.n_rounds)
        level = _lowest_digit(passed % self.restart_every + 1)
        nodes = state["nodes"].copy()
        replaced = nodes[:level].sum(axis=0)
        nodes[level] = self.noise_multiplier * draw(nodes.shape[1])
        noise = nodes[level] - replaced
        return {"round": np.full(1, passed + 1.0), "nodes": nodes}, noise

    def charges(self) -> tuple[Charge, ...]:
        n_full, n_leaves_left = divmod(self.n_rounds, self.restart_every)
        in_full = min(self.max_participations, n_full)
        trees = [(self.restart_every, in_full), (n_leaves_left, self.max_participations - in_full)]
        return tuple(Charge(Tree(self.noise_multiplier, n_leaves), count) for n_leaves, count in trees if count)

    def prefix_variances(self, n_rounds: int) -> NDArray[np.float64]:
        limits.check_within("n_rounds", n_rounds, self.n_rounds)
        finished, leaves = np.divmod(np.arange(1, n_rounds + 1), self.restart_every)
        n_nodes = finished * self.restart_every.bit_count() + np.bitwise_count(leaves)
        return self.noise_multiplier**2 * n_nodes.astype(np.float64)


def _lowest_digit(number: int) -> int:
    """Place of the lowest binary digit that is set."""
    return (number & -number).bit_length() - 1
