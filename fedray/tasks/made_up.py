"""Owners with rows made up from the schema, to try and to time training with before there is any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedray.protocols import Job
from fedray.tasks.torch_task import TorchTask
from fedray.values import Assignment, Examples, Schema, Shard, Work


def jobs(
    task: TorchTask, schema: Schema, sizes: Sequence[int], works: Sequence[Work], assignment: Assignment
) -> list[Job]:
    """Owners who are charged nothing.

    Args:
        task: what they learn.
        schema: what their rows look like; in memory there are only those of the largest owner.
        sizes: rows of each owner.
        works: work of each owner.
        assignment: the rest of what they are asked.
    """
    examples = rows(schema, max(sizes))
    made = []
    for seed, (size, work) in enumerate(zip(sizes, works, strict=True)):
        own = Examples(examples.features[:size], examples.targets[:size])
        asked = replace(assignment, work=work, deadline_s=None)
        made.append(Job(task.sharing(task.descent.rehearsal(size)), asked, Shard(own, own), seed))
    return made


def rows(schema: Schema, n: int) -> Examples:
    """Random features (tokens 0 and 1) and targets, ``n`` of each."""
    draw = np.random.default_rng(0)

    def drawn(shape: tuple[int, ...], n_values: int | None) -> Any:
        return draw.standard_normal(shape, dtype=np.float32) if n_values is None else draw.integers(0, n_values, shape)

    n_tokens = 2 if schema.feature_dtype == "int64" else None
    return Examples(drawn((n, *schema.feature_shape), n_tokens), drawn((n, *schema.target_shape), schema.n_classes))
