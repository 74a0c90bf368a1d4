"""What parties say to each other: tensors in the order of the program, sealed, counted in bytes and rounds.

Whoever heard all three parties' messages could add them up, so each is sealed for its receiver (AES-128 in GCM, under a
key for one direction, with the message's number as nonce): one that was altered, left out or said twice does not open.
A message carries its depth: how many messages of this operator, one after the other, it builds on. The largest depth of
any party is the number of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from fedray.errors import ProtocolError

_NONCE_BYTES = 12
_DTYPES = {str(dtype): dtype for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)}


class Message(msgspec.Struct, frozen=True):
    """One tensor on its way.

    Args:
        depth: rounds that it builds on, itself included.
        dtype: of the words.
        shape: of the words.
        words: their bytes.
    """

    depth: int
    dtype: str
    shape: tuple[int, ...]
    words: bytes


class Post(Protocol):
    """How sealed messages travel, in order."""

    def send(self, receiver: int, sealed: bytes) -> None:
        """Send, and go on at once."""

    def receive(self, sender: int) -> bytes:
        """Wait for the next message of a party.

        Raises:
            RunError: the party is gone, or silent for too long.
        """


@dataclass
class Direction:
    """One way between two parties.

    Args:
        key: 16 bytes that only these two know, for this way.
        number: messages so far.
    """

    key: bytes
    number: int = 0

    def seal(self, content: bytes) -> bytes:
        return AESGCM(self.key).encrypt(self._nonce(), content, None)

    def open(self, sealed: bytes) -> bytes:
        return AESGCM(self.key).decrypt(self._nonce(), sealed, None)

    def _nonce(self) -> bytes:
        self.number += 1
        return self.number.to_bytes(_NONCE_BYTES, "big")

    def __repr__(self) -> str:
        return f"Direction(number={self.number})"


class Channel:
    """One party's end of the talk.

    Args:
        post: carries messages.
        outward: the ways to the others, by party.
        inward: the ways from the others.

    Attributes:
        bytes_sent: how many so far, without envelopes.
        depth: rounds so far in this operator.
    """

    def __init__(self, post: Post, outward: Mapping[int, Direction], inward: Mapping[int, Direction]) -> None:
        self._post = post
        self._outward = outward
        self._inward = inward
        self.bytes_sent = 0
        self.depth = 0

    def send(self, receiver: int, words: Tensor) -> None:
        """Say a tensor to a party."""
        content = words.contiguous().numpy().tobytes()
        message = Message(self.depth + 1, str(words.dtype), tuple(words.shape), content)
        self.bytes_sent += len(content)
        self._post.send(receiver, self._outward[receiver].seal(msgspec.msgpack.encode(message)))

    def receive(self, sender: int, like: Tensor) -> Tensor:
        """Hear a tensor from a party.

        Args:
            sender: party.
            like: of the shape and type that must come.

        Raises:
            ProtocolError: something else came.
            RunError: the party is gone, or silent for too long.
        """
        message = self._opened(sender, self._post.receive(sender))
        if (message.dtype, message.shape) != (str(like.dtype), tuple(like.shape)):
            raise _garbage(sender, f"{message.dtype} of shape {message.shape}", f"{like.dtype} of {tuple(like.shape)}")
        self.depth = max(self.depth, message.depth)
        if not message.words:
            return torch.empty_like(like)
        return torch.frombuffer(bytearray(message.words), dtype=like.dtype).reshape(like.shape)

    def _opened(self, sender: int, sealed: bytes) -> Message:
        way = self._inward[sender]
        try:
            message = msgspec.msgpack.decode(way.open(sealed), type=Message)
        except (InvalidTag, TypeError, ValueError, msgspec.DecodeError):
            raise _garbage(sender, "something that does not open", f"its message {way.number}") from None
        dtype = _DTYPES.get(message.dtype)
        if dtype is None or len(message.words) != dtype.itemsize * math.prod(message.shape):
            raise _garbage(sender, f"{len(message.words)} bytes of {message.dtype}", "words of the shape that it names")
        return message


def _garbage(sender: int, found: str, expected: str) -> ProtocolError:
    return ProtocolError(f"from party {sender}: {found}", expected, "start the parties again, and suspect that one")
