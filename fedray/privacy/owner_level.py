"""Owner-level differential privacy: the owner's half bounds its part in a sum, the server's half noises the sum.

H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
Algorithm 1 with the fixed-denominator estimator: the sum is divided by what is expected, never by what came, so that
one owner moves the mean by no more than clip over the expected weight. Every round releases a noised sum, also where
no update came: which owners were there is not to be told by a model that stands still.

Where owners add the noise themselves (distributed and local privacy) the server's half adds none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ProtocolError, UpdateRefused
from fedray.privacy.account import Account
from fedray.privacy.clipping import Clipping
from fedray.privacy.costs import Cost
from fedray.privacy.noise import Draw, Noise
from fedray.privacy.parts import UNCLIPPED, Parts
from fedray.protocols import State
from fedray.values import Released, RoundPlan, Total, Update

_NOISE = "noise."


class BoundedContribution:
    """The owner's half.

    Args:
        parts: what the owner's vector is made of.
        cost: what taking part costs.
        account: the owner's account of this run.
        weight_bound: largest weight of an update.
    """

    def __init__(self, parts: Parts, cost: Cost, account: Account, weight_bound: int) -> None:
        self._parts = parts
        self._cost = cost
        self._account = account
        self._weight_bound = weight_bound

    def charge(self, round: int) -> None:
        self._cost.take_part(self._account, round)

    def bounded(self, update: Update, plan: RoundPlan, metrics: Callable[[], Mapping[str, float]]) -> Update:
        """The update as a vector of norm at most 1, its weight within the bound.

        Raises:
            UpdateRefused: it is not finite.
            ProtocolError: the plan holds no clip.
        """
        if plan.clip is None or not plan.clip > 0:
            raise ProtocolError(f"a clip of {plan.clip}", "a norm above 0", "suspect a server that lies")
        norm = float(np.linalg.norm(update.delta.astype(np.float64)))
        if not np.isfinite(norm):
            raise UpdateRefused("a non-finite update", "finite values only", "lower the learning rate")
        statistics = {UNCLIPPED: float(norm <= plan.clip)}
        if any(name != UNCLIPPED for name, _ in self._parts.statistics):
            statistics |= metrics()
        packed = self._parts.pack(update.delta, plan.clip, statistics)
        return replace(update, delta=packed, weight=min(update.weight, self._weight_bound))


@dataclass(frozen=True)
class OwnerLevelMechanism:
    """The server's half.

    Attributes:
        parts: what an owner's vector is made of.
        first_clip: norm that updates are clipped to in the first round.
        clipping: how the norm moves.
        noise: what the server adds to sums of sensitivity 1; None where owners add it.
        draw: standard normal values from a secret generator.
        rounding: how much encoding can lengthen a vector of norm 1.
        weight_bound: largest weight of an update.
        expected_weight: weight that a round is expected to sum up.
    """

    parts: Parts
    first_clip: float
    clipping: Clipping
    noise: Noise | None
    draw: Draw
    rounding: float
    weight_bound: int
    expected_weight: float

    def init(self) -> State:
        noise = self.noise.init(self.parts.length) if self.noise else {}
        return {"clip": np.array([self.first_clip]), **{_NOISE + name: array for name, array in noise.items()}}

    def plan(self, state: State, plan: RoundPlan) -> RoundPlan:
        return replace(plan, clip=float(state["clip"][0]))

    def release(self, state: State, plan: RoundPlan, total: Total | None) -> tuple[State, Released | None]:
        if self.noise is None and total is None:
            return state, None
        assert plan.clip is not None
        noise_state, noised = self._noised(state, total)
        mean, statistics = self.parts.unpack(noised, plan.clip, self.expected_weight / self.weight_bound)
        clip = self.clipping.next(plan.clip, statistics.pop(UNCLIPPED, None))
        return {**noise_state, "clip": np.array([clip])}, Released(mean, statistics)

    def _noised(self, state: State, total: Total | None) -> tuple[State, NDArray[np.float64]]:
        """The sum of vectors of weight at most 1, with this round's noise."""
        summed = np.zeros(self.parts.length) if total is None else total.weighted_sum / self.weight_bound
        if self.noise is None:
            return {}, summed
        before = {name.removeprefix(_NOISE): state[name] for name in state if name.startswith(_NOISE)}
        after, noise = self.noise.next(before, self.draw)
        return {_NOISE + name: array for name, array in after.items()}, summed + (1 + self.rounding) * noise
