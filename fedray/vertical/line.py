"""The label holder's line to feature owners: messages out, checked answers back, and how many bytes that took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fedray.errors import ProtocolError
from fedray.protection.wire import Message, decode, encode
from fedray.vertical.messages import Ask

M = TypeVar("M", bound=Message)


class Line:
    """Talks with all owners at once.

    Args:
        ask: carries bytes.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.n_sent = 0
        self.n_received = 0

    def ask(self, messages: Mapping[str, Message], expected: type[M]) -> dict[str, M]:
        """What owners answer to these messages.

        Raises:
            ProtocolError: an answer is malformed or of another type; names the owner. Or an owner refuses.
            RunError: an owner is gone.
        """
        sent = {name: encode(message) for name, message in messages.items()}
        answers = self._ask(sent)
        self.n_sent += sum(map(len, sent.values()))
        self.n_received += sum(map(len, answers.values()))
        return {name: _read(name, answers[name], expected) for name in messages}


def _read(name: str, answer: bytes, expected: type[M]) -> M:
    try:
        return decode(answer, expected)
    except ProtocolError as error:
        raise ProtocolError(f"from {name!r}: {error.found}", error.expected, error.remedy) from None
