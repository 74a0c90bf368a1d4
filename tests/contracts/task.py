"""What every Task must do. A test class derives from ``TaskContract`` and gives the fixture ``case``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from toys import assignment, plan

from fedray.protocols import Task
from fedray.values import Examples, Shard


@dataclass(frozen=True)
class TaskCase:
    """A way to make a task, again and again, and a shard with some training and held-out rows for it."""

    make: Callable[[], Task]
    shard: Shard


ASKED = assignment(plan(2))


class TaskContract:
    @pytest.fixture
    def case(self) -> TaskCase:
        raise NotImplementedError

    def test_the_initial_vector_is_a_function_of_the_seed(self, case: TaskCase) -> None:
        task = case.make()
        vector = task.initial(3)
        assert vector.dtype == np.float32
        assert vector.ndim == 1
        assert 0 < task.n_parameters <= vector.size
        assert np.array_equal(vector, task.initial(3))
        assert np.array_equal(vector, case.make().initial(3))
        assert not np.array_equal(vector, task.initial(4))

    def test_training_is_a_function_of_its_arguments(self, case: TaskCase) -> None:
        """Whatever the task did before, and whatever the process's own generators do."""
        fresh, used = case.make(), case.make()
        vector = fresh.initial(0)
        used.train(used.initial(5), ASKED, case.shard, 8)
        used.evaluate(used.initial(6), case.shard.holdout)
        torch.rand(3)
        one = fresh.train(vector, ASKED, case.shard, 7)
        other = used.train(vector, ASKED, case.shard, 7)
        assert one.delta.tobytes() == other.delta.tobytes()
        assert replace(one, delta=vector) == replace(other, delta=vector)

    def test_training_gives_a_finite_update_of_the_models_shape(self, case: TaskCase) -> None:
        task = case.make()
        vector = task.initial(0)
        update = task.train(vector, ASKED, case.shard, 7)
        assert update.delta.shape == vector.shape
        assert update.delta.dtype == np.float32
        assert np.isfinite(update.delta).all()
        assert np.abs(update.delta).max() > 0
        assert update.weight == len(case.shard.train)
        assert update.is_complete

    def test_training_touches_neither_model_nor_rows_nor_generators(self, case: TaskCase) -> None:
        task = case.make()
        vector = task.initial(0)
        vector.flags.writeable = False
        before = vector.copy(), case.shard.train.features.copy(), case.shard.train.targets.copy()
        torch.set_num_threads(2)
        generators = torch.get_rng_state(), np.random.get_state()[1].copy()
        task.train(vector, ASKED, case.shard, 7)
        task.evaluate(vector, case.shard.holdout)
        after = vector, case.shard.train.features, case.shard.train.targets
        assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
        assert torch.equal(generators[0], torch.get_rng_state())
        assert np.array_equal(generators[1], np.random.get_state()[1])
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)

    def test_steps_grow_with_the_work(self, case: TaskCase) -> None:
        task = case.make()
        vector = task.initial(0)
        counts = [task.train(vector, assignment(plan(n)), case.shard, 7).n_steps for n in (1, 2, 3)]
        assert counts == [counts[0], 2 * counts[0], 3 * counts[0]]
        assert counts[0] >= 1

    def test_less_work_than_planned_is_marked_as_partial(self, case: TaskCase) -> None:
        task = case.make()
        vector = task.initial(0)
        short = task.train(vector, assignment(plan(3), amount=1), case.shard, 7)
        whole = task.train(vector, assignment(plan(1)), case.shard, 7)
        assert (short.is_complete, whole.is_complete) == (False, True)
        assert short.n_steps == whole.n_steps
        assert short.delta.tobytes() == whole.delta.tobytes()

    def test_the_proximal_term_keeps_the_model_nearer_to_its_start(self, case: TaskCase) -> None:
        task = case.make()
        vector = task.initial(0)
        n = task.n_parameters
        free, held = (task.train(vector, assignment(plan(5, mu=mu)), case.shard, 7).delta[:n] for mu in (0.0, 2.0))
        assert 0 < np.linalg.norm(held) < np.linalg.norm(free)

    def test_tallies_of_parts_add_up_to_that_of_the_whole(self, case: TaskCase) -> None:
        task = case.make()
        vector, rows = task.initial(0), case.shard.train
        cut = len(rows) // 3
        parts = [
            task.evaluate(vector, Examples(rows.features[part], rows.targets[part]))
            for part in (slice(None, cut), slice(cut, None))
        ]
        whole = task.evaluate(vector, rows)
        assert whole.count == len(rows) == sum(part.count for part in parts)
        assert "loss" in whole.sums
        for name, total in whole.sums.items():
            assert sum(part.sums[name] for part in parts) == pytest.approx(total, rel=1e-5)

    def test_no_rows_give_an_empty_tally(self, case: TaskCase) -> None:
        task = case.make()
        rows = case.shard.holdout
        tally = task.evaluate(task.initial(0), Examples(rows.features[:0], rows.targets[:0]))
        assert tally.count == 0
        assert tally.means == {}
        assert set(tally.sums.values()) == {0.0}
