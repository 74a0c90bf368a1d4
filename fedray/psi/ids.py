"""Ids: the same text at every party, keyed so that nobody outside can guess them, and pointed at.

No error of this file holds an id.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedray.errors import ConfigError, DataError, ProtocolError

POINTER_BYTES = 16
"""Two of n ids share a pointer with a probability of n**2 / 2**129."""
KEY_BYTES = 32
_ID, _POINTER = b"fedray psi id\0", b"fedray psi pointer\0"


def normalised(ids: Sequence[object]) -> list[str]:
    """Ids in the one form that all parties compare: Unicode NFKC, case folded, no space around; integers as decimal.

    Normalising what is normalised changes nothing.

    Args:
        ids: strings or integers, shape (n,).

    Raises:
        DataError: an id is neither, is empty, or is there twice once normalised. The message names rows, never an id.
    """
    texts = [_text(value, row) for row, value in enumerate(ids)]
    if "" in texts:
        raise DataError(f"an empty id in row {texts.index('')}", "an id in every row", "drop rows without one")
    if len(set(texts)) < len(texts):
        first, second = _alike(texts)
        raise DataError(
            f"the same id in rows {first} and {second}, once normalised",
            "every id once (letter case, width and space around do not count)",
            "keep one row an id",
        )
    return texts


def keyed(ids: Sequence[str], key: bytes) -> list[str]:
    """HMAC-SHA256 of each normalised id, in hexadecimal: what enters the protocol instead of the id.

    Args:
        ids: shape (n,); normalised here once more, which changes nothing.
        key: at least 32 bytes that the parties share with each other and with nobody else.

    Raises:
        ConfigError: the key is too short.
        DataError: see ``normalised``.
    """
    return [digest.hex() for digest in _digests(ids, key, _ID)]


def pointers(ids: Sequence[str], key: bytes) -> NDArray[np.uint8]:
    """What names each id to the one party that shares the key, and to nobody else, shape (n, 16).

    The label holder tells an owner the order of its common rows by them, and sends random bytes where the owner lacks
    the row.

    Args:
        ids: shape (n,).
        key: at least 32 bytes that the label holder and this owner alone share.

    Raises:
        ConfigError: the key is too short.
        DataError: see ``normalised``.
    """
    joined = b"".join(digest[:POINTER_BYTES] for digest in _digests(ids, key, _POINTER))
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, POINTER_BYTES).copy()


def order(pointers: NDArray[np.uint8], ids: Sequence[str], key: bytes) -> NDArray[np.int64]:
    """The row that each pointer names, shape (n,); -1 where it names none.

    Args:
        pointers: shape (n, 16), as ``pointers`` gives them.
        ids: the owner's own, in the order of its rows.
        key: as given to ``pointers``.

    Raises:
        ConfigError: the key is too short.
        DataError: see ``normalised``.
        ProtocolError: what came are no pointers, or two are alike.
    """
    _require_pointers(pointers)
    rows = {digest[:POINTER_BYTES]: row for row, digest in enumerate(_digests(ids, key, _POINTER))}
    return np.array([rows.get(pointer.tobytes(), -1) for pointer in pointers], dtype=np.int64)


def _text(value: object, row: int) -> str:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        raise DataError(
            f"an id of type {type(value).__name__} in row {row}",
            "strings or integers",
            "convert the column: a number read as a float lacks its last digits, or has a .0",
        )
    return value.strip().lower() if value.isascii() else _folded(value, row)


def _folded(text: str, row: int) -> str:
    """Until nothing changes: folding can undo the normal form, and the normal form can give space or upper case."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"half a character (a lone surrogate) in the id in row {row}", "Unicode text", "read it anew")
    while (folded := unicodedata.normalize("NFKC", text).casefold().strip()) != text:
        text = folded
    return text


def _alike(texts: list[str]) -> tuple[int, int]:
    """The first row that repeats an earlier one, and that one before it."""
    seen: dict[str, int] = {}
    for row, text in enumerate(texts):
        if text in seen:
            return seen[text], row
        seen[text] = row
    raise ValueError("all differ")


def _digests(ids: Sequence[str], key: bytes, purpose: bytes) -> list[bytes]:
    if len(key) < KEY_BYTES:
        raise ConfigError(f"a key of {len(key)} bytes", f"at least {KEY_BYTES}", "take os.urandom(32)")
    return [hmac.digest(key, purpose + text.encode(), "sha256") for text in normalised(ids)]


def _require_pointers(pointers: NDArray[np.uint8]) -> None:
    is_shaped = isinstance(pointers, np.ndarray) and pointers.dtype == np.uint8 and pointers.ndim == 2
    if not is_shaped or pointers.shape[1] != POINTER_BYTES:
        raise ProtocolError("what are no pointers", f"uint8 of shape (n, {POINTER_BYTES})", "check the label holder")
    if len({pointer.tobytes() for pointer in pointers}) < len(pointers):
        raise ProtocolError("the same pointer twice", "a row once", "check the label holder")
