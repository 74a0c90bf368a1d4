"""Masks hide whatever they are added to: fresh secrets, keys of one use, uniform vectors, ciphers as in the RFCs."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from masked_toys import RUN, SEED, LyingServer, Toy, opened_self_seed, terms
from numpy.typing import NDArray
from scipy import stats

from fedray.protection.fixed_point import PIECE
from fedray.protection.masked import masks
from fedray.protection.masked import owner as owner_module
from fedray.protection.masked.masks import Mask
from fedray.protection.masked.owner import commitment
from fedray.protection.wire import canonical
from fedray.values import Payload, Update

SIGNIFICANCE = 1e-6
A, B, C = "o00", "o01", "o02"
TERMS = bytes(range(32))


# A second derivation


def rfc5869(secret: bytes, n_bytes: int, salt: bytes, info: bytes) -> bytes:
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    out, last = b"", b""
    for count in range(1, -(-n_bytes // 32) + 1):
        last = hmac.digest(key, last + info + bytes([count]), "sha256")
        out += last
    return out[:n_bytes]


def aes_ctr(key: bytes, n_bytes: int) -> bytes:
    """Counter mode out of the block cipher alone."""
    counters = b"".join(block.to_bytes(16, "big") for block in range(-(-n_bytes // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)[:n_bytes]


def test_the_second_derivation_gives_the_vectors_of_rfc_5869() -> None:
    secret = bytes([0x0B] * 22)
    first = rfc5869(secret, 42, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert first.hex() == ("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    third = rfc5869(secret, 42, b"", b"")
    assert third.hex() == ("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")


@pytest.mark.parametrize("n_bytes", [16, 32, 64])
def test_keys_come_from_hkdf_bound_to_their_purpose(n_bytes: int) -> None:
    secret = os.urandom(32)
    info = msgspec.msgpack.encode(["fedray", "pair mask", RUN, 3, A, B])
    assert masks.derived(secret, n_bytes, "pair mask", RUN, 3, A, B) == rfc5869(secret, n_bytes, b"", info)


def test_agreement_gives_the_vectors_of_rfc_7748() -> None:
    public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    # Alice's private and Bob's public key of RFC 7748, Section 6.1
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    agreed = masks.agreed(X25519PrivateKey.from_private_bytes(private), public)
    assert agreed.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.parametrize("ring", [np.uint16, np.uint32])
@pytest.mark.parametrize("length", [1, 7, 8, 1000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3])
def test_masks_are_aes_in_counter_mode(ring: type, length: int) -> None:
    seed, secret = os.urandom(32), os.urandom(32)
    info = msgspec.msgpack.encode(["fedray", "self mask", RUN, 9, A])
    pair = msgspec.msgpack.encode(["fedray", "pair mask", RUN, 9, TERMS, A, B])
    n_bytes = length * np.dtype(ring).itemsize
    own = np.frombuffer(aes_ctr(rfc5869(seed, 16, b"", info), n_bytes), ring)
    shared = np.frombuffer(aes_ctr(rfc5869(secret, 16, b"", pair), n_bytes), ring)
    start = np.random.default_rng(0).integers(0, 2**16, length).astype(ring)
    for chosen, expected in (
        ([Mask.own(seed, RUN, 9, A)], start + own),
        ([Mask.pair(secret, RUN, 9, TERMS, A, B)], start + shared),
        ([Mask.pair(secret, RUN, 9, TERMS, B, A)], start - shared),
        ([Mask.own(seed, RUN, 9, A), Mask.pair(secret, RUN, 9, TERMS, B, A)], start + own - shared),
        ([Mask.own(seed, RUN, 9, A).inverse, Mask.pair(secret, RUN, 9, TERMS, B, A).inverse], start - own + shared),
    ):
        vector = start.copy()
        masks.apply_all(vector, chosen)
        assert np.array_equal(vector, expected)


def test_a_commitment_is_the_hash_of_seed_and_round() -> None:
    seed = os.urandom(32)
    expected = hashlib.sha256(msgspec.msgpack.encode(["fedray", "self seed", RUN, 3, A, seed])).digest()
    assert commitment(seed, RUN, 3, A) == expected


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 255, 256, 65536, 2**32 + 5])
def test_a_mask_can_be_begun_at_any_block(n_blocks: int) -> None:
    key, room = os.urandom(16), masks.scratch()
    found = np.zeros(64, dtype=np.uint8)
    Mask(key, True).stream(16 * n_blocks).apply(found, room)
    counters = b"".join((n_blocks + block).to_bytes(16, "big") for block in range(4))
    assert found.tobytes() == Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 11])
def test_ranges_in_threads_are_the_same_masks(n_threads: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n_threads)))
    chosen = [Mask(bytes([number]) * 16, number % 2 == 0) for number in range(3)]
    for ring in (np.uint16, np.uint32):
        vector = np.arange(length).astype(ring)
        expected = vector.copy()
        for mask in chosen:
            stream = np.frombuffer(aes_ctr(mask._key, vector.nbytes), ring)
            expected = expected + stream if mask._apply is np.add else expected - stream
        masks.apply_all(vector, chosen)
        assert np.array_equal(vector, expected)


def test_the_masks_of_two_owners_cancel_and_the_inverse_undoes() -> None:
    secret = os.urandom(32)
    for one, other in ((A, B), ("b", "B"), ("ü", "z"), ("o1", "o10")):
        vector = np.arange(1000, dtype=np.uint32)
        both = [Mask.pair(secret, RUN, 1, TERMS, one, other), Mask.pair(secret, RUN, 1, TERMS, other, one)]
        masks.apply_all(vector, both)
        assert np.array_equal(vector, np.arange(1000))
        masks.apply_all(vector, both[:1])
        assert not np.array_equal(vector, np.arange(1000))
        masks.apply_all(vector, [both[0].inverse])
        assert np.array_equal(vector, np.arange(1000))


def test_no_two_purposes_share_a_key() -> None:
    secret = bytes(32)
    purposes: list[tuple[object, ...]] = [
        ("self mask", RUN, 1, A),
        ("self mask", RUN, 2, A),
        ("self mask", bytes(16), 1, A),
        ("self mask", RUN, 1, B),
        ("pair mask", RUN, 1, A, B),
        ("pair mask", RUN, 1, A, C),
        ("pair mask", RUN, 2, A, B),
        ("shares", RUN, 1, A, B),
        ("shares", RUN, 1, B, A),
        ("shares", RUN, 1, A + B, ""),
        ("shares", RUN, 1, "", A + B),
    ]
    assert len({masks.derived(secret, 16, *purpose) for purpose in purposes}) == len(purposes)
    assert len({canonical("fedray", *purpose) for purpose in purposes}) == len(purposes)
    keys = [
        Mask.own(secret, RUN, 1, A),
        Mask.own(secret, RUN, 2, A),
        Mask.own(secret, bytes(16), 1, A),
        Mask.own(secret, RUN, 1, B),
        Mask.pair(secret, RUN, 1, TERMS, A, B),
        Mask.pair(secret, RUN, 2, TERMS, A, B),
        Mask.pair(secret, bytes(16), 1, TERMS, A, B),
        Mask.pair(secret, RUN, 1, TERMS, A, C),
        Mask.pair(secret, RUN, 1, bytes(32), A, B),
    ]
    assert len({mask._key for mask in keys}) == len(keys)


# Secrets


def test_secrets_come_from_the_operating_system(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    urandom = os.urandom

    def spied_urandom(n: int) -> bytes:
        drawn.append(urandom(n))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", spied_urandom)
    server = LyingServer(toy)
    server.invite()
    rounds = [sealer._rounds[1] for sealer in toy.sealers.values()]
    assert {one.self_seed for one in rounds} <= {draw for draw in drawn if len(draw) == 32}
    assert len({one.self_seed for one in rounds}) == len(rounds)
    privates = {key.private_bytes_raw() for one in rounds for key in (one.channel, one.mask)}
    assert len(privates) == 2 * len(rounds)
    defaults = {field.name: field.default_factory for field in owner_module._Round.__dataclass_fields__.values()}
    assert defaults["channel"] == defaults["mask"] == X25519PrivateKey.generate


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path, n_values=4000, precision=2.0**-17)


def test_nothing_secret_follows_from_the_experiments_seed(tmp_path: Path) -> None:
    """Two federations alike in all but their secrets, and with all pseudo-random generators reset in between."""
    payloads = []
    for folder in ("one", "two"):
        random.seed(SEED)
        np.random.seed(SEED)
        toy = Toy(tmp_path / folder, n_values=4000, precision=2.0**-17)
        server = LyingServer(toy).at("updates")
        payloads.append(server.seal(A))
    assert payloads[0].dtype == np.uint32
    assert not np.any(payloads[0] == payloads[1])


def test_two_sealings_of_one_update_differ_everywhere(toy: Toy) -> None:
    first, second = (LyingServer(toy, number).at("updates").seal(A) for number in (1, 2))
    assert first.dtype == np.uint32
    assert not np.any(first == second)


def test_keys_never_repeat_over_ten_thousand_rounds() -> None:
    """All that three owners derive in 10,000 rounds: self masks, pairwise masks and channels."""
    names, seen, n_rounds = (A, B, C), set(), 10_000
    for number in range(1, n_rounds + 1):
        rounds = {name: owner_module._Round(RUN, number) for name in names}
        public = {name: one.mask.public_key().public_bytes_raw() for name, one in rounds.items()}
        for name, one in rounds.items():
            seen.add(Mask.own(one.self_seed, RUN, number, name)._key)
        for one, other in ((A, B), (A, C), (B, C)):
            secret = masks.agreed(rounds[one].mask, public[other])
            seen.add(Mask.pair(secret, RUN, number, TERMS, one, other)._key)
            seen.add(masks.derived(secret, 16, "shares", RUN, number, one, other))
            seen.add(masks.derived(secret, 16, "shares", RUN, number, other, one))
    assert len(seen) == n_rounds * (3 + 3 + 6)


def test_every_key_of_a_federation_is_used_for_one_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over rounds of five owners as they are: each key comes up at the two parties of its one use only."""
    derived, keys, secrets = masks.derived, [], set()

    def spied(secret: bytes, n_bytes: int, *purpose: object) -> bytes:
        key = derived(secret, n_bytes, *purpose)
        keys.append((key, canonical(*purpose)))
        secrets.add(secret)
        return key

    monkeypatch.setattr(masks, "derived", spied)
    toy = Toy(tmp_path)
    for number in range(1, 41):
        toy.require_exact(number)
    uses = {key: {purpose for other, purpose in keys if other == key} for key in {key for key, _ in keys[:500]}}
    assert all(len(purposes) == 1 for purposes in uses.values())
    assert len({key for key, _ in keys}) == len({purpose for _, purpose in keys}) == 40 * (5 + 10 + 20)
    assert len(secrets) == 40 * (5 + 10 + 10)
    assert all(len(secret) == 32 and len(set(secret)) > 8 for secret in secrets)


