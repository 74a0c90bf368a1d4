"""What client and server say: a public description, requests and replies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from fedray.encrypted.parameters import Parameters
from fedray.encrypted.stages import MOST_VALUES, Shape
from fedray.protection.wire import Message

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Values = Annotated[list[bytes], Meta(max_length=MOST_VALUES)]
"""Ciphertexts, one for each value of an input or an output: slot i is of image i."""


@dataclass(frozen=True)
class Description:
    """What a client must know of a model. Tells its depth and the largest value in it, and nothing else of its weights.

    Attributes:
        parameters: of the scheme.
        input_shape: shape of one input, without the batch.
        output_shape: shape of one output.
        input_bound: largest absolute value of an input.
    """

    parameters: Parameters
    input_shape: Shape
    output_shape: Shape
    input_bound: float

    @property
    def n_inputs(self) -> int:
        return math.prod(self.input_shape)

    @property
    def n_outputs(self) -> int:
        return math.prod(self.output_shape)


class Request(Message, frozen=True):
    """Encrypted inputs, and what the server needs for squares."""

    max_bytes: ClassVar[int] = 2**32
    id: Id
    relinearisation_keys: bytes
    inputs: Values


class Reply(Message, frozen=True):
    """Encrypted outputs for a request."""

    max_bytes: ClassVar[int] = 2**32
    id: Id
    outputs: Values
