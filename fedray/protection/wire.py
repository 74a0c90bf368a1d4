"""Protocol messages as bytes: a version, a length limit, then MessagePack checked against the message's type.

Decoding builds plain values of the declared types only; nothing is ever unpickled.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from fedray.errors import ProtocolError

VERSION = 1
_PREFIX = b"fedray" + bytes([VERSION])

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Run = Annotated[bytes, Meta(min_length=16, max_length=16)]
Round = Annotated[int, Meta(ge=1, le=2**31)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]

MOST_OWNERS = 10_000
Names = Annotated[list[Name], Meta(max_length=MOST_OWNERS)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all protocol messages: frozen, tagged with its type's name."""

    max_bytes: ClassVar[int] = 2**20
    """Longest encoding that is read."""


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The message on the wire."""
    return _PREFIX + msgspec.msgpack.encode(message)


def decode(data: bytes, *types: type[M]) -> M:
    """The message in ``data``, which must be of one of these types.

    Raises:
        ProtocolError: another version or type, too long, truncated, or a field out of its range.
    """
    expected = " or ".join(one.__name__ for one in types)
    if not isinstance(data, bytes) or data[: len(_PREFIX)] != _PREFIX:
        raise _refused("what is no protocol message of this version", f"version {VERSION} of {expected}")
    if len(data) > (most := max(one.max_bytes for one in types)):
        raise _refused(f"a message of {len(data)} bytes", f"{expected} of at most {most} bytes")
    for one in types:
        try:
            return msgspec.msgpack.decode(memoryview(data)[len(_PREFIX) :], type=one)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            refused = _refused(f"a malformed message ({type(error).__name__})", expected)
    raise refused


def _refused(found: str, expected: str) -> ProtocolError:
    return ProtocolError(found, expected, "run the same fedray version at every party")


def canonical(*fields: object) -> bytes:
    """Fields as the one byte string that is signed, hashed or bound to a key."""
    return msgspec.msgpack.encode(fields, order="deterministic")
