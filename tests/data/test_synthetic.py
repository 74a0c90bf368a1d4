"""Synthetic(alpha, beta) follows the FedProx generator, checked against the law it is drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from fedray.config.data import Synthetic
from fedray.data import open_shard, owner_names, schema_of
from fedray.data.synthetic import device


def test_labels_are_the_argmax_of_the_owners_own_model() -> None:
    for number in range(3):
        drawn = device(Synthetic(alpha=1, beta=1, seed=4), number)
        for row in range(0, len(drawn.labels), 17):
            scores = [
                sum(drawn.inputs[row, j] * drawn.weights[j, k] for j in range(60)) + drawn.bias[k] for k in range(10)
            ]
            assert drawn.labels[row] == max(range(10), key=scores.__getitem__)


def test_inputs_have_the_stated_mean_and_variance() -> None:
    drawn = [device(Synthetic(alpha=1, beta=1, seed=0), number) for number in range(60)]
    centred = np.concatenate([one.inputs - one.center for one in drawn])
    expected = np.array([1 / j**1.2 for j in range(1, 61)])
    assert len(centred) > 10_000
    np.testing.assert_allclose(centred.var(axis=0), expected, rtol=0.08)
    correlation = np.corrcoef(centred, rowvar=False) - np.eye(60)
    assert np.abs(correlation).max() < 0.06
    np.testing.assert_allclose(centred.mean(axis=0), 0, atol=0.04)


def test_sizes_are_at_least_fifty_with_a_lognormal_tail() -> None:
    sizes = np.array([len(device(Synthetic(alpha=0, beta=0, seed=1), number).labels) for number in range(200)])
    assert sizes.min() >= 50
    logs = np.log(sizes - 49.5)
    assert np.median(logs) == pytest.approx(4, abs=0.5)
    assert logs.std() == pytest.approx(2, abs=0.4)


def _spread(alpha: float, beta: float) -> tuple[float, float, float]:
    """Deviation over owners of mean weights and of mean centers; correlation of mean weight and mean bias."""
    drawn = [device(Synthetic(alpha=alpha, beta=beta, seed=7), number) for number in range(150)]
    weights = np.array([one.weights.mean() for one in drawn])
    biases = np.array([one.bias.mean() for one in drawn])
    centers = np.array([one.center.mean() for one in drawn])
    return float(weights.std()), float(centers.std()), float(np.corrcoef(weights, biases)[0, 1])


def test_alpha_and_beta_are_standard_deviations_and_the_bias_shares_the_weights_mean() -> None:
    weights, centers, correlation = _spread(alpha=2.0, beta=3.0)
    assert weights == pytest.approx(2.0, rel=0.2)
    assert centers == pytest.approx(3.0, rel=0.2)
    assert correlation > 0.95


def test_without_spread_only_unit_noise_tells_owners_apart() -> None:
    weights, centers, _ = _spread(alpha=0.0, beta=0.0)
    assert weights == pytest.approx(1 / np.sqrt(600), rel=0.25)
    assert centers == pytest.approx(1 / np.sqrt(60), rel=0.25)


def test_iid_owners_share_one_model_and_centered_inputs() -> None:
    one, other = (device(Synthetic(alpha=0, beta=0, iid=True, seed=3), number) for number in (0, 1))
    assert np.array_equal(one.weights, other.weights)
    assert np.array_equal(one.bias, other.bias)
    assert not one.center.any()
    assert not np.array_equal(one.inputs[:10], other.inputs[:10])


def test_an_owners_rows_do_not_depend_on_how_many_owners_there_are() -> None:
    few, many = Synthetic(owners=2, seed=5), Synthetic(owners=4, seed=5)
    one, other = open_shard(few, "owner-01"), open_shard(many, "owner-01")
    assert np.array_equal(one.train.features, other.train.features)


def test_ninety_percent_train_rounded_down_and_no_row_is_lost() -> None:
    data = Synthetic(owners=3, seed=2)
    for number, name in enumerate(owner_names(data)):
        shard, drawn = open_shard(data, name), device(data, number)
        assert len(shard.train) == int(0.9 * len(drawn.labels))
        both = np.concatenate([shard.train.features, shard.holdout.features])
        expected = drawn.inputs.astype(np.float32)
        assert sorted(map(tuple, both[:, :3].tolist())) == sorted(map(tuple, expected[:, :3].tolist()))
        assert both.shape[1:] == schema_of(data).feature_shape
