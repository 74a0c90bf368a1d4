"""Contributions on disk until their sum is opened, so that one can be taken out again. They are ciphertexts still."""

from __future__ import annotations

import tempfile
import weakref
from functools import cached_property
from typing import IO

import numpy as np

from fedray.values import Payload


class Spool:
    """Payloads of one length by owner, in a temporary file without a name: it is gone when the process is."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._places: dict[str, int] = {}

    @cached_property
    def _file(self) -> IO[bytes]:
        """Made when first used, for rounds are prepared that are never run."""
        made = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the round
        weakref.finalize(self, made.close)
        return made

    def keep(self, owner: str, payload: Payload) -> None:
        """Write an owner's payload."""
        self._places[owner] = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(payload).data)

    def read(self, owner: str) -> Payload:
        """An owner's payload."""
        self._file.seek(self._places[owner])
        return np.frombuffer(self._file.read(self._n_bytes), dtype=np.uint8)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
