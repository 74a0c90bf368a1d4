"""FedAvg's steps against Algorithm 1 of McMahan et al. 2017 and FedAvgM of Hsu et al. 2019, by hand and by torch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.strategies import FedAvg
from fedray.values import Work

WORK = Work(2, "epochs")


def test_by_default_the_new_model_is_the_weighted_mean_of_the_owners_models() -> None:
    """Algorithm 1: w_{t+1} = sum_k n_k/n w_k, from owners' models instead of updates."""
    start = np.array([1.0, -2.0], dtype=np.float32)
    models, rows = np.array([[2.0, 0.0], [0.0, -4.0], [1.0, 1.0]]), np.array([1, 2, 5])
    expected = (models * rows[:, None]).sum(0) / rows.sum()
    mean = ((models - start) * rows[:, None]).sum(0) / rows.sum()
    strategy = FedAvg(WORK)
    _, moved = strategy.step(strategy.init(start), start, mean)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_three_rounds_with_momentum_by_hand() -> None:
    """beta = 1/2, eta = 2, mean updates 1, 2, 4: v = 1, 2.5, 5.25; w = 10 + 2, + 5, + 10.5."""
    strategy = FedAvg(WORK, server_lr=2.0, server_momentum=0.5)
    w = np.array([10.0], dtype=np.float32)
    state = strategy.init(w)
    seen = []
    for mean in (1.0, 2.0, 4.0):
        state, w = strategy.step(state, w, np.array([mean]))
        seen.append(float(w[0]))
    assert seen == [12.0, 17.0, 27.5]


@settings(deadline=None, max_examples=25)
@given(
    lr=st.floats(0.1, 2.0),
    momentum=st.floats(0.0, 0.99),
    means=st.lists(st.floats(-1, 1), min_size=1, max_size=5),
)
def test_the_server_is_torchs_sgd_on_the_negated_mean(lr: float, momentum: float, means: list[float]) -> None:
    strategy = FedAvg(WORK, server_lr=lr, server_momentum=momentum)
    w = np.array([1.0], dtype=np.float32)
    state = strategy.init(w)
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=lr, momentum=momentum)
    for mean in means:
        state, w = strategy.step(state, w, np.array([mean]))
        parameter.grad = torch.tensor([-mean], dtype=torch.float64)
        optimizer.step()
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_owners_are_asked_for_all_of_the_work_and_nothing_else() -> None:
    strategy = FedAvg(WORK, weighting="uniform")
    plan = strategy.plan(strategy.init(np.zeros(1, np.float32)), 7)
    assert (plan.round, plan.work, plan.proximal_mu, plan.accepts_partial_work, plan.weighting) == (
        7,
        WORK,
        0.0,
        False,
        "uniform",
    )
