"""The server's end of one round's messages: encodes, counts bytes, and tells answers from what is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedray.errors import ProtocolError
from fedray.protection import wire
from fedray.protocols import Ask
from fedray.values import Absent

Lost = dict[str, str]
"""Owner to the reason why it gave no answer."""


class Line:
    """Carries messages to owners.

    Attributes:
        bytes_up: received so far.
        bytes_down: sent so far.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.bytes_up = 0
        self.bytes_down = 0

    def call_owners(
        self, messages: Mapping[str, wire.Message], answer: type[wire.M], is_right: Callable[[str, wire.M], bool]
    ) -> tuple[dict[str, wire.M], Lost]:
        """The right answers of owners, and why others have none.

        Args:
            messages: owner to what it is sent.
            answer: type of the answer.
            is_right: whether an owner's answer is to what it was sent.
        """
        sent = {owner: wire.encode(message) for owner, message in messages.items()}
        self.bytes_down += sum(map(len, sent.values()))
        received = self._ask(sent)
        answers: dict[str, wire.M] = {}
        lost: Lost = {}
        for owner in sent:
            got = received.get(owner)
            if got is None or isinstance(got, Absent):
                lost[owner] = got.reason if got else "it gave no answer"
                continue
            self.bytes_up += len(got)
            try:
                decoded = wire.decode(got, answer)
            except ProtocolError as error:
                lost[owner] = error.found
                continue
            if is_right(owner, decoded):
                answers[owner] = decoded
            else:
                lost[owner] = f"its {answer.__name__} is for something else"
        return answers, lost
