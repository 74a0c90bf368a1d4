"""No key, seed or share is ever shown, written, pickled or sent in the clear before it is asked for rightly."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from masked_toys import RUN, LyingServer, Toy, read, terms

from fedray.errors import ProtocolError
from fedray.protection.masked.messages import Alive, Delivery, Invite, KeyList, Reveal
from fedray.protection.wire import encode

A, B, C, D, E = ALL = [f"o0{number}" for number in range(5)]
STAGES = ("shares", "receipts", "updates", "signed", "revealed")


def secrets_of(toy: Toy, name: str) -> dict[str, bytes]:
    """All that an owner must keep to itself."""
    sealer = toy.sealers[name]
    found = {"identity": toy.identities[name]._private.private_bytes_raw()}
    for number, one in sealer._rounds.items():
        found[f"channel of {number}"] = one.channel.private_bytes_raw()
        found[f"mask of {number}"] = one.mask.private_bytes_raw()
        found[f"self seed of {number}"] = one.self_seed
        for peer, shares in one.shares.items():
            found |= {f"share {at} of {peer}": share for at, share in enumerate(shares)}
        found |= {f"mask secret with {peer}": secret for peer, secret in one.secrets.items()}
        found |= {f"agreement with {peer}": secret for peer, secret in one.channels.items()}
    return found


def shapes(secret: bytes) -> list[bytes]:
    """How bytes look in text."""
    number = int.from_bytes(secret, "big")
    return [
        secret,
        repr(secret)[2:-1].encode(),
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret)[:-4],
        base64.urlsafe_b64encode(secret)[:-4],
        str(number).encode(),
        hex(number).encode(),
        str(list(secret))[1:-1].encode(),
        repr(secret[:8])[2:-1].encode(),
        repr(secret[-8:])[2:-1].encode(),
    ]


def require_hidden(text: bytes | str, secrets: dict[str, bytes]) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    for what, secret in secrets.items():
        assert not any(shape in data for shape in shapes(secret)), what


def texts(thing: object) -> Iterable[str]:
    yield repr(thing)
    yield str(thing)
    yield f"{thing}"
    yield f"{thing!r}"
    yield pprint.pformat(thing, width=1000)
    yield repr([thing])
    yield repr({"key": (thing,)})
    yield str(logging.LogRecord("x", 1, "x", 1, "%s %r", (thing, thing), None).getMessage())


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_that_is_printed_or_logged_shows_a_secret(stage: str, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    LyingServer(toy).at(stage)
    for name in ALL:
        sealer, secrets = toy.sealers[name], secrets_of(toy, name)
        assert len(secrets) >= 4
        things: list[object] = [sealer, sealer._identity, sealer._journal, sealer._trust, sealer._rounds]
        things += [*sealer._rounds.values(), vars(sealer), vars(sealer._identity)]
        for one in sealer._rounds.values():
            things += [one.channel, one.mask, one.graph, *sealer._masks(one, bytes(32))]
        for thing in things:
            for text in texts(thing):
                require_hidden(text, secrets)


def test_these_shapes_do_find_a_secret() -> None:
    secret = bytes(range(100, 132))
    for text in (repr(secret), repr({"x": (secret,)}), secret.hex(), base64.b64encode(secret).decode(), str([*secret])):
        with pytest.raises(AssertionError):
            require_hidden(text, {"secret": secret})


@pytest.mark.parametrize("stage", ["keys", *STAGES])
def test_a_sealer_cannot_be_pickled(stage: str, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    LyingServer(toy).at(stage)
    sealer = toy.sealers[A]
    things: list[Any] = [sealer, sealer._identity, *sealer._rounds.values()]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for thing in things:
            with pytest.raises((TypeError, pickle.PicklingError)):
                pickle.dumps(thing, protocol)


def test_rays_pickler_cannot_either(tmp_path: Path) -> None:
    import ray.cloudpickle

    toy = Toy(tmp_path)
    LyingServer(toy).at("signed")
    for thing in (toy.sealers[A], toy.identities[A], toy.sealers[A]._rounds[1]):
        with pytest.raises((TypeError, pickle.PicklingError)):
            ray.cloudpickle.dumps(thing)


def test_errors_show_no_secret(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    server = LyingServer(toy).at("revealed")
    secrets = secrets_of(toy, A)
    wrong = [
        encode(Invite(RUN, 1)),
        encode(KeyList(RUN, 1, ALL, [server.keys[name] for name in ALL if name != A])),
        encode(Delivery(RUN, 2, {})),
        encode(Alive(RUN, 1, ALL[:3])),
        encode(Reveal(RUN, 1, {})),
        b"",
        encode(server.keys[B]),
    ]
    for message in wrong:
        try:
            toy.sealers[A].answer(message)
        except ProtocolError as error:
            require_hidden("".join(traceback.format_exception(error)), secrets)
            require_hidden(repr(error) + str(error.args) + repr(pickle.dumps(error)), secrets)
        else:
            raise AssertionError(message)


@pytest.mark.parametrize("dropped", [(), (D, E)])
def test_nothing_secret_is_sent_before_the_shares_are_asked_for(dropped: tuple[str, ...], tmp_path: Path) -> None:
    """Of a whole round: no owner ever sends a key of its own, and no share before the reveal."""
    toy = Toy(tmp_path)
    toy.gone = dict.fromkeys(dropped, "updates")
    combiner = toy.uploaded()
    secrets = {name: secrets_of(toy, name) for name in ALL}
    everything = {f"{name}: {what}": secret for name in ALL for what, secret in secrets[name].items()}
    assert len(everything) > 5 * 15
    combiner.open()
    kinds = set()
    for name, message, answer in toy.said:
        asked = type(read(message))
        kinds.add(asked)
        if asked is Reveal:
            own = {what: secret for what, secret in secrets[name].items() if not what.startswith("share")}
            require_hidden(answer, own)
        else:
            require_hidden(answer, everything)
            require_hidden(message, everything)
    assert kinds == {Invite, KeyList, Delivery, Alive, Reveal}


def test_each_share_that_is_revealed_is_of_the_right_kind(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.gone = {E: "updates"}
    combiner = toy.uploaded()
    held = {name: dict(toy.sealers[name]._rounds[1].shares) for name in ALL}
    combiner.open()
    assert len(toy.revealed()) == 4
    for by, revealed in toy.revealed():
        assert revealed.of_self_masks == {name: held[by][name][1] for name in (A, B, C, D)}
        assert revealed.of_keys == {E: held[by][E][0]}


def test_a_round_that_is_closed_is_forgotten(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.require_exact(1)
    assert all(not sealer._rounds for sealer in toy.sealers.values())
    toy.gone = {E: "updates"}
    toy.require_exact(2)
    assert list(toy.sealers[E]._rounds) == [2]
    toy.gone = {}
    for number in (3, 4):
        toy.require_exact(number)
    assert not toy.sealers[E]._rounds


def test_what_is_on_disk_holds_numbers_and_digests_only(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    LyingServer(toy).at("revealed")
    secrets = secrets_of(toy, A)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(A)} == {f"{A}.json", f"{A}.lock"}
    assert (tmp_path / f"{A}.lock").read_bytes() == b""
    journal = (tmp_path / f"{A}.json").read_bytes()
    require_hidden(journal, secrets)
    owners = hashlib.sha256(msgspec.msgpack.encode([ALL])).hexdigest()
    sealed = {"terms": terms(1).hex(), "n_steps": 1, "runs": [RUN.hex()], "opened_in": RUN.hex(), "owners": owners}
    assert json.loads(journal) == {"rounds": {"1": sealed}}


def test_the_servers_half_holds_no_secret(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    combiner = toy.uploaded()
    everything = {f"{name} {what}": one for name in ALL for what, one in secrets_of(toy, name).items()}
    require_hidden(pickle.dumps({**vars(combiner), "_talk": None}), everything)
    combiner.open()
    own = {
        what: one for what, one in everything.items() if "channel" in what or "identity" in what or "mask of" in what
    }
    require_hidden(pickle.dumps({**vars(combiner), "_talk": None}), own)
