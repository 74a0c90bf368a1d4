"""Synthetic(alpha, beta): softmax-regression data whose models and inputs differ from owner to owner.

Li et al., Federated Optimization in Heterogeneous Networks (FedProx), 2020, section 5.1, as their generator
makes it: ``alpha`` and ``beta`` are standard deviations, and the bias has the *same* mean u_k as the weights
(the paper draws one mean for each). Deviation: every owner draws from a generator of its own, keyed by (seed,
owner number), so that an owner's rows do not depend on how many owners there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedray.config.data import Synthetic
from fedray.data.rows import Rows
from fedray.seeds import generator
from fedray.values import Examples, Schema

N_FEATURES = 60
N_CLASSES = 10
MIN_ROWS = 50
SCHEMA = Schema((N_FEATURES,), "float32", (), N_CLASSES)


@dataclass(frozen=True, slots=True)
class Device:
    """One owner's data with the model that labelled it.

    Attributes:
        inputs: float64 of shape ``(n, 60)``.
        labels: int64 of shape ``(n,)``.
        weights: W of shape ``(60, 10)``.
        bias: b of shape ``(10,)``.
        center: v, mean of the inputs, shape ``(60,)``.
    """

    inputs: NDArray[np.float64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    center: NDArray[np.float64]


def device(data: Synthetic, number: int) -> Device:
    """The data of owner ``number``, a pure function of alpha, beta, iid, seed and the number."""
    rng = generator(data.seed, "synthetic", number)
    n_rows = int(rng.lognormal(4, 2)) + MIN_ROWS
    weights, bias = _global_model(data.seed) if data.iid else _local_model(rng, rng.normal(0, data.alpha))
    center = np.zeros(N_FEATURES) if data.iid else rng.normal(rng.normal(0, data.beta), 1, N_FEATURES)
    deviation = np.arange(1, N_FEATURES + 1) ** -0.6  # variances are j ** -1.2
    inputs = rng.normal(center, deviation, (n_rows, N_FEATURES))
    labels = np.argmax(inputs @ weights + bias, axis=1).astype(np.int64)
    return Device(inputs, labels, weights, bias, center)


def rows(data: Synthetic, number: int) -> Rows:
    """Owner ``number`` as float32 features of shape ``(n, 60)`` and int64 targets of shape ``(n,)``."""
    drawn = device(data, number)
    return Rows(Examples(drawn.inputs.astype(np.float32), drawn.labels))


def _local_model(rng: np.random.Generator, mean: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return rng.normal(mean, 1, (N_FEATURES, N_CLASSES)), rng.normal(mean, 1, N_CLASSES)


def _global_model(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return _local_model(generator(seed, "synthetic", "global"), 0.0)
