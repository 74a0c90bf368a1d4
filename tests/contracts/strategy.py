"""What every Strategy must do. A test class derives from ``StrategyContract`` and gives the fixture ``strategy``."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from fedray.federation import ServerState
from fedray.protocols import Strategy
from fedray.states import load_state, save_state

PARAMETERS = np.array([1.0, -2.0, 3.0], dtype=np.float32)
MEANS = [np.array([0.5, 0.25, -1.0]), np.array([-0.125, 2.0, 0.0]), np.array([1e-9, 1e-3, -7.0])]


def walk(strategy: Strategy) -> list[bytes]:
    """The parameters after each of ``MEANS``."""
    state, parameters, seen = strategy.init(PARAMETERS), PARAMETERS, []
    for mean in MEANS:
        state, parameters = strategy.step(state, parameters, mean)
        seen.append(parameters.tobytes())
    return seen


class StrategyContract:
    @pytest.fixture
    def strategy(self) -> Strategy:
        raise NotImplementedError

    def test_a_step_keeps_shape_and_type(self, strategy: Strategy) -> None:
        state, parameters = strategy.step(strategy.init(PARAMETERS), PARAMETERS, MEANS[0])
        assert parameters.shape == PARAMETERS.shape
        assert parameters.dtype == np.float32
        assert set(state) == set(strategy.init(PARAMETERS))
        assert all(array.dtype == np.float64 for array in state.values())

    def test_a_step_is_a_function_of_its_arguments(self, strategy: Strategy) -> None:
        state, mean, parameters = strategy.init(PARAMETERS), MEANS[0].copy(), PARAMETERS.copy()
        before = copy.deepcopy(dict(state))
        first = strategy.step(state, parameters, mean)
        second = strategy.step(state, parameters, mean)
        assert first[1].tobytes() == second[1].tobytes()
        assert np.array_equal(parameters, PARAMETERS)
        assert np.array_equal(mean, MEANS[0])
        assert all(np.array_equal(state[name], before[name]) for name in before)
        assert walk(strategy) == walk(pickle.loads(pickle.dumps(strategy)))

    def test_a_first_mean_of_zero_moves_nothing(self, strategy: Strategy) -> None:
        _, parameters = strategy.step(strategy.init(PARAMETERS), PARAMETERS, np.zeros(3))
        assert parameters.tobytes() == PARAMETERS.tobytes()

    def test_the_model_moves_along_the_first_mean(self, strategy: Strategy) -> None:
        _, parameters = strategy.step(strategy.init(PARAMETERS), PARAMETERS, MEANS[0])
        assert float((parameters - PARAMETERS) @ MEANS[0]) > 0

    def test_a_plan_carries_its_round(self, strategy: Strategy) -> None:
        state = strategy.init(PARAMETERS)
        for round in (1, 2, 9):
            plan = strategy.plan(state, round)
            assert plan.round == round
            assert plan.work.amount >= 1
            assert plan.proximal_mu >= 0
            assert plan == strategy.plan(state, round)

    def test_a_state_goes_through_a_file(self, strategy: Strategy, tmp_path: Path) -> None:
        state, parameters = strategy.step(strategy.init(PARAMETERS), PARAMETERS, MEANS[0])
        save_state(tmp_path / "s", ServerState(1, parameters, state, {}))
        loaded = load_state(tmp_path / "s")
        after, again = (strategy.step(s, parameters, MEANS[1])[1] for s in (state, loaded.strategy))
        assert after.tobytes() == again.tobytes()
