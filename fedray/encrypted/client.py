"""The client's half: it alone has the key. It encrypts inputs and decrypts outputs.

Decryptions are rounded to float32 and stay here. CKKS is secure against whoever sees ciphertexts; it is not against
whoever sees ciphertexts *and* what they decrypt to, and the server has seen the ciphertexts.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import torch
from torch import Tensor

from fedray.encrypted.messages import Description, Reply, Request
from fedray.encrypted.scheme import Scheme, guarded, to_bytes
from fedray.errors import DataError, ProtocolError
from fedray.protection import wire


class Client:
    """Makes a key of its own, of the operating system's generator. It cannot be pickled.

    Args:
        description: the model's ``public_description``.

    Raises:
        ConfigError: the description's parameters have less than 128 bits of security.
    """

    def __init__(self, description: Description) -> None:
        self._description = description
        self._scheme = Scheme(description.parameters)
        keys = seal.KeyGenerator(self._scheme.context)
        self._encryptor = seal.Encryptor(self._scheme.context, keys.secret_key())
        self._decryptor = seal.Decryptor(self._scheme.context, keys.secret_key())
        self._relinearisation_keys = to_bytes(keys.create_relin_keys())
        self._n_asked: dict[bytes, int] = {}

    def __reduce__(self) -> Any:
        raise TypeError("a client's secret key stays in its process")

    @property
    def most_images(self) -> int:
        """Images that fit in one request. A request costs the same for one and for all of them."""
        return self._scheme.parameters.n_slots

    def encrypt(self, images: Tensor) -> bytes:
        """A request about images of shape (n, *input_shape).

        Raises:
            DataError: another shape, too many, or values that are not finite or beyond the model's bound.
        """
        self._require(images)
        pixels = images.detach().cpu().double().reshape(len(images), -1).T.tolist()
        request = secrets.token_bytes(16)
        self._n_asked[request] = len(images)
        return wire.encode(Request(request, self._relinearisation_keys, [self._encrypted(values) for values in pixels]))

    def decrypt(self, reply: bytes) -> Tensor:
        """The outputs for a request's images, float32 of shape (n, *output_shape). Once for each request.

        Never send them, or what was done because of them, back to the server.

        Raises:
            ProtocolError: the reply is malformed, or to no request that is open.
        """
        told = wire.decode(reply, Reply)
        if told.id not in self._n_asked:
            raise ProtocolError("a reply to no open request", "one reply a request", "suspect the server")
        outputs = self._scheme.values(told.outputs, self._description.n_outputs, 1)
        columns = np.array(guarded(lambda: [self._decrypted(output) for output in outputs]))
        n = self._n_asked.pop(told.id)
        return torch.tensor(columns[:, :n].T, dtype=torch.float32).reshape(n, *self._description.output_shape)

    def _encrypted(self, values: list[float]) -> bytes:
        """Under the secret key itself, which halves the ciphertext: one of its two polynomials is a seed."""
        plain = seal.Plaintext()
        self._scheme.encoder.encode(values, self._scheme.parameters.scale, plain)
        return to_bytes(self._encryptor.encrypt_symmetric(plain))

    def _decrypted(self, value: Any) -> list[float]:
        plain = seal.Plaintext()
        self._decryptor.decrypt(value, plain)
        decoded: list[float] = self._scheme.encoder.decode_double(plain)
        return decoded

    def _require(self, images: Tensor) -> None:
        shape, bound = self._description.input_shape, self._description.input_bound
        if tuple(images.shape[1:]) != shape or not 1 <= len(images) <= self.most_images:
            raise DataError(
                f"images of shape {tuple(images.shape)}",
                f"(n, {', '.join(map(str, shape))}) with n of 1 to {self.most_images}",
                "ask about them in parts",
            )
        if not bool((images.abs() <= bound).all()):
            raise DataError(
                f"a value that is not finite, or beyond {bound:g}", f"values within +-{bound:g}", "scale them"
            )
