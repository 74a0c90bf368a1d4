"""Random linear forms by which a sum is checked before it is given out, without seeing what was summed.

BFV and CKKS are secure against who reads, not against who has chosen ciphertexts opened: adding ``q/t * g`` to the
second polynomial of a sum makes it open to ``sum + g * s``, s the secret key (attack known since Loftus et al. 2011;
tests run it). Nor may one owner's ciphertext be passed off as a sum. A signature over the sum cannot help, for nobody
but the server sees it made; and marks in slots of the ciphertext do not, for ``g`` can be zero there. So:

1. The server hands in the sum. Then, not before, the key holder draws a seed for two vectors ``rho`` over Z/2**64.
2. Every owner u in the sum answers ``<rho, m_u> + pad_u`` of its own integers m_u. Its pad comes from a key that it
   shares with the key holder (X25519, fresh for every contribution), and is used once.
3. The server adds the answers. The key holder decrypts the sum, and gives it out only if
   ``<rho, decrypted> + sum of the pads of all owners in the manifest`` is what the server brought.

Argument. The pads hide each owner's form from the server, and the server's adding hides it from the key holder, who
learns nothing it could not compute from the sum. Let ``D`` be what was decrypted less the honest owners' integers. To
pass, server and lying owners must bring ``<rho, D>`` for a rho drawn after D was fixed: whoever can do that for more
than one in 2**66 draws knows D (two vectors D, D' of 32-bit integers agree on a random form with probability at most
``2**(31 - 64)``, and there are two forms). So what is given out tells them the sum of the honest owners' updates,
which they may have, plus a vector that they knew: they could have sent it as an update. In particular:

* a single contribution, a doubled one, one left out, a foreign one, another round's: the pads do not cancel;
* ``g * s``, a product of ciphertexts, noise pushed over its bound: D depends on the secret key;
* a lying owner's copy of an honest owner's ciphertext, negated or not: D depends on that owner's update.

What remains is a guess: fix D up to one bit, answer for one value and see whether the sum is given out. A wrong guess
costs the key (see ``key_holder``), so that k bits are learned with probability 2**-k: as by guessing them.

This is our construction; the idea of checking by random linear forms is Freivalds's (1977), of proving knowledge of a
plaintext that of non-malleable encryption. It costs one exchange with owners after they have sealed.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedray.errors import ProtocolError
from fedray.protection.encoding import Signed
from fedray.protection.wire import canonical

N_FORMS = 2
N_BYTES = 8 * N_FORMS
"""Length of an answer."""

Forms = NDArray[np.uint64]
"""Values of the linear forms modulo 2**64, shape ``(N_FORMS,)``."""


class Probe:
    """The forms of one seed, evaluated on a vector that is fed piece by piece.

    Args:
        seed: 32 bytes; forms are drawn from AES-256 in counter mode under it, 16 bytes a value.
    """

    def __init__(self, seed: bytes) -> None:
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        self.forms: Forms = np.zeros(N_FORMS, dtype=np.uint64)

    def feed(self, integers: Signed) -> None:
        """Go on with these integers of the vector."""
        drawn = self._stream.update(bytes(N_BYTES * len(integers)))
        rho = np.frombuffer(drawn, dtype="<u8").reshape(-1, N_FORMS)
        self.forms += integers.astype(np.uint64) @ rho


def to_bytes(forms: Forms) -> bytes:
    """Forms on the wire."""
    return forms.astype("<u8").tobytes()


def from_bytes(data: bytes) -> Forms:
    """Forms from the wire, ``N_BYTES`` long."""
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def pad(private: X25519PrivateKey, public: bytes, *context: object) -> Forms:
    """The pad that the two ends of a key agreement share (X25519, RFC 7748; HKDF-SHA256, RFC 5869).

    Args:
        private: this end's key.
        public: the other end's, 32 bytes.
        context: what the pad is for; a pad is used once.

    Raises:
        ProtocolError: the public key is a point of small order.
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError("an X25519 key of small order", "a key from its generator", "suspect its sender") from None
    derived = HKDF(SHA256(), length=N_BYTES, salt=None, info=canonical("fedray", "pad", *context)).derive(shared)
    return from_bytes(derived)
