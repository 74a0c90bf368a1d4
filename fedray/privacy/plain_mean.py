"""The server's half where no noise is added to sums: the mean, as it is."""

from __future__ import annotations

from fedray.protocols import State
from fedray.values import Released, RoundPlan, Total


class PlainMean:
    """Releases what the cohort's updates are on the weighted mean."""

    def init(self) -> State:
        return {}

    def plan(self, state: State, plan: RoundPlan) -> RoundPlan:  # noqa: ARG002  # see the protocol
        return plan

    def release(self, state: State, plan: RoundPlan, total: Total | None) -> tuple[State, Released | None]:  # noqa: ARG002
        return state, None if total is None else Released(total.mean)
