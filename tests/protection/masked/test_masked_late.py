"""An update that arrives after its round was closed: its self mask hides it, whatever the server knows by then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from masked_toys import RUN, SEED, VECTOR, LyingServer, Toy, assignment

from fedray.errors import ProtocolError
from fedray.protection.masked import masks, shamir
from fedray.protection.masked.masks import Mask
from fedray.values import Payload

A, B, C, D, E = ALL = [f"o0{number}" for number in range(5)]
IN_TIME = [A, B, C, E]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def closed_without_d(server: LyingServer) -> tuple[Payload, bytes]:
    """A round that is opened without D, whose update comes after that; the update, and D's mask key."""
    payloads = {name: server.seal(name) for name in ALL}
    server.signatures = {name: server.sign(name, IN_TIME) for name in IN_TIME}
    revealed = {name: server.reveal(name) for name in IN_TIME}
    assert not any(D in one.of_self_masks for one in revealed.values())
    holders = server.graph.holders(D)
    shares = {holders.index(name) + 1: one.of_keys[D] for name, one in revealed.items()}
    chosen = dict(list(shares.items())[: server.graph.threshold])
    key = shamir.combine(chosen)
    assert key is not None
    return payloads[D], key


def without_pairwise_masks(server: LyingServer, payload: Payload, key: bytes) -> Payload:
    """What a server makes of a late update with the mask key that the others have given it."""
    found, private = payload.copy(), X25519PrivateKey.from_private_bytes(key)
    terms = assignment(D, 1, b"", server.toy.weight_bound).terms(VECTOR)
    secrets = {peer: masks.agreed(private, server.keys[peer].mask) for peer in IN_TIME}
    applied = [Mask.pair(secret, RUN, 1, terms, D, peer) for peer, secret in secrets.items()]
    masks.apply_all(found, [mask.inverse for mask in applied])
    return found


def test_a_late_update_stays_hidden_when_all_its_pairwise_masks_are_known(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    d_seed = toy.sealers[D]._rounds[1].self_seed
    left = without_pairwise_masks(server, *closed_without_d(server))
    asked = assignment(D, 1, b"", toy.weight_bound)
    encoded = toy.fixed_point.encode(toy.updates[D], asked, SEED)
    assert np.abs((left - encoded).view(np.int32).astype(float)).max() > 2**24
    masks.apply_all(left, [Mask.own(d_seed, RUN, 1, D).inverse])
    assert left.tobytes() == encoded.tobytes(), "all that was left on it is its self mask"


def test_nobody_gives_shares_of_a_late_updates_self_mask_any_more(toy: Toy) -> None:
    server = LyingServer(toy).at("updates")
    closed_without_d(server)
    for name in IN_TIME:
        with pytest.raises(ProtocolError):
            server.sign(name, ALL)
        with pytest.raises(ProtocolError):
            server.reveal(name)
