"""Encryptions of zero, made ahead while the owner trains, so that sealing need only add the update to them.

Encrypting is sampling and transforms, and takes six times what adding does. *Deviation* from encrypting pieces in Ray
tasks: an encryption of zero must not leave the process that seals with it, through the object store least of all.
Whoever knows it subtracts it from the sealed piece and reads the update.
"""

from __future__ import annotations

from collections import deque

from fedray.protection.homomorphic.cipher import PublicKey, Zero


class Zeros:
    """Encryptions of zero for one payload; each is handed out once and forgotten.

    One thread may fill while another takes.

    Args:
        key: what they are made with.
        n: how many are wanted.
    """

    def __init__(self, key: PublicKey, n: int) -> None:
        self._key = key
        self._n_wanted = n
        self._made: deque[Zero] = deque()

    def __len__(self) -> int:
        return len(self._made)

    def fill(self) -> None:
        """Make what is wanted, one at a time, so that other threads run in between."""
        while len(self._made) < self._n_wanted:
            self._made.append(self._key.zero())

    def stop(self) -> None:
        """Make no more: from here on they are taken."""
        self._n_wanted = 0

    def take(self) -> Zero:
        """One that nobody has used; made on the spot where none is ready."""
        try:
            return self._made.popleft()
        except IndexError:
            return self._key.zero()
