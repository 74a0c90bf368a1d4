"""Who takes part in a round, and who of them is slow: pure functions of (seed, round), known before the run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedray import seeds
from fedray.config.learning import Cyclic, EveryOwner, FixedSize, Selection, Stragglers
from fedray.values import Assignment, RoundPlan, Work


def cohort_of_round(selection: Selection, owners: Sequence[str], seed: int, round: int) -> tuple[str, ...]:
    """Names of the owners that take part, sorted."""
    draw = seeds.generator(seed, "cohort", round)
    match selection:
        case EveryOwner():
            return tuple(sorted(owners))
        case FixedSize():
            return tuple(sorted(draw.choice(sorted(owners), selection.size, replace=False).tolist()))
        case Cyclic():
            return _in_turn(owners, selection.size, seed, round)
        case _:
            return tuple(name for name in sorted(owners) if draw.random() < selection.rate)


def _in_turn(owners: Sequence[str], size: int, seed: int, round: int) -> tuple[str, ...]:
    """The next ``size`` owners of a circle."""
    circle = seeds.generator(seed, "circle").permutation(sorted(owners)).tolist()
    first = (round - 1) * size
    return tuple(sorted(circle[place % len(circle)] for place in range(first, first + size)))


def planned_rounds(selection: Selection, owners: Sequence[str], seed: int, rounds: int) -> dict[str, int]:
    """How often each owner will take part over a whole run: what its privacy budget is calibrated for."""
    taken = Counter(name for round in range(1, rounds + 1) for name in cohort_of_round(selection, owners, seed, round))
    return {name: taken[name] for name in owners}


def assignments(
    plan: RoundPlan, cohort: Sequence[str], stragglers: Stragglers, deadline_s: float | None, seed: int
) -> list[Assignment]:
    """The plan for each owner of the cohort; slow ones get 1 to (full - 1) epochs or steps, uniformly.

    As in the code of Li et al. 2020, ``round(fraction_fast * size)`` owners are fast.
    """
    draw = seeds.generator(seed, "stragglers", plan.round)
    n_fast = round(len(cohort) * (1 - stragglers.fraction))
    fast = set(draw.permutation(len(cohort))[:n_fast].tolist())
    amounts = [
        plan.work.amount if position in fast else int(draw.integers(1, plan.work.amount))
        for position in range(len(cohort))
    ]
    return [
        Assignment(owner, plan, Work(amount, plan.work.unit), deadline_s)
        for owner, amount in zip(cohort, amounts, strict=True)
    ]
