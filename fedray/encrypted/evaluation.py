"""Stages on ciphertexts: what the server computes.

One ciphertext holds one value of all images, so that a weight is one number for a whole ciphertext, nothing has to be
rotated, and a weight of zero costs nothing. Each stage takes one level: its products are summed, and then divided by
the next prime, once for each output. A weight is encoded at such a scale that outputs come to the parameters' scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from fedray.encrypted.scheme import Scheme
from fedray.encrypted.stages import Affine, Floats, Stage

Values = list[Any]
"""Ciphertexts, one a value."""


def output_scale(scheme: Scheme, stages: Sequence[Stage]) -> float:
    """The scale that outputs come at: affine stages bring back the parameters' own, squares let it drift."""
    scale = scheme.parameters.scale
    for stage, prime in zip(stages, reversed(scheme.primes), strict=False):
        scale = scheme.parameters.scale if isinstance(stage, Affine) else scale**2 / prime
    return scale


class Evaluation:
    """Computes with one client's keys.

    Args:
        scheme: of the model's parameters.
        relinearisation_keys: the client's.
    """

    def __init__(self, scheme: Scheme, relinearisation_keys: Any) -> None:
        self._scheme = scheme
        self._evaluator = scheme.evaluator
        self._keys = relinearisation_keys

    def applied(self, stage: Stage, values: Values) -> Values:
        """The stage's outputs, one level down."""
        if isinstance(stage, Affine):
            return self._affine(stage, values)
        return [self._squared(value) for value in values]

    def _squared(self, value: Any) -> Any:
        squared = seal.Ciphertext()
        self._evaluator.square(value, squared)
        self._evaluator.relinearize_inplace(squared, self._keys)
        self._evaluator.rescale_to_next_inplace(squared)
        return squared

    def _affine(self, stage: Affine, values: Values) -> Values:
        scale = self._weight_scale(values[0])
        units = np.rint(stage.weights * scale)
        rows = [_never_all_zero(row) for row in units]
        return [self._row(row / scale, bias, values, scale) for row, bias in zip(rows, stage.bias, strict=True)]

    def _row(self, weights: Floats, bias: float, values: Values, scale: float) -> Any:
        """One output. The bias is added last, when it is of the outputs' own scale."""
        first, *others = np.flatnonzero(weights)
        total = self._product(values[first], weights[first], scale)
        for place in others:
            self._evaluator.add_inplace(total, self._product(values[place], weights[place], scale))
        self._evaluator.rescale_to_next_inplace(total)
        self._evaluator.add_plain_inplace(total, self._encoded(bias, total, total.scale))
        return total

    def _product(self, value: Any, weight: float, scale: float) -> Any:
        product = seal.Ciphertext()
        self._evaluator.multiply_plain(value, self._encoded(weight, value, scale), product)
        return product

    def _encoded(self, number: float, like: Any, scale: float) -> Any:
        """A number in all slots, at the level of a ciphertext."""
        plain = seal.Plaintext()
        self._scheme.encoder.encode(float(number), like.parms_id(), scale, plain)
        return plain

    def _weight_scale(self, value: Any) -> float:
        """What brings a product, divided by the next prime, to the parameters' scale."""
        prime = self._scheme.primes[value.coeff_modulus_size() - 1]
        scale: float = self._scheme.parameters.scale * prime / value.scale
        return scale


def _never_all_zero(units: Floats) -> Floats:
    """An output that depends on nothing: SEAL refuses a product with zero, so that it is one unit of the first input.

    That is as much as any weight is rounded by.
    """
    if units.any():
        return units
    first: Floats = np.zeros(len(units))
    first[0] = 1.0
    return first
