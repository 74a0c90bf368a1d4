"""The linear and logistic baselines against scikit-learn's coefficients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn
from vertical_toys import Columns, Talk, table

from fedray.vertical.fusion import Concat, Fusion, MaskedSum
from fedray.vertical.models import linear, sgd
from fedray.vertical.plans import AlignPlan, FitPlan

N = 80


def fitted(talk: Talk, fusion: Fusion, n_epochs: int, lr: float) -> tuple[np.ndarray, float]:
    """Coefficients of the bank's, then the shop's columns, and the intercept, after full-batch descent."""
    talk.aligned(AlignPlan(holdout=0.0))
    talk.prepared(fusion, lambda shape: linear(shape[0]), nn.Identity())
    talk.begun(FitPlan(N, sgd(lr)))
    for _ in range(n_epochs):
        talk.holder.epoch()
    layers = [owner._trained().bottom.network for owner in talk.owners.values()]
    coefficients = np.concatenate([layer.weight.detach().numpy().ravel() for layer in layers])
    return coefficients, sum(layer.bias.item() for layer in layers)


def columns(n_owners: int) -> tuple[dict[str, Columns], np.ndarray]:
    draw = np.random.default_rng(5)
    x = draw.normal(size=(N, 5)).astype(np.float32)
    parts = {"bank": x[:, :3], "shop": x[:, 3:]} if n_owners == 2 else {"bank": x}
    return {name: table(np.arange(N), x=part) for name, part in parts.items()}, x


@pytest.mark.parametrize(("n_owners", "fusion"), [(2, MaskedSum()), (1, Concat())])
def test_the_logistic_baseline_has_scikit_learns_coefficients(n_owners: int, fusion: Fusion) -> None:
    owners, x = columns(n_owners)
    draw = np.random.default_rng(6)
    y = (x @ [1.0, -1.0, 0.5, 0.8, -0.3] + draw.logistic(size=N) > 0).astype(int)
    coefficients, intercept = fitted(Talk(owners, table(np.arange(N), y=y)), fusion, 400, 1.0)
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(coefficients, expected.coef_[0], atol=2e-3)
    assert intercept == pytest.approx(float(expected.intercept_[0]), abs=2e-3)


def test_the_linear_baseline_has_scikit_learns_coefficients() -> None:
    owners, x = columns(2)
    y = x @ [1.0, -1.0, 0.5, 0.8, -0.3] + 0.7 + 0.1 * np.random.default_rng(7).normal(size=N)
    coefficients, intercept = fitted(Talk(owners, table(np.arange(N), y=y)), MaskedSum(), 300, 0.2)
    expected = LinearRegression().fit(x, y)
    np.testing.assert_allclose(coefficients, expected.coef_, atol=2e-4)
    assert intercept == pytest.approx(float(expected.intercept_), abs=2e-4)