# What a masked vector shows


def chi_squared(counts: NDArray[np.int64]) -> float:
    return float(stats.chisquare(counts).pvalue)


def p_values(vector: Payload) -> list[float]:
    """Of being uniform: every byte of the values, their highest and lowest bits, and neighbours together."""
    values = vector[: len(vector) // 2 * 2].astype(np.uint64)
    bits = 8 * vector.itemsize
    columns = vector.view(np.uint8).reshape(-1, vector.itemsize)
    top, low = values >> np.uint64(bits - 4), values & np.uint64(15)
    return [
        *(chi_squared(np.bincount(column, minlength=256)) for column in columns.T),
        chi_squared(np.bincount(top.astype(np.int64), minlength=16)),
        chi_squared(np.bincount(low.astype(np.int64), minlength=16)),
        chi_squared(np.bincount((16 * top[::2] + top[1::2]).astype(np.int64), minlength=256)),
        float(stats.kstest(values / 2.0**bits, "uniform").pvalue),
    ]


def require_uniform(vector: Payload) -> None:
    tests = p_values(vector)
    assert min(tests) > SIGNIFICANCE / len(tests), tests


def require_uncorrelated(vector: Payload, update: NDArray[np.float32]) -> None:
    signed = vector[: len(update)].view(np.int16 if vector.dtype == np.uint16 else np.int32).astype(float)
    limit = stats.norm.isf(SIGNIFICANCE / 2)
    assert abs(np.corrcoef(signed, update)[0, 1]) * np.sqrt(len(update)) < limit


N = 2**17
RAMP = np.linspace(-1, 1, N).astype(np.float32)
INPUTS = {
    "zeros": np.zeros(N, dtype=np.float32),
    "ones": np.ones(N, dtype=np.float32),
    "minus ones": -np.ones(N, dtype=np.float32),
    "a ramp": RAMP,
    "one step": np.sign(RAMP),
}


def masked_once(
    folder: Path, ring: type, inputs: Sequence[NDArray[np.float32]]
) -> tuple[Toy, LyingServer, dict[str, Payload]]:
    toy = Toy(folder, n=3, n_values=N, precision=2.0**-10 if ring is np.uint16 else 2.0**-17)
    assert toy.fixed_point.ring is ring
    toy.updates = {name: Update(delta, 1, 1, True) for name, delta in zip(toy.names, inputs, strict=True)}
    server = LyingServer(toy).at("updates")
    return toy, server, server.seal_all()


@pytest.mark.parametrize("ring", [np.uint16, np.uint32])
@pytest.mark.parametrize("which", INPUTS)
def test_masked_vectors_are_uniform_whatever_they_hide(ring: type, which: str, tmp_path: Path) -> None:
    _, _, payloads = masked_once(tmp_path, ring, [INPUTS[which]] * 3)
    require_uniform(payloads[A])
    require_uniform(payloads[A] + payloads[B])
    require_uniform(payloads[A] - payloads[B])
    if which in ("a ramp", "one step"):
        for payload in payloads.values():
            require_uncorrelated(payload, INPUTS[which])


@pytest.mark.parametrize("ring", [np.uint16, np.uint32])
def test_either_kind_of_mask_hides_without_the_other(ring: type, tmp_path: Path) -> None:
    """After opening the server knows self masks; of an owner that it calls dropped, all pairwise ones."""
    _, server, payloads = masked_once(tmp_path, ring, [INPUTS["zeros"], RAMP, INPUTS["ones"]])
    rounds = {name: sealer._rounds[1] for name, sealer in server.toy.sealers.items()}
    own = {name: Mask.own(one.self_seed, RUN, 1, name) for name, one in rounds.items()}
    for name in server.names:
        pairs = [
            Mask.pair(masks.agreed(rounds[name].mask, server.keys[peer].mask), RUN, 1, terms(1), name, peer)
            for peer in server.names
            if peer != name
        ]
        vectors = {"self": payloads[name].copy(), "pairs": payloads[name].copy(), "one": payloads[name].copy()}
        masks.apply_all(vectors["self"], [own[name].inverse])
        masks.apply_all(vectors["pairs"], [mask.inverse for mask in pairs])
        masks.apply_all(vectors["one"], [own[name].inverse, pairs[0].inverse])
        for vector in vectors.values():
            require_uniform(vector)
        require_uncorrelated(vectors["self"], RAMP)
        bare = payloads[name].copy()
        masks.apply_all(bare, [own[name].inverse, *(mask.inverse for mask in pairs)])
        assert np.abs(server.toy.fixed_point.signed(bare).astype(int)).max() <= server.toy.fixed_point.value_bound


def test_the_sum_of_too_few_is_uniform_after_all_that_a_server_may_learn(tmp_path: Path) -> None:
    """Five owners, of whom the sum of all is opened: the sum of four, less their self masks, shows nothing."""
    toy = Toy(tmp_path, n_values=N)
    toy.updates = {name: Update(INPUTS["zeros"], 1, 1, True) for name in toy.names}
    server = LyingServer(toy).at("updates")
    payloads = server.seal_all()
    server.sign_all()
    revealed = {name: server.reveal(name) for name in toy.names}
    for size in (1, 2, 3, 4):
        part = np.sum([payloads[name] for name in toy.names[:size]], axis=0, dtype=np.uint16)
        seeds = [opened_self_seed(server, name, revealed) or b"" for name in toy.names[:size]]
        masks.apply_all(
            part, [Mask.own(seed, RUN, 1, name).inverse for name, seed in zip(toy.names, seeds, strict=False)]
        )
        require_uniform(part)
    whole = np.sum(list(payloads.values()), axis=0, dtype=np.uint16)
    seeds = [opened_self_seed(server, name, revealed) or b"" for name in toy.names]
    masks.apply_all(whole, [Mask.own(seed, RUN, 1, name).inverse for name, seed in zip(toy.names, seeds, strict=True)])
    assert not whole[:N].any()


def test_these_tests_of_uniformity_do_see_what_is_not() -> None:
    draws = np.random.default_rng(1)
    uniform = draws.integers(0, 2**32, N, dtype=np.uint32)
    require_uniform(uniform)
    for bad in (
        (uniform >> np.uint32(1)).astype(np.uint32),
        uniform | np.uint32(1),
        (uniform % np.uint32(0xF0000000)).astype(np.uint32),
        np.where(np.arange(N) % 50 == 0, np.uint32(0), uniform),
        np.repeat(uniform[: N // 2], 2),
    ):
        assert min(p_values(bad)) < SIGNIFICANCE / 20
