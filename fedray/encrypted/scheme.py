"""SEAL's objects of some parameters, into bytes and back. The only file of this package that imports TenSEAL.

SEAL's objects can be saved under a file's name only, so that what is public passes through a temporary file. A secret
key never does: there is no function for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tenseal.sealapi as seal

from fedray.encrypted.parameters import Parameters
from fedray.errors import ConfigError, ProtocolError

T = TypeVar("T")
FROM_SEAL = (ValueError, RuntimeError, IndexError, OverflowError, MemoryError)
"""What SEAL's exceptions become in Python."""


class Scheme:
    """A context of SEAL, and what both parties do with it.

    Raises:
        ConfigError: the parameters have less than 128 bits of security, by our table or by SEAL's.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.context = _context(parameters)
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        first = self.context.first_context_data().parms()
        self.primes = [prime.value() for prime in first.coeff_modulus()]

    def values(self, saved: list[bytes], n: int, level: int) -> list[Any]:
        """Ciphertexts of ``n`` values, out of bytes.

        Args:
            level: primes that are left: ``depth + 1`` of a fresh one.

        Raises:
            ProtocolError: they are malformed, too few or too many, or not fresh.
        """
        values = [self._loaded(seal.Ciphertext, one) for one in saved]
        if len(values) != n:
            raise _refused(f"{len(values)} ciphertexts", f"{n}")
        if any((one.size(), one.coeff_modulus_size()) != (2, level) for one in values):
            raise _refused("a ciphertext of another level", f"{level} primes")
        return values

    def relinearisation_keys(self, saved: bytes) -> Any:
        """Keys that the server needs for squares, out of bytes.

        Raises:
            ProtocolError: they are malformed.
        """
        return self._loaded(seal.RelinKeys, saved)

    def _loaded(self, kind: Any, saved: bytes) -> Any:
        loaded = kind()
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(saved)
            guarded(lambda: loaded.load(self.context, file.name))
        return loaded


def to_bytes(public: Any) -> bytes:
    """A ciphertext or public keys as bytes."""
    if isinstance(public, seal.SecretKey):
        raise TypeError("a secret key stays where it was made")
    with tempfile.NamedTemporaryFile() as file:
        public.save(file.name)
        return Path(file.name).read_bytes()


def guarded(compute: Callable[[], T]) -> T:
    """What it gives.

    Raises:
        ProtocolError: SEAL refused what the other party sent.
    """
    try:
        return compute()
    except FROM_SEAL as error:
        raise _refused(f"what SEAL refuses ({type(error).__name__})", "ciphertexts and keys") from None


def _context(parameters: Parameters) -> Any:
    if not parameters.is_secure:
        raise _weak(parameters)
    chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    chosen.set_poly_modulus_degree(parameters.poly_degree)
    try:
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(parameters.poly_degree, list(parameters.coefficient_bits)))
    except FROM_SEAL:
        raise _weak(parameters) from None
    context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise _weak(parameters)
    return context


def _weak(parameters: Parameters) -> ConfigError:
    return ConfigError(f"{parameters}", "128 bits of security", "suspect whoever sent this description")


def _refused(found: str, expected: str) -> ProtocolError:
    return ProtocolError(
        found, f"{expected} of this model's parameters", "make the client from the model's public_description"
    )
