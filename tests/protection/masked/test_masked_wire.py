"""Whatever bytes come: a message of the declared type or a ProtocolError, and a round that goes on or is abandoned."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked_toys import (
    ANSWERS,
    QUESTIONS,
    RUN,
    Fork,
    LyingServer,
    Toy,
    quick_signatures,
    refused,
    require_same,
    restore,
    sealed,
    snapshot,
)

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection import wire
from fedray.protection.masked.messages import (
    SEALED_BYTES,
    Alive,
    AliveSigned,
    Briefing,
    Delivery,
    Invite,
    KeyList,
    Keys,
    Receipt,
    Reveal,
    Revealed,
    Shared,
)
from fedray.protection.wire import MOST_OWNERS, VERSION, Message, canonical, decode, encode
from fedray.values import Absent

A, B, C, D, E = ALL = [f"o0{number}" for number in range(5)]
KINDS: tuple[type[Message], ...] = (*QUESTIONS, *ANSWERS, Briefing)
PREFIX = b"fedray" + bytes([VERSION])
KEYS = Keys(RUN, 1, A, bytes(32), bytes(range(32)), b"\xff" * 32, bytes(64))
SAMPLES: dict[str, Message] = {
    type(one).__name__: one
    for one in (
        Invite(RUN, 1),
        KEYS,
        KeyList(RUN, 2**31, ALL, [KEYS, KEYS]),
        Shared(RUN, 1, A, bytes(32), {B: bytes(SEALED_BYTES), C: b"\x01" * SEALED_BYTES}),
        Delivery(RUN, 1, {B: bytes(SEALED_BYTES)}),
        Receipt(RUN, 1, "ü" * 256, ALL),
        Briefing(RUN, 1, ALL),
        Alive(RUN, 1, []),
        AliveSigned(RUN, 1, A, bytes(64)),
        Reveal(RUN, 1, {A: bytes(64)}),
        Revealed(RUN, 1, A, {A: bytes(33)}, {B: b"\x02" * 33}),
    )
}


def only_protocol_errors(data: bytes, *types: type[Message]) -> Message | None:
    try:
        found = decode(data, *(types or KINDS))
    except ProtocolError:
        return None
    assert type(found) in (types or KINDS)
    return found


# Round trips and versions


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_wire_under_its_version(kind: type[Message]) -> None:
    message = SAMPLES[kind.__name__]
    data = encode(message)
    assert data.startswith(PREFIX)
    assert decode(data, kind) == decode(data, *KINDS) == message
    assert type(decode(data, *KINDS)) is kind
    for version in (0, VERSION + 1, 255):
        with refused("this version"):
            decode(b"fedray" + bytes([version]) + data[len(PREFIX) :], kind)
    with refused("this version"):
        decode(data[len(PREFIX) :], kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_message_passes_for_another(kind: type[Message]) -> None:
    for other, message in SAMPLES.items():
        if other != kind.__name__:
            with refused("malformed"):
                decode(encode(message), kind)


NAMES = st.text(min_size=1, max_size=20)
RUNS = st.binary(min_size=16, max_size=16)
ROUNDS = st.integers(1, 2**31)


@settings(deadline=None, max_examples=150)
@given(
    run=RUNS,
    round=ROUNDS,
    owner=NAMES,
    names=st.lists(NAMES, max_size=8),
    shares=st.dictionaries(NAMES, st.binary(min_size=33, max_size=33), max_size=5),
    signatures=st.dictionaries(NAMES, st.binary(min_size=64, max_size=64), max_size=5),
)
def test_any_message_survives_the_wire(
    run: bytes,
    round: int,
    owner: str,
    names: list[str],
    shares: dict[str, bytes],
    signatures: dict[str, bytes],
) -> None:
    for message in (
        Receipt(run, round, owner, names),
        Briefing(run, round, names),
        Reveal(run, round, signatures),
        Revealed(run, round, owner, shares, shares),
    ):
        assert decode(encode(message), *KINDS) == message


# What is no message


@settings(deadline=None, max_examples=400)
@given(data=st.binary(max_size=300), is_prefixed=st.booleans())
def test_random_bytes_are_refused(data: bytes, is_prefixed: bool) -> None:
    only_protocol_errors(PREFIX + data if is_prefixed else data)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_truncation_and_extension_is_refused(kind: str) -> None:
    data = encode(SAMPLES[kind])
    for end in range(len(data)):
        assert only_protocol_errors(data[:end]) is None
    for more in (b"\0", b"\xc0", data[len(PREFIX) :], bytes(1000)):
        assert only_protocol_errors(data + more) is None


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_flipped_bit_is_refused_or_gives_another_valid_message(kind: str) -> None:
    message, data = SAMPLES[kind], encode(SAMPLES[kind])
    for bit in range(8 * min(len(data), 400)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        found = only_protocol_errors(bytes(changed))
        assert found is None or (found != message and only_protocol_errors(encode(found)) == found)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=70)
    | st.sampled_from([RUN, bytes(32), bytes(33), bytes(64), bytes(SEALED_BYTES), 1, A]),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5) | st.integers(0, 5), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=400)
@given(tag=st.sampled_from(sorted(SAMPLES)) | st.text(max_size=9), fields=st.lists(PLAIN, max_size=8))
def test_confused_types_are_refused(tag: str, fields: list[object]) -> None:
    found = only_protocol_errors(PREFIX + msgspec.msgpack.encode([tag, *fields]))
    assert found is None or only_protocol_errors(encode(found)) == found


@pytest.mark.parametrize("kind", SAMPLES)
def test_each_field_of_another_type_or_size_is_refused(kind: str) -> None:
    fields = msgspec.msgpack.decode(encode(SAMPLES[kind])[len(PREFIX) :])
    wrong: list[object] = [
        None,
        True,
        -1,
        0,
        2**31 + 1,
        2**63,
        1.0,
        "",
        "x" * 257,
        b"",
        bytes(15),
        bytes(31),
        bytes(65),
    ]
    wrong += [[None], [1], [""], ["x" * 257], {"x": None}, {"x": bytes(32)}, {"": bytes(33)}, {1: bytes(33)}, [[[]]]]
    for position in range(1, len(fields)):
        for value in wrong:
            changed = [*fields[:position], value, *fields[position + 1 :]]
            assert only_protocol_errors(PREFIX + msgspec.msgpack.encode(changed)) is None, (position, value)
    for changed in (fields[:-1], [*fields, 1], [*fields, fields[-1]], fields[1:], {"run": RUN}, fields[0]):
        assert only_protocol_errors(PREFIX + msgspec.msgpack.encode(changed)) is None


@pytest.mark.parametrize(
    "data", [None, "fedray", 1, [], bytearray(encode(Invite(RUN, 1))), memoryview(encode(Invite(RUN, 1)))]
)
def test_what_is_not_bytes_is_refused(data: Any) -> None:
    with refused("this version"):
        decode(data, Invite)


# Too long, too deep, too many


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_longer_messages_than_allowed_are_not_even_parsed(kind: type[Message], monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    real = msgspec.msgpack.decode
    monkeypatch.setattr(msgspec.msgpack, "decode", lambda *given, **named: parsed.append(1) or real(*given, **named))
    data = encode(SAMPLES[kind.__name__])
    padded = data + bytes(kind.max_bytes - len(data))
    with refused("malformed"):
        decode(padded, kind)
    assert parsed
    parsed.clear()
    with refused(f"a message of {kind.max_bytes + 1} bytes"):
        decode(padded + b"\0", kind)
    assert not parsed


def test_the_largest_federation_fits_the_limits() -> None:
    names = [f"{number:0>64}" for number in range(MOST_OWNERS)]
    for message in (
        KeyList(RUN, 1, names, [Keys(RUN, 1, name, *[bytes(32)] * 3, bytes(64)) for name in names]),
        Shared(RUN, 1, A, bytes(32), dict.fromkeys(names, bytes(SEALED_BYTES))),
        Delivery(RUN, 1, dict.fromkeys(names, bytes(SEALED_BYTES))),
        Receipt(RUN, 1, A, names),
        Briefing(RUN, 1, names),
        Alive(RUN, 1, names),
        Reveal(RUN, 1, dict.fromkeys(names, bytes(64))),
        Revealed(RUN, 1, A, dict.fromkeys(names, bytes(33)), {}),
    ):
        assert decode(encode(message), type(message)) == message


def test_more_owners_than_allowed_are_refused() -> None:
    names = [str(number) for number in range(MOST_OWNERS + 1)]
    for message in (
        KeyList(RUN, 1, names, []),
        Shared(RUN, 1, A, bytes(32), dict.fromkeys(names, bytes(SEALED_BYTES))),
        Receipt(RUN, 1, A, names),
        Briefing(RUN, 1, names),
        Reveal(RUN, 1, dict.fromkeys(names, bytes(64))),
        Revealed(RUN, 1, A, {}, dict.fromkeys(names, bytes(33))),
    ):
        with refused("malformed"):
            decode(encode(message), type(message))


HUGE = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
]


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("kind", SAMPLES)
def test_a_huge_declared_length_takes_no_memory(huge: bytes, kind: str) -> None:
    data = encode(SAMPLES[kind])
    tracemalloc.start()
    for at in range(len(PREFIX), min(len(data), 200)):
        assert only_protocol_errors(data[:at] + huge + data[at:]) is None
        only_protocol_errors(data[:at] + huge)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("deep", [b"\x91", b"\x81\xa1x", b"\xdc\x00\x01", b"\xc7", b"\xd9"])
def test_deep_nesting_is_refused(deep: bytes) -> None:
    for start in (b"", b"\x94\xa8Briefing", b"\x94\xa8Briefing\xc4\x10" + RUN + b"\x01"):
        for depth in (10, 1000, 100_000):
            assert only_protocol_errors(PREFIX + start + deep * depth) is None


class Bomb:
    went_off = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _go_off, ()


def _go_off() -> None:
    Bomb.went_off = True


def test_nothing_is_ever_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for payload in (pickle.dumps(Bomb(), protocol), pickle.dumps(b"x" * 40, protocol)):
            for data in (payload, PREFIX + payload, PREFIX + msgspec.msgpack.encode(["Invite", payload, 1])):
                with refused("."):
                    decode(data, *KINDS)
    extension = msgspec.msgpack.encode(["Invite", msgspec.msgpack.Ext(1, pickle.dumps(Bomb())), 1])
    with refused("malformed"):
        decode(PREFIX + extension, *KINDS)
    assert not Bomb.went_off
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.went_off


def test_the_wire_knows_no_pickle() -> None:
    sources = Path(wire.__file__).parent
    for path in [*sources.glob("*.py"), *(sources / "masked").glob("*.py")]:
        assert "import pickle" not in path.read_text(), path


def test_signed_fields_cannot_run_into_each_other() -> None:
    different = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (b"ab", "c"),
        (["ab", "c"],),
        ("ab", "c", ""),
        (["ab"], "c"),
        (1, "1"),
    ]
    assert len({canonical(*fields) for fields in different}) == len(different)
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})


# Owners and server fed with what is almost right


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_signatures():
        yield


class Mutant:
    """Bytes with something wrong in them, by an own generator: a flip, a cut, a repetition or a swap of parts."""

    def __init__(self, seed: int) -> None:
        self._draws = np.random.default_rng(seed)

    def __call__(self, data: bytes) -> bytes:
        kind = self._draws.integers(6)
        at, other = sorted(int(place) for place in self._draws.integers(0, len(data) + 1, 2))
        if kind == 0:
            return data[:at]
        if kind == 1:
            return data[:at] + data[other:]
        if kind == 2:
            return data[:other] + data[at:]
        if kind == 3:
            return data[:at] + os.urandom(other - at) + data[other:]
        changed = bytearray(data)
        for place in self._draws.integers(0, 8 * len(data), int(self._draws.integers(1, 4))):
            changed[place // 8] ^= 1 << int(place) % 8
        return bytes(changed)


@pytest.mark.parametrize("stage", ["keys", "shares", "receipts", "updates", "signed", "revealed"])
def test_an_owner_fed_with_mutants_raises_protocol_errors_only(stage: str, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    server = LyingServer(toy).at(stage)
    message = {
        "keys": lambda: Invite(RUN, 1),
        "shares": lambda: server.key_list(A),
        "receipts": lambda: server.delivery(A),
        "updates": lambda: Briefing(RUN, 1, ALL),
        "signed": lambda: Alive(RUN, 1, ALL),
        "revealed": lambda: Reveal(RUN, 1, {name: server.signatures[name] for name in ALL if name != A}),
    }[stage]()
    before, journal = snapshot(toy.sealers), toy.folder / f"{A}.json"
    written = journal.read_bytes() if journal.exists() else None
    n_refused = 0
    for seed in range(300):
        data = Mutant(seed)(encode(message))
        restore(toy.sealers, before)
        journal.unlink(missing_ok=True) if written is None else journal.write_bytes(written)
        try:
            if stage == "updates":
                server.seal_by(A, data)
            else:
                decode(toy.sealers[A].answer(data), *ANSWERS)
        except ProtocolError:
            n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda kind: kind.__name__)
def test_a_server_fed_with_mutants_loses_owners_or_the_round_and_nothing_else(
    question: type[Message], tmp_path: Path
) -> None:
    n_opened = n_abandoned = 0
    if question in (Alive, Reveal):
        toy = Toy(tmp_path)
        fork = Fork(toy)
    for seed in range(80):
        mutant, n_liars = Mutant(seed), 1 + seed % 4
        if question not in (Alive, Reveal):
            toy = Toy(tmp_path / str(seed))
        toy.tamper = lambda name, asked, answer, toy=toy, mutant=mutant, n_liars=n_liars: (
            mutant(answer) if isinstance(asked, question) and name in toy.names[:n_liars] else answer
        )
        try:
            combiner = fork.played(ALL, {}) if question in (Alive, Reveal) else toy.uploaded()
            total = combiner.open()
        except RoundAbandoned:
            n_abandoned += 1
            continue
        n_opened += 1
        require_same(total, toy.plain(combiner._alive))
    assert n_opened > 10
    assert n_abandoned > 10


@pytest.mark.parametrize("stage", range(5))
def test_a_server_whose_owners_answer_at_random_abandons_the_round(stage: int, tmp_path: Path) -> None:
    for seed in range(40):
        toy = Toy(tmp_path / str(seed))
        draws = np.random.default_rng(seed)
        said: list[bytes] = []

        def mixed(name: str, asked: Message, answer: bytes, draws: Any = draws, said: Any = said) -> bytes:
            said.append(answer)
            is_late = QUESTIONS.index(type(asked)) >= stage
            return said[int(draws.integers(len(said)))] if is_late and draws.random() < 0.6 else answer

        toy.tamper = mixed
        combiner = toy.prepared()
        for name in list(combiner.owners):
            try:
                payload = toy.seal(combiner, name)
            except ProtocolError:
                continue
            combiner.add(sealed(name, 1, payload))
        try:
            require_same(combiner.open(), toy.plain(combiner._alive))
        except RoundAbandoned:
            assert combiner.record().outcome == "abandoned"


@pytest.mark.parametrize("answer", [b"", Absent(A, 1, "absent", "gone"), b"\x80\x04N.", PREFIX])
def test_a_server_whom_nobody_answers_abandons_the_round(answer: bytes | Absent, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    combiner = toy.protection.combiner(1, ALL, lambda messages: dict.fromkeys(messages, answer))
    assert list(combiner.owners) == []
    assert set(combiner.lost) == set(ALL)
    with pytest.raises(RoundAbandoned):
        combiner.open()
    silent = toy.protection.combiner(2, ALL, lambda messages: {})
    assert set(silent.lost.values()) == {"it gave no answer"}
    with pytest.raises(RoundAbandoned):
        silent.open()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=st.binary(max_size=40), kind=st.sampled_from([np.uint16, np.uint32, np.uint8, np.int16, np.float64, object])
)
def test_no_payload_but_one_of_the_ring_is_added(payload: bytes, kind: Any, tmp_path_factory: Any) -> None:
    toy = _PREPARED.setdefault("toy", Toy(tmp_path_factory.mktemp("payloads")))
    combiner = _PREPARED.setdefault("combiner", toy.prepared())
    n_before = combiner.n_added
    raw = np.frombuffer(payload[: len(payload) // 8 * 8], dtype=np.uint8)
    array = raw.astype(object) if kind is object else raw.view(kind)
    if array.dtype == toy.fixed_point.ring and array.shape == (toy.fixed_point.length,):
        return
    with pytest.raises(UpdateRefused):
        combiner.add(sealed(A, 1, array))
    assert combiner.n_added == n_before


_PREPARED: dict[str, Any] = {}
