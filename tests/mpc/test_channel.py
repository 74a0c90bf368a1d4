"""What a party does with messages that are not what the program expects."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch
from three_parties import Trio

from fedray.errors import ProtocolError
from fedray.mpc.channel import Direction, Message

WORDS = torch.arange(6).reshape(2, 3)


def said(trio: Trio, words: torch.Tensor = WORDS) -> bytes:
    """A sealed message of party 0 to party 1, taken off the wire."""
    trio.parties[0].channel.send(1, words)
    return trio.queues[0, 1].get()


def heard(trio: Trio, sealed: bytes, sender: int = 0) -> torch.Tensor:
    trio.queues[sender, 1].put(sealed)
    return trio.parties[1].channel.receive(sender, WORDS)


def test_words_arrive_as_they_were_said() -> None:
    trio = Trio()
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        trio.parties[0].channel.send(1, WORDS.to(dtype).T)
        assert torch.equal(trio.parties[1].channel.receive(0, WORDS.to(dtype).T), WORDS.to(dtype).T)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sealed: sealed[:-1],
        lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]),
        lambda sealed: b"",
        lambda sealed: bytes(len(sealed)),
    ],
    ids=["short", "one bit", "empty", "zeros"],
)
def test_a_message_that_was_altered_does_not_open(spoil: Callable[[bytes], bytes]) -> None:
    trio = Trio()
    with pytest.raises(ProtocolError, match="from party 0: something that does not open"):
        heard(trio, spoil(said(trio)))


def test_a_message_that_is_said_twice_left_out_or_from_another_does_not_open() -> None:
    trio = Trio()
    first, second = said(trio), said(trio)
    heard(trio, first)
    with pytest.raises(ProtocolError, match="does not open"):
        heard(trio, first)
    other = Trio()
    said(other)
    with pytest.raises(ProtocolError, match="does not open"):
        heard(other, said(other))
    trio.parties[2].channel.send(1, WORDS)
    with pytest.raises(ProtocolError, match="from party 0"):
        heard(Trio(), trio.queues[2, 1].get())
    assert second


@pytest.mark.parametrize(
    "words", [WORDS.T, WORDS.int(), WORDS[:1], WORDS.reshape(-1)], ids=["shape", "type", "short", "flat"]
)
def test_words_of_another_shape_or_type_are_refused(words: torch.Tensor) -> None:
    trio = Trio()
    with pytest.raises(ProtocolError, match=r"expected: torch\.int64 of "):
        heard(trio, said(trio, words))


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        msgspec.msgpack.encode(Message(1, "torch.int64", (2, 3), bytes(47))),
        msgspec.msgpack.encode(Message(1, "torch.float64", (2, 3), bytes(48))),
        msgspec.msgpack.encode([1, 2]),
    ],
)
def test_sealed_garbage_is_refused(content: bytes) -> None:
    """A party that knows the key and sends nonsense."""
    trio = Trio()
    way = trio.parties[0].channel._outward[1]
    with pytest.raises(ProtocolError, match="from party 0"):
        heard(trio, way.seal(content))


def test_no_message_holds_its_words() -> None:
    trio = Trio()
    secret = torch.full((50,), 0x1122334455667788)
    assert b"\x88\x77\x66\x55" not in said(trio, secret)
    assert Direction(bytes(16)).seal(b"a") != Direction(bytes(range(16))).seal(b"a")
