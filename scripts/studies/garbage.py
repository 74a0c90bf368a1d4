"""A task whose owners give garbage when they are told to: softmax regression in numpy, on full batches.

Who is told is said by files in the folder that ``$FEDRAY_GARBAGE`` names: one of an owner's name, which holds the kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedray.values import Assignment, Examples, Schema, Shard, Tally, Update, Vector

FOLDER = "FEDRAY_GARBAGE"
KINDS = ("nan", "infinite", "misshapen", "raises")
_STEPS, _RATE = 200, 0.5


def tell(owner: str, kind: str) -> None:
    """Have an owner's next training give garbage."""
    _told(owner).write_text(kind)


def _told(owner: str) -> Path:
    return Path(os.environ[FOLDER]) / owner


class Softmax:
    """Multinomial logistic regression, parameters of shape ``((n_features + 1) * n_classes,)``."""

    def __init__(self, schema: Schema) -> None:
        assert schema.n_classes is not None, "softmax regression needs classes"
        self._shape = (int(np.prod(schema.feature_shape)) + 1, schema.n_classes)

    @property
    def n_parameters(self) -> int:
        return self._shape[0] * self._shape[1]

    def initial(self, seed: int) -> Vector:  # noqa: ARG002  # see the protocol
        return np.zeros(self.n_parameters, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:  # noqa: ARG002
        weights = vector.astype(np.float64).reshape(self._shape)
        for _ in range(_STEPS):
            weights = weights - _RATE * self._gradient(weights, shard.train)
        delta = (weights.ravel() - vector).astype(np.float32)
        delta = _garbled(delta, _told(assignment.owner))
        return Update(delta, len(shard.train), _STEPS, is_complete=True)

    def evaluate(self, vector: Vector, examples: Examples) -> Tally:
        probabilities = self._probabilities(vector.astype(np.float64).reshape(self._shape), examples)
        right = probabilities[np.arange(len(examples)), examples.targets.astype(np.int64)]
        return Tally({"loss": float(-np.log(right).sum())}, len(examples))

    def _gradient(self, weights: np.ndarray, examples: Examples) -> np.ndarray:
        wrong = self._probabilities(weights, examples)
        wrong[np.arange(len(examples)), examples.targets.astype(np.int64)] -= 1
        return _inputs(examples).T @ wrong / len(examples)

    def _probabilities(self, weights: np.ndarray, examples: Examples) -> np.ndarray:
        scores = _inputs(examples) @ weights
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


def _inputs(examples: Examples) -> np.ndarray:
    flat = examples.features.reshape(len(examples), -1).astype(np.float64)
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)


def _garbled(delta: Vector, told: Path) -> Vector:
    """The update, or garbage if the owner was told so; once."""
    if not told.is_file():
        return delta
    kind = told.read_text()
    told.unlink()
    if kind == "raises":
        raise ValueError("told so")
    if kind == "misshapen":
        return delta[1:]
    return np.full_like(delta, np.nan if kind == "nan" else np.inf)
