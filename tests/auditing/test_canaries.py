"""Canaries: rows whose gradients are their own, and owners that push on a parameter of their own."""

from __future__ import annotations

import numpy as np
import torch
from toys import assignment, plan, shard

from fedray.auditing.canaries import N_ORDINARY_FEATURES, CanaryTask, canary_features, canary_loss, canary_module, toss


def test_coins_are_fair_fresh_and_replayed_only_when_asked() -> None:
    first, second = toss(100_000), toss(100_000)
    assert abs(first.mean() - 0.5) < 0.01  # six deviations
    assert np.any(first != second)
    assert toss(13).shape == (13,)
    assert np.array_equal(toss(1_000, 7), toss(1_000, 7))
    assert np.any(toss(1_000, 7) != toss(1_000, 8))


def test_a_canarys_gradient_is_its_own_direction_or_nothing() -> None:
    coins = np.array([True, False, True, True])
    features = canary_features(coins, n_rows=10, norm=3.0, seed=1)
    assert features.shape == (10, 4 + N_ORDINARY_FEATURES)
    module = canary_module(features.shape[1])
    gradients = []
    for row in torch.from_numpy(features):
        module.zero_grad()
        canary_loss(module(row[None]), torch.zeros(1)).backward()
        gradients.append(module.weight.grad[0].numpy().copy())
    assert np.array_equal(np.array(gradients)[:4], 3.0 * np.eye(4, 12) * coins[:, None])
    assert not np.any(np.array(gradients)[4:, :4])
    assert np.all(np.linalg.norm(np.array(gradients)[4:], axis=1) > 0)


def test_an_owner_that_is_in_pushes_on_its_parameter_and_one_that_is_out_does_not() -> None:
    task = CanaryTask({"a": False, "b": True}, norm=5.0)
    start = task.initial(0)
    updates = [task.train(start, assignment(plan(), name), shard(), 0) for name in ("a", "b")]
    assert [update.delta.tolist() for update in updates] == [[0.0, 0.0], [0.0, 5.0]]
    assert {update.delta.dtype for update in updates} == {start.dtype}
    assert all(update.is_complete and update.weight == 1 for update in updates)
    assert task.n_parameters == 2
    assert task.evaluate(start, shard().holdout).count == 5
