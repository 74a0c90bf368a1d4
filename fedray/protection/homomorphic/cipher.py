"""Encryption and decryption of one ciphertext at a time. The only file that imports TenSEAL.

Every vector fills exactly one ciphertext: TenSEAL prints a warning from C++ to file descriptor 1 for longer ones, and
its serialiser slows down more than linearly with their number. TenSEAL keeps Python's lock while it works (about a
millisecond a ciphertext), so callers that go piece by piece let other threads run in between.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tenseal
import tenseal.sealapi
from numpy.typing import NDArray
from tenseal import _ts_cpp

from fedray.errors import ProtocolError
from fedray.protection.encoding import Signed
from fedray.protection.homomorphic.parameters import BfvParameters, CkksParameters, Parameters
from fedray.protection.homomorphic.stream import Stream
from fedray.protection.homomorphic.words import Words, add

_FROM_SEAL = (ValueError, RuntimeError, IndexError, OverflowError, MemoryError)
"""What SEAL's and TenSEAL's exceptions become in Python."""

Zero = Words
"""An encryption of zero. Whoever knows it can read what was sealed with it: it stays in the process that made it."""


class PublicKey:
    """What owners encrypt with.

    Args:
        parameters: what the key must be for.
        serialised: the key as its holder gave it out. Checked by its signature before it comes here.

    Raises:
        ProtocolError: it is malformed, for other parameters, or holds a secret key.
    """

    def __init__(self, parameters: Parameters, serialised: bytes) -> None:
        try:
            context = tenseal.Context.load(serialised, n_threads=1)
            _require_public(context, parameters)
            self._vectors = _Vectors(context, parameters)
            self._stream = Stream(parameters, self._vectors.zero().serialize())
            self._base = self._vectors.read(self._stream.serialised(_nearly_nothing(parameters)))
        except _FROM_SEAL as error:
            raise _refused(f"a malformed public key ({type(error).__name__})", parameters) from None
        self._degree = parameters.poly_degree
        self._modulus = parameters.modulus

    def zero(self) -> Zero:
        """A fresh encryption of zeros."""
        return self._stream.words(self._vectors.zero().serialize())

    def seal(self, zero: Zero, integers: Signed) -> Words:
        """The ciphertext of up to ``n_slots`` integers, in place of the encryption of zero: never give one twice.

        A plaintext is added to the first polynomial only. SEAL encodes it onto a ciphertext that is nothing but that
        plaintext, for which serialising takes half of what it takes for a random one.
        """
        encoded = self._stream.words((self._base + self._vectors.filled(integers)).serialize())
        add(zero[: self._degree], encoded[: self._degree], self._modulus)
        return zero


def _nearly_nothing(parameters: Parameters) -> Words:
    """A ciphertext that hides nothing. SEAL refuses one whose second polynomial is zero, so it is not quite."""
    words = np.zeros(2 * parameters.poly_degree, dtype=np.uint64)
    words[-1] = 1
    return words


class SecretKey:
    """A fresh key pair of the operating system's generator. The secret half cannot be had from outside."""

    def __init__(self, parameters: Parameters) -> None:
        context = _fresh(parameters)
        self._vectors = _Vectors(context, parameters)
        self._stream = Stream(parameters, self._vectors.zero().serialize())
        self.public: bytes = context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        self.id = hashlib.sha256(self.public).digest()

    def open(self, words: Words) -> NDArray[np.int64]:
        """All integers in one ciphertext; noise is rounded away, exactly while it is what ``parameters`` allows for.

        Raises:
            ProtocolError: these coefficients are no ciphertext.
        """
        try:
            return self._vectors.integers(self._stream.serialised(words))
        except _FROM_SEAL as error:
            raise ProtocolError(
                f"what is no ciphertext ({type(error).__name__})", "a sum of ciphertexts", "check the server"
            ) from None


class _Vectors:
    """TenSEAL's vectors of one context, each one ciphertext long."""

    def __init__(self, context: Any, parameters: Parameters) -> None:
        is_bfv = isinstance(parameters, BfvParameters)
        self._make = _ts_cpp.BFVVector if is_bfv else _ts_cpp.CKKSVector
        self._context = context.data
        self._nothing = [0] * parameters.n_slots

    def zero(self) -> Any:
        return self._make(self._context, self._nothing)

    def read(self, serialised: bytes) -> Any:
        return self._make(self._context, serialised)

    def filled(self, integers: Signed) -> list[int]:
        """All slots of a vector, since TenSEAL adds vectors of equal length only."""
        values: list[int] = integers.tolist()
        values += self._nothing[len(values) :]
        return values

    def integers(self, serialised: bytes) -> NDArray[np.int64]:
        slots = np.array(self.read(serialised).decrypt())
        rounded: NDArray[np.int64] = np.rint(slots).astype(np.int64)
        return rounded


def _fresh(parameters: Parameters) -> Any:
    common = {"coeff_mod_bit_sizes": list(parameters.coefficient_bits), "n_threads": 1}
    match parameters:
        case BfvParameters():
            scheme = tenseal.SCHEME_TYPE.BFV
            return tenseal.context(scheme, parameters.poly_degree, parameters.plain_modulus, **common)
        case CkksParameters():
            context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, parameters.poly_degree, **common)
            context.global_scale = parameters.scale
            return context
    raise TypeError(type(parameters))


def _require_public(context: Any, parameters: Parameters) -> None:
    if context.has_secret_key():
        raise _refused("a public key that comes with its secret key", parameters)
    if not context.has_public_key() or _facts(context, parameters) != _expected(parameters):
        raise _refused("a public key for other parameters", parameters)


def _facts(context: Any, parameters: Parameters) -> tuple[object, ...]:
    """What a context says of its parameters."""
    seal = context.seal_context().data
    chain = seal.key_context_data().parms()
    primes = [prime.value() for prime in chain.coeff_modulus()]
    data = [prime.value() for prime in seal.first_context_data().parms().coeff_modulus()]
    is_bfv = isinstance(parameters, BfvParameters)
    encoding = chain.plain_modulus().value() if is_bfv else context.global_scale
    lengths = tuple(prime.bit_length() for prime in primes)
    return chain.scheme().name, chain.poly_modulus_degree(), lengths, data, encoding


def _expected(parameters: Parameters) -> tuple[object, ...]:
    bits = parameters.coefficient_bits
    return parameters.scheme.upper(), parameters.poly_degree, bits, [parameters.modulus], parameters.encoding


def _refused(found: str, parameters: Parameters) -> ProtocolError:
    return ProtocolError(
        found,
        f"the public key alone, for {parameters}",
        "run the same fedray version and experiment at every party; suspect whoever sent it",
    )
