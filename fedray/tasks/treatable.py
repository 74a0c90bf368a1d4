"""Whether owners can be trained together and come out as each would alone: found by trying, on made-up rows."""

from __future__ import annotations

import math
import warnings

import numpy as np

from fedray.errors import FedrayError, ModelError
from fedray.tasks import made_up
from fedray.tasks.losses import per_row
from fedray.tasks.many import ManyOwners
from fedray.tasks.torch_task import TorchTask
from fedray.values import Assignment, RoundPlan, Schema, Update, Work

TOLERANCE = 1e-3
"""Of the update's norm. Rounding gives 1e-6, a wrong gradient 1e-1; between the two is what Adam makes of gradients
that are nothing but rounding: a whole step, forth or back."""

SIZES = (12, 7, 3)
WORKS = (Work(4, "epochs"), Work(3, "epochs"), Work(2, "epochs"))
"""Of the made-up owners: unlike, so that they end one after the other."""

FAILURES = (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError, AttributeError, KeyError)
"""What ``torch.func``, modules and optimizers raise when they cannot."""


def treatable(task: TorchTask, schema: Schema) -> str | None:
    """Why owners cannot be trained together, in one line; None where they can."""
    try:
        per_row(task.loss)
    except ModelError as error:
        return error.found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _tried(task, schema)
    except FAILURES as error:
        return _in_words(error)
    except FedrayError as error:
        return error.found


def _tried(task: TorchTask, schema: Schema) -> str | None:
    asked = Assignment("made up", RoundPlan(1, WORKS[0], 0.1, False, "examples"), WORKS[0], None)
    jobs = made_up.jobs(task, schema, SIZES, WORKS, asked)
    vector = task.initial(0)
    alone = [job.task.train(vector, job.assignment, job.shard, job.seed) for job in jobs]
    if any(update.delta[task.n_parameters :].any() for update in alone):
        return "buffers that change in training, as BatchNorm's do"
    together = ManyOwners(task, len(jobs)).train(vector, jobs)
    gap = max(_gap(one, other) for one, other in zip(alone, together, strict=True))
    return (
        None if gap < TOLERANCE else f"trained together, owners end {gap:.0e} of their update away from where they do"
    )


def is_evaluated_alike(task: TorchTask, schema: Schema) -> bool:
    """Whether owners that are evaluated together get the figures that each gets alone."""
    vector = task.initial(0)
    examples = [made_up.rows(schema, size) for size in SIZES]
    try:
        together = ManyOwners(task, 1).evaluate(vector, task, examples)
        alone = [task.evaluate(vector, one) for one in examples]
    except FAILURES:
        return False
    pairs = [
        (one.sums[name], other.sums[name]) for one, other in zip(alone, together, strict=True) for name in one.sums
    ]
    return all(math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for one, other in pairs)


def _gap(alone: Update, together: Update | FedrayError) -> float:
    """Distance of two updates, relative to the first one's norm."""
    if isinstance(together, FedrayError):
        raise together
    return float(np.linalg.norm(together.delta - alone.delta) / np.linalg.norm(alone.delta))


def _in_words(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    if "randomness" in first:
        return "random layers, as dropout: together, owners would not draw the masks that each draws alone"
    return f"{type(error).__name__} when trained together: {first}"
