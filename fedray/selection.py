"""Who takes part in a round, and who of them is slow: pure functions of (seed, round), known before the run starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedray import seeds
from fedray.config.experiment import Evaluation
from fedray.config.learning import Cyclic, EveryOwner, FixedSize, Selection, Stragglers
from fedray.values import Assignment, Population, RoundPlan, Work


def cohort_of_round(selection: Selection, owners: Sequence[str], seed: int, round: int) -> tuple[str, ...]:
    """Names of the owners that take part, ascending; names that are put together on demand come so already."""
    owners = sorted(owners) if isinstance(owners, list | tuple) else owners
    draw = seeds.generator(seed, "cohort", round)
    match selection:
        case EveryOwner():
            return tuple(owners)
        case FixedSize():
            return _named(owners, draw.choice(len(owners), selection.n_asked, replace=False))
        case Cyclic():
            return _in_turn(owners, selection.size, seed, round)
        case _:
            return _named(owners, np.flatnonzero(draw.random(len(owners)) < selection.rate))


def _named(owners: Sequence[str], places: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(owners[place] for place in np.sort(places).tolist())


def _in_turn(owners: Sequence[str], size: int, seed: int, round: int) -> tuple[str, ...]:
    """The next ``size`` owners of a circle."""
    circle = seeds.generator(seed, "circle").permutation(len(owners))
    return _named(owners, circle.take(np.arange((round - 1) * size, round * size), mode="wrap"))


def planned_rounds(selection: Selection, owners: Sequence[str], seed: int, rounds: int) -> Counter[str]:
    """How often each owner will take part over a whole run: what its privacy budget is calibrated for."""
    return Counter(name for round in range(1, rounds + 1) for name in cohort_of_round(selection, owners, seed, round))


def evaluated(evaluation: Evaluation, population: Population, seed: int, round: int) -> Sequence[str]:
    """Names of the owners whose held-out rows the model is evaluated on after a round."""
    names = population.names
    if evaluation.owners is None or evaluation.owners >= len(names):
        return names
    draw = seeds.generator(seed, "evaluated", round)
    return _named(names, draw.choice(len(names), evaluation.owners, replace=False))


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
