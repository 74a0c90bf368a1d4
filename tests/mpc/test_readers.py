"""Who may learn a result, and what a party does when something is wrong."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Thread

import msgspec
import pytest
import torch

from fedray.errors import ConfigError, DataError, ProtocolError, RunError
from fedray.mpc.conducting import MOST_BEGUN, opened
from fedray.mpc.engine import Ref
from fedray.mpc.keys import Reader, sealed_for
from fedray.mpc.local import PATIENCE_S, LocalParties
from fedray.mpc.worker import Halves, packed, unpacked

X = torch.tensor([1.5, -2.0])


@pytest.fixture
def parties() -> Iterator[LocalParties]:
    with LocalParties() as started:
        yield started


def test_a_result_goes_to_those_who_may_read_all_that_it_was_computed_from(parties: LocalParties) -> None:
    hospital, clinic = Reader(), Reader()
    of_both = parties.share(X, [hospital.public, clinic.public])
    of_one = parties.share(X, [hospital.public])
    product = parties.run("multiply", of_both, of_one)
    assert opened(parties.sealed(product, hospital.public), hospital).tolist() == [2.25, 4.0]
    for ref in (product, of_one):
        with pytest.raises(ProtocolError, match="may not learn"):
            parties.sealed(ref, clinic.public)
        with pytest.raises(ProtocolError, match="may not learn"):
            parties.reveal(ref)
    assert opened(parties.sealed(of_both, clinic.public), clinic).tolist() == X.tolist()


def test_a_sealed_result_opens_for_its_reader_alone(parties: LocalParties) -> None:
    hospital = Reader()
    sealed = parties.sealed(parties.share(X, [hospital.public]), hospital.public)
    with pytest.raises(ProtocolError, match="does not open"):
        opened(sealed, Reader())
    number, parts = msgspec.msgpack.decode(sealed, type=tuple[int, list[bytes]])
    with pytest.raises(ProtocolError, match="does not open"):
        opened(msgspec.msgpack.encode((number, [parts[1], parts[0], parts[2]])), hospital)
    for malformed in (b"garbage", msgspec.msgpack.encode((number, parts[:2])), msgspec.msgpack.encode((number, []))):
        with pytest.raises(ProtocolError, match="malformed"):
            opened(malformed, hospital)


def test_a_party_that_computed_something_else_is_noticed(parties: LocalParties) -> None:
    ref = parties.share(X)
    held = parties.workers[1]._held[ref.number]
    parties.workers[1]._held[ref.number] = replace(held, share=-held.share)
    with pytest.raises(ProtocolError, match="do not belong together"):
        parties.reveal(ref)


def test_a_share_for_another_party_or_of_another_value_does_not_open(parties: LocalParties) -> None:
    share = parties.workers[0]._held[parties.share(X).number].share
    for public, number in ((parties._publics[1], 7), (parties._publics[0], 8)):
        sealed = sealed_for(public, packed(share), "share", number)
        with pytest.raises(ProtocolError, match="does not open"):
            parties.workers[0].keep(7, sealed, [])


def test_who_carries_a_share_can_change_neither_its_readers_nor_its_number(parties: LocalParties) -> None:
    """Or it would have the parties open the value to itself."""
    carried: list[tuple[int, bytes]] = []
    worker, thief = parties.workers[0], Reader()
    keep = worker.keep

    def carrying(number: int, sealed: bytes, readers: frozenset[bytes]) -> None:
        carried.append((number, sealed))
        keep(number, sealed, readers)

    worker.keep = carrying  # type: ignore[method-assign]
    ref = parties.share(X)
    ((number, sealed),) = carried
    for another in ((number, [thief.public]), (number, [parties.reader.public, thief.public]), (number + 1, [])):
        with pytest.raises(ProtocolError, match="does not open"):
            keep(another[0], sealed, another[1])
    with pytest.raises(ProtocolError, match="holds a value"):
        keep(number, sealed, [parties.reader.public])
    assert parties.reveal(ref).tolist() == X.tolist()


def test_an_operator_does_not_overwrite_a_value(parties: LocalParties) -> None:
    ref = parties.share(X)
    parties._ask_all("run", ref.number, "negate", [ref], {})
    with pytest.raises(ProtocolError, match="holds a value"):
        parties.reveal(ref)


def test_a_party_that_stops_alone_ends_the_others_in_seconds(parties: LocalParties) -> None:
    x = parties.share(X)
    parties.workers[2].forget([x.number])
    began = time.monotonic()
    with pytest.raises((RunError, ProtocolError), match=r"does not hold|no word of party 2: a value that"):
        parties.reveal(parties.run("sigmoid", x))
    parties.close()
    assert all(worker.stopped for worker in parties.workers)
    assert time.monotonic() - began < PATIENCE_S / 2


def test_parties_that_were_ended_are_named_as_such(parties: LocalParties) -> None:
    parties.close()
    with pytest.raises(RunError, match="parties that were ended"):
        parties.share(X)


def test_threads_that_compute_at_once_do_not_confuse_the_parties(parties: LocalParties) -> None:
    """Each party would take their operators in another order, and draw for one what its peer draws for another."""
    x = parties.share(X)
    ask = parties._ask

    def slowly(index: int, method: str, *args: object) -> Future[object]:
        time.sleep(0.0005)
        return ask(index, method, *args)

    parties._ask = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as threads:
        products = list(threads.map(lambda _: parties.run("multiply", x, x), range(40)))
    assert all(parties.reveal(product).tolist() == (X * X).tolist() for product in products)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        msgspec.msgpack.encode(Halves((2,), 20_000, bytes(16), bytes(16))),
        msgspec.msgpack.encode(Halves((2,), -1, bytes(16), bytes(16))),
        msgspec.msgpack.encode(Halves((-1,), 20, bytes(16), bytes(16))),
        b"garbage",
        msgspec.msgpack.encode(Halves((2,), 20, bytes(16), bytes(8))),
        msgspec.msgpack.encode(Halves((3,), 20, bytes(16), bytes(16))),
        msgspec.msgpack.encode(Halves((2,), 20, bytes(15), bytes(16))),
    ],
)
def test_a_malformed_share_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        unpacked(content)


def test_after_a_failure_parties_say_what_it_was(parties: LocalParties) -> None:
    ref = parties.share(X)
    bad = parties.run("matmul", ref, parties.share(torch.ones(5, 5)))
    with pytest.raises(RunError, match="'matmul' stopped"):
        parties.reveal(bad)
    with pytest.raises(RunError, match="'matmul' stopped"):
        parties.reveal(ref)
    parties.close()
    assert all("matmul" in worker.stopped for worker in parties.workers)


def test_what_was_freed_or_never_shared_is_said(parties: LocalParties) -> None:
    ref = parties.share(X)
    parties.forget([ref])
    for unknown in (ref, Ref(1)):
        with pytest.raises(ProtocolError, match="does not hold"):
            parties.reveal(unknown)
    assert not any(worker._held for worker in parties.workers)


def test_nothing_is_shared_of_what_does_not_fit(parties: LocalParties) -> None:
    with pytest.raises(DataError, match="not finite"):
        parties.share(torch.tensor([float("nan")]))
    assert not any(worker._held for worker in parties.workers)


@pytest.mark.parametrize("precision", [0, 27, -3])
def test_a_precision_that_numbers_cannot_have_is_refused(precision: int) -> None:
    with pytest.raises(ConfigError, match="fractional bits"):
        LocalParties(precision)


def test_neither_keys_nor_shares_are_shown(parties: LocalParties) -> None:
    share = parties.workers[0]._held[parties.share(X).number].share
    assert repr(share) == "Share(shape=(2,), precision=20)"
    assert "key" not in repr(parties.workers[0]._party.channel._outward[1])
    with pytest.raises(TypeError):
        pickle.dumps(Reader())


def test_costs_name_each_operator(parties: LocalParties) -> None:
    ref = parties.share(torch.ones(10))
    for _ in range(3):
        ref = parties.run("multiply", ref, ref)
    (cost,) = parties.costs()
    assert (cost.operator, cost.calls, cost.rounds, cost.bytes_sent) == ("multiply", 3, 6, (480, 480, 360))


def test_who_asks_waits_for_parties_that_are_far_behind(parties: LocalParties) -> None:
    """A loop that reveals nothing does not fill the memory with questions."""
    ref, gate = parties.share(X), Event()
    parties._threads[0].submit(gate.wait)
    asked: list[Ref] = []

    def ask() -> None:
        asked.extend(parties.run("add", ref, ref) for _ in range(MOST_BEGUN + 50))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(1.0)
    assert asking.is_alive()
    gate.set()
    asking.join(60)
    assert parties.reveal(asked[-1]).tolist() == (2 * X).tolist()
