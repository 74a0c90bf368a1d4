"""The intersection is exact, the messages tell what they may, and whoever lies is refused."""

from __future__ import annotations

import base64
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import ConfigError, ProtocolError
from fedray.psi import Answerer, Asker, CountingAnswerer, CountingAsker, keyed, normalised
from fedray.psi.library import library
from fedray.psi.points import POINT_BYTES
from fedray.psi.work import Parts

KEY = bytes(range(32))
IDS = [f"person-{number}" for number in range(60)]


def _run(asker: Any, answerer: Any) -> tuple[bytes, bytes, bytes]:
    request = asker.request()
    return request, answerer.offer(), answerer.answer(request)


def _points_of(request: bytes) -> list[bytes]:
    return list(library().Request.FromString(request).encrypted_elements)


# What comes out -----------------------------------------------------------------------------------------------------

SETS = st.lists(st.integers(0, 30), unique=True, max_size=25)


@settings(deadline=None, max_examples=60)
@given(asked=SETS, held=SETS, shards=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_the_intersection_and_its_size_are_those_of_the_sets(
    asked: list[int], held: list[int], shards: tuple[int, int]
) -> None:
    mine, theirs = [f"P{number} " for number in asked], [f"ｐ{number}" for number in held]
    asker, answerer = Asker(mine, KEY, shards=shards[0]), Answerer(theirs, KEY, shards=shards[1])
    _, offer, answer = _run(asker, answerer)
    rows = asker.matches(offer, answer)
    assert rows.tolist() == [row for row, number in enumerate(asked) if number in set(held)]
    counting = CountingAsker(mine, KEY, shards=shards[1])
    _, offer, answer = _run(counting, CountingAnswerer(theirs, KEY, shards=shards[0]))
    assert counting.count(offer, answer) == len(set(asked) & set(held))


def test_parties_with_different_keys_have_nothing_in_common() -> None:
    asker = Asker(IDS, KEY)
    _, offer, answer = _run(asker, Answerer(IDS, bytes(32)))
    assert asker.matches(offer, answer).tolist() == []


def test_three_owners_are_asked_one_by_one() -> None:
    """The label holder learns each pairwise intersection, and so which rows everybody has."""
    owners = [IDS[:40], IDS[20:], IDS[::2]]
    found = []
    for owner in owners:
        asker = Asker(IDS, KEY)
        _, offer, answer = _run(asker, Answerer(owner, KEY))
        found.append(set(asker.matches(offer, answer).tolist()))
    assert found == [set(range(40)), set(range(20, 60)), set(range(0, 60, 2))]
    assert set.intersection(*found) == set(range(20, 40, 2))


# Work in parts ------------------------------------------------------------------------------------------------------


class _Pool:
    """A mapper that counts what it is given."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.lengths: list[list[int]] = []

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        parts = list(items)
        self.lengths.append([len(part) for part in parts])
        return self._pool.map(function, parts)


def test_the_messages_are_the_same_bytes_for_any_number_of_parts() -> None:
    """So the number of parts and their sizes tell nothing. Halves of one secret each, cut in one, three and 60."""
    with ThreadPoolExecutor(2) as threads:
        pool = _Pool(threads)
        for asking, answering in [(Asker, Answerer), (CountingAsker, CountingAnswerer)]:
            asker, answerer = asking(IDS, KEY), answering(IDS[30:], KEY)
            secrets = asker._secret, answerer._secret
            messages = set()
            for shards in (1, 3, 60):
                asker, answerer = (
                    half(ids, KEY, shards=shards, mapper=pool.map)
                    for half, ids in [(asking, IDS), (answering, IDS[30:])]
                )
                asker._secret, answerer._secret = secrets
                messages.add(_run(asker, answerer))
            assert len(messages) == 1
    assert [20, 20, 20] in pool.lengths
    assert [1] * 60 in pool.lengths


@given(n=st.integers(0, 200), shards=st.integers(1, 50))
def test_parts_cover_everything_once_and_are_alike_in_size(n: int, shards: int) -> None:
    parts = [list(range(n))[part] for part in Parts(shards, map).slices(n)]
    assert [item for part in parts for item in part] == list(range(n))
    assert len(parts) == max(1, min(shards, n))
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= 1


def test_no_part_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 shards"):
        Asker(IDS, KEY, shards=0)


# What the messages show ---------------------------------------------------------------------------------------------


def _forms(ids: list[str]) -> Iterable[bytes]:
    """An id raw, normalised, hashed and keyed, as bytes, hexadecimal and base64."""
    for text, hmac in zip(ids, keyed(ids, KEY), strict=True):
        yield bytes.fromhex(hmac)
        yield bytes.fromhex(hmac)[:16]
        for form in {text, *normalised([text]), hmac}:
            yield form.encode()
            for name in ("md5", "sha1", "sha256", "sha512"):
                yield hashlib.new(name, form.encode()).digest()


def test_no_message_holds_an_id_raw_hashed_or_keyed() -> None:
    asked = [f"Patient {number:05}" for number in range(40)]
    held = asked[20:] + [f"Client {number:05}" for number in range(20)]
    wanted = list(_forms(sorted(set(asked) | set(held))))
    for asker, answerer in [
        (Asker(asked, KEY), Answerer(held, KEY)),
        (CountingAsker(asked, KEY), CountingAnswerer(held, KEY)),
    ]:
        for message in _run(asker, answerer):
            found = message.lower()
            for form in wanted:
                assert form.lower() not in found
                assert form.hex().encode() not in found
                assert base64.b64encode(form).rstrip(b"=") not in message


def test_the_spy_finds_what_is_there() -> None:
    planted = b"..." + hashlib.sha1(b"patient 00001").digest() + b"..."
    assert any(form in planted for form in _forms(["Patient 00001"]))


def test_the_length_of_a_message_depends_on_how_many_ids_there_are_only() -> None:
    lengths = set()
    for ids, theirs in [(IDS, IDS), (IDS, [f"other {number}" * 9 for number in range(60)]), (range(60), IDS)]:
        asker, answerer = Asker(normalised(list(ids)), KEY, shards=7), Answerer(theirs, KEY, shards=3)
        lengths.add(tuple(map(len, _run(asker, answerer))))
    assert len(lengths) == 1


def test_the_offer_does_not_tell_the_order_of_rows() -> None:
    answerer = Answerer(IDS, KEY)
    offered = list(library().ServerSetup.FromString(answerer.offer()).raw.encrypted_elements)
    assert offered == sorted(offered)
    answerer._ids.reverse()
    assert list(library().ServerSetup.FromString(answerer.offer()).raw.encrypted_elements) == offered


def test_two_runs_share_no_point() -> None:
    """Each half has a secret of its own: who sees two runs cannot link them."""
    messages = [_run(Asker(IDS, KEY), Answerer(IDS, KEY)) for _ in range(2)]
    first, second = ({message[at : at + 12] for message in run for at in range(len(message) - 12)} for run in messages)
    assert first & second == set()


def test_counting_gives_no_rows_away() -> None:
    """The answer is sorted over all parts, so that no position of it belongs to a row; and the library refuses."""
    asker, answerer = CountingAsker(IDS, KEY, shards=3), CountingAnswerer(IDS[:20], KEY, shards=4)
    _, offer, answer = _run(asker, answerer)
    answered = _response_points(answer)
    assert answered == sorted(answered)
    assert not hasattr(asker, "matches")
    curious = library().client.CreateFromKey(asker._secret._key, True)
    found = curious.GetIntersection(*_parsed(offer, answer))
    assert sorted(found) != list(range(20))
    assert len(found) == asker.count(offer, answer) == 20


def _response_points(answer: bytes) -> list[bytes]:
    return list(library().Response.FromString(answer).encrypted_elements)


def _parsed(offer: bytes, answer: bytes) -> tuple[Any, Any]:
    return library().ServerSetup.FromString(offer), library().Response.FromString(answer)


# Secrets ------------------------------------------------------------------------------------------------------------


def test_secrets_stay_in_their_process() -> None:
    for half in (Asker(IDS, KEY), Answerer(IDS, KEY), CountingAsker(IDS, KEY), CountingAnswerer(IDS, KEY)):
        secret = half._secret
        key = secret._key
        assert len(key) == 32
        for thing in (half, secret, secret.asked):
            with pytest.raises(TypeError, match=r"stays in its process|cannot pickle"):
                pickle.dumps(thing)
            assert key.hex() not in repr(thing)
            assert "person" not in repr(thing)
        assert key not in b"".join(_run_with(half))


def _run_with(half: Any) -> tuple[bytes, ...]:
    if isinstance(half, Answerer):
        asker = CountingAsker if isinstance(half, CountingAnswerer) else Asker
        return _run(asker(IDS, KEY), half)
    answerer = CountingAnswerer if isinstance(half, CountingAsker) else Answerer
    return _run(half, answerer(IDS, KEY))


# What is refused ----------------------------------------------------------------------------------------------------


def test_a_second_request_is_refused() -> None:
    answerer = Answerer(IDS, KEY)
    answerer.answer(Asker(IDS[:3], KEY).request())
    with pytest.raises(ProtocolError, match="second request"):
        answerer.answer(Asker(IDS[3:6], KEY).request())


def test_a_request_that_was_refused_leaves_room_for_a_right_one() -> None:
    answerer = Answerer(IDS, KEY, most=5)
    with pytest.raises(ProtocolError):
        answerer.answer(Asker(IDS, KEY).request())
    asker = Asker(IDS[:5], KEY)
    assert asker.matches(answerer.offer(), answerer.answer(asker.request())).tolist() == [0, 1, 2, 3, 4]


def test_sets_over_the_cap_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"60 ids(.|\n)*at most 59"):
        Answerer(IDS, KEY, most=59).answer(Asker(IDS, KEY).request())
    asker = Asker(IDS, KEY, most=59)
    _, offer, answer = _run(asker, Answerer(IDS, KEY))
    with pytest.raises(ProtocolError, match=r"60 ids(.|\n)*at most 59"):
        asker.matches(offer, answer)


@pytest.mark.parametrize(("asking", "answering"), [(Asker, CountingAnswerer), (CountingAsker, Answerer)])
def test_halves_of_different_kinds_refuse_each_other(asking: Any, answering: Any) -> None:
    with pytest.raises(ProtocolError, match="intersection"):
        answering(IDS, KEY).answer(asking(IDS, KEY).request())


OFF_CURVE = b"\x02" + b"\xff" * 32


def _request(points: list[bytes]) -> bytes:
    return bytes(library().Request(encrypted_elements=points, reveal_intersection=True).SerializeToString())


def _response(points: list[bytes]) -> bytes:
    return bytes(library().Response(encrypted_elements=points).SerializeToString())


def test_malformed_requests_are_refused() -> None:
    good = Asker(IDS, KEY).request()
    point = _points_of(good)[0]
    bad: list[Any] = [b"", b"\xff\xff", b"no message", good[:-1], good[1:], None, "text"]
    bad += [_request(points) for points in ([OFF_CURVE], [b"\0"], [point[:-1]], [point + b"0"], [point, point])]
    for message in bad:
        with pytest.raises(ProtocolError) as error:
            Answerer(IDS, KEY).answer(message)
        assert error.value.__cause__ is None
        assert "suspect" in error.value.remedy


def test_malformed_offers_and_answers_are_refused() -> None:
    asker = Asker(IDS, KEY)
    _, offer, answer = _run(asker, Answerer(IDS, KEY))
    points = _response_points(answer)
    inexact = library().server.CreateWithNewKey(True).CreateSetupMessage(0.1, 9, IDS).SerializeToString()
    for bad_offer in (b"", b"\xff\xff", offer[:-1], answer, inexact, None):
        with pytest.raises(ProtocolError):
            asker.matches(bad_offer, answer)
    bad_answers = [b"", b"\xff\xff", answer[:-1], offer, None, _response(points[:-1]), _response([*points, points[0]])]
    for bad_answer in [*bad_answers, _response([OFF_CURVE, *points[1:]])]:
        with pytest.raises(ProtocolError):
            asker.matches(offer, bad_answer)
    assert len(asker.matches(offer, answer)) == len(IDS)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_whatever_bytes_are_changed_there_is_an_answer_or_a_clear_refusal(data: Any) -> None:
    message = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ProtocolError):
        points = _response_points(Answerer(IDS[:3], KEY).answer(bytes(message)))
        assert len(points) == len(_points_of(bytes(message)))


_GOOD = Asker(IDS[:4], KEY).request()
assert len(_points_of(_GOOD)[0]) == POINT_BYTES


def test_without_the_library_one_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("private_set_intersection.python", "private_set_intersection"):
        monkeypatch.setitem(sys.modules, missing, None)
    for half in (Asker, Answerer, CountingAsker, CountingAnswerer):
        with pytest.raises(ConfigError, match=r"pip install 'fedray\[psi\]'"):
            half(IDS, KEY)


def test_the_package_itself_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "private_set_intersection.python", None)
    assert len(keyed(normalised([1, 2]), KEY)) == 2
