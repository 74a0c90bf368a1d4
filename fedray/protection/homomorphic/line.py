"""The server's line to owners, and to the key holder beside them."""

from __future__ import annotations

from fedray.protection import wire
from fedray.protection.line import Line
from fedray.protocols import Ask, KeyHolder


class KeyHolderLine(Line):
    """Carries messages to owners and to the key holder; counts both."""

    def __init__(self, ask: Ask, key_holder: KeyHolder) -> None:
        super().__init__(ask)
        self._key_holder = key_holder

    def call_key_holder(self, message: wire.Message, answer: type[wire.M]) -> wire.M:
        """What the key holder answers.

        Raises:
            ProtocolError: it refuses, or its answer is malformed.
        """
        sent = wire.encode(message)
        self.bytes_down += len(sent)
        received = self._key_holder.answer(sent)
        self.bytes_up += len(received)
        return wire.decode(received, answer)
