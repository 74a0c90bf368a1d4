"""The three messages as lists of points on the curve: OpenMined's protobuf messages, checked.

Whether the bytes of a point lie on the curve is checked by the library where it computes with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedray.errors import ProtocolError
from fedray.psi.library import decode_error, library

POINT_BYTES = 33
"""A point of P-256, compressed."""

Points = Sequence[bytes]


def request_of(points: Points, reveal: bool) -> Any:
    """The asker's message."""
    return library().Request(encrypted_elements=points, reveal_intersection=reveal)


def answer_of(points: Points) -> Any:
    """The answerer's message about the asker's set."""
    return library().Response(encrypted_elements=points)


def offer_of(points: Points) -> Any:
    """The answerer's message about its own set: sorted, so that it tells nothing of the order of its rows."""
    offer = library().ServerSetup()
    offer.raw.SetInParent()
    offer.raw.encrypted_elements.extend(sorted(points))
    return offer


def read_request(message: bytes, reveal: bool, most: int) -> Points:
    """The points of a request for the intersection (``reveal``) or for its size.

    Raises:
        ProtocolError: malformed, for the other kind, of more than ``most`` points, or with two alike.
    """
    request = _read(message, library().Request)
    if request.reveal_intersection is not reveal:
        kinds = {True: "the intersection", False: "its size"}
        raise _refused(f"a request for {kinds[not reveal]}", f"one for {kinds[reveal]}")
    points = _checked(request.encrypted_elements, most)
    if len(set(points)) < len(points):
        raise _refused("a request with one id twice", "every id once")
    return points


def read_answer(message: bytes, n: int) -> Points:
    """The ``n`` points of an answer.

    Raises:
        ProtocolError: malformed, or of another number of points.
    """
    points = _checked(_read(message, library().Response).encrypted_elements, n)
    if len(points) != n:
        raise _refused(f"an answer about {len(points)} ids", f"{n}, as many as were asked about")
    return points


def read_offer(message: bytes, most: int) -> Points:
    """The points of an offer.

    Raises:
        ProtocolError: malformed, not of the exact kind, or of more than ``most`` points.
    """
    offer = _read(message, library().ServerSetup)
    if not offer.HasField("raw"):
        raise _refused("an offer that is not exact", "points of the curve")
    return _checked(offer.raw.encrypted_elements, most)


def _read(message: bytes, kind: Any) -> Any:
    try:
        return kind.FromString(message)
    except (decode_error(), TypeError):
        raise _refused("a malformed message", f"a {kind.__name__}") from None


def _checked(points: Points, most: int) -> Points:
    if len(points) > most:
        raise _refused(f"a set of {len(points)} ids", f"at most {most}")
    if any(len(point) != POINT_BYTES for point in points):
        raise _refused("what is no point of the curve", f"{POINT_BYTES} bytes each")
    return list(points)


def _refused(found: str, expected: str) -> ProtocolError:
    return ProtocolError(found, expected, "run the same fedray version at both parties; suspect whoever sent it")
