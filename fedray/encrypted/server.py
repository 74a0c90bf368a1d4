"""The server's half: a model that computes on what it cannot read. It has the model, and no key."""

from __future__ import annotations

from torch import nn

from fedray.encrypted.evaluation import Evaluation, Values, output_scale
from fedray.encrypted.messages import Description, Reply, Request
from fedray.encrypted.parameters import parameters_for
from fedray.encrypted.scheme import Scheme, guarded, to_bytes
from fedray.encrypted.stages import Shape, network_of
from fedray.errors import ModelError, ProtocolError
from fedray.protection import wire


class EncryptedModel:
    """Answers requests of clients, each with a key of its own.

    Args:
        module: a trained ``nn.Sequential``; see ``stages.network_of`` for what it may hold. It is not changed.
        input_shape: shape of one input, without the batch.
        input_bound: largest absolute value of an input; clients refuse to encrypt larger ones.

    Raises:
        ModelError: a layer that cannot be computed so, or a model too deep or with too large values.
    """

    def __init__(self, module: nn.Module, input_shape: Shape, input_bound: float = 1.0) -> None:
        if not 0 < input_bound < float("inf"):
            raise ModelError(f"an input_bound of {input_bound}", "a positive number", "scale inputs to -1 to 1")
        self._network = network_of(module, tuple(input_shape))
        bound = self._network.bound(input_bound)
        parameters = parameters_for(len(self._network.stages), bound)
        self._scheme = Scheme(parameters)
        if bound * output_scale(self._scheme, self._network.stages) > self._scheme.primes[0] / 2:
            raise ModelError(
                f"squares at the end that could come to {bound:.3g} at a scale that leaves no room for it",
                "an affine layer after the last Square, or fewer layers",
                "add a Linear layer, which brings the scale back",
            )
        self._description = Description(parameters, self._network.input_shape, self._network.output_shape, input_bound)

    @property
    def public_description(self) -> Description:
        """What clients are made from."""
        return self._description

    def __call__(self, request: bytes) -> bytes:
        """The encrypted outputs for encrypted inputs.

        Raises:
            ProtocolError: the request is malformed, or of other parameters.
        """
        asked = wire.decode(request, Request)
        depth, scale = self._description.parameters.depth, self._description.parameters.scale
        values = self._scheme.values(asked.inputs, self._description.n_inputs, depth + 1)
        if any(value.scale != scale for value in values):
            raise ProtocolError("a ciphertext of another scale", f"{scale:g}", "use fedray.encrypted.Client")
        evaluation = Evaluation(self._scheme, self._scheme.relinearisation_keys(asked.relinearisation_keys))
        outputs = guarded(lambda: self._computed(evaluation, values))
        return wire.encode(Reply(asked.id, [to_bytes(output) for output in outputs]))

    def _computed(self, evaluation: Evaluation, values: Values) -> Values:
        for stage in self._network.stages:
            values = evaluation.applied(stage, values)
        return values
