"""Masked sums: one message says nothing, their sum is exact, and no mask is ever used twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from vertical_toys import Talk, people, ready, values

from fedray.errors import ConfigError, ModelError, ProtocolError
from fedray.protection.identity import Identity, key_file
from fedray.protection.masked.masks import Mask
from fedray.protection.wire import decode, encode
from fedray.vertical.fusion import Concat, MaskedSum
from fedray.vertical.keys import Keyring
from fedray.vertical.messages import Embedding, Forward, Hello, Introduction, Peers
from fedray.vertical.models import mlp_of, sgd
from fedray.vertical.plans import AlignPlan, FitPlan

RUN = bytes(16)


def met(names: tuple[str, ...]) -> dict[str, Keyring]:
    rings = {name: Keyring(name, {}) for name in names}
    introductions = {name: ring.introduction(RUN) for name, ring in rings.items()}
    for name, ring in rings.items():
        ring.meet(one for other, one in introductions.items() if other != name)
    return rings


def request(number: int = 1, batch: int = 0) -> Forward:
    return Forward(number, "step", 1, batch, 64, b"")


@settings(max_examples=40, deadline=None)
@given(
    n_owners=st.integers(2, 5),
    clip=st.floats(1e-3, 1e4),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 7)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_sum_is_exact_to_half_a_step_an_owner_up_to_the_clip(
    n_owners: int, clip: float, shape: tuple[int, int], seed: int
) -> None:
    """Against sums in float64; the extremes -clip and clip are among the values, so that a wrap would show."""
    names = tuple(f"owner-{number}" for number in range(n_owners))
    fusion, rings = MaskedSum(clip), met(names)
    draws = np.random.default_rng(seed)
    clear = {name: torch.from_numpy(draws.uniform(-2 * clip, 2 * clip, shape).astype(np.float32)) for name in names}
    for one in clear.values():
        one[0, 0] = clip if seed % 2 else -clip
    senders = {name: fusion.sender(rings[name], name, names) for name in names}
    sent = {name: senders[name].sent(senders[name].bounded(clear[name]), request(), RUN) for name in names}
    total = fusion.fused(sent, shape[0], dict.fromkeys(names, shape[1])).value.detach().numpy()
    largest = np.float32(clip)
    expected = sum(np.clip(clear[name].numpy(), -largest, largest).astype(np.float64) for name in names)
    step = fusion.step(n_owners)
    error = np.abs(total - expected)
    assert (error <= n_owners * step / 2 + 2e-7 * np.abs(expected)).all()
    assert n_owners * np.ceil(clip / step) < 2**31


def test_one_owners_messages_are_uniform_whatever_it_says() -> None:
    """Chi-squared over bytes and over top bits of 40,000 words of one owner, whose embedding never changes."""
    names = ("bank", "shop")
    rings, fusion = met(names), MaskedSum()
    sender = fusion.sender(rings["bank"], "bank", names)
    still = torch.full((64, 25), 0.125)
    sent = b"".join(sender.sent(still, request(number), RUN) for number in range(1, 26))
    words = values(sent, "<u4")
    for digits in (np.frombuffer(sent, np.uint8), words >> 24, words & 0xFF, (words >> 12) & 0xFF):
        assert chisquare(np.bincount(digits, minlength=256)).pvalue > 1e-7
    assert len(np.unique(words)) > 0.999 * len(words)


def test_without_masks_that_test_would_fail() -> None:
    still = MaskedSum().sender(Keyring("bank", {}), "bank", ("bank",)).sent(torch.full((64, 25), 0.125), request(), RUN)
    assert chisquare(np.bincount(np.frombuffer(still, np.uint8), minlength=256)).pvalue < 1e-100


def test_masks_cancel_only_where_owners_were_asked_for_the_same_batch() -> None:
    names = ("bank", "shop")
    rings, fusion = met(names), MaskedSum()
    zeros = torch.zeros(64, 8)
    senders = {name: fusion.sender(rings[name], name, names) for name in names}

    def total(asked: Forward, other: Forward) -> np.ndarray:
        sent = [
            values(senders[name].sent(zeros, one, RUN), "<u4") for name, one in zip(names, (asked, other), strict=True)
        ]
        return sum(sent)

    assert not total(request(1), request(1)).any()
    for other in (request(2), request(1, batch=1), Forward(1, "train", 1, 0, 64, b"")):
        assert np.count_nonzero(total(request(1), other)) > 500


def test_no_mask_is_made_twice_in_training_prediction_and_a_second_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of all masks that either owner derives: each occurs once at each, and the same at both."""
    made: list[tuple[str, bytes]] = []
    pair = Mask.pair

    def spied(secret: bytes, run: bytes, number: int, terms: bytes, owner: str, peer: str) -> Mask:
        mask = pair(secret, run, number, terms, owner, peer)
        made.append((owner, mask._key))
        return mask

    monkeypatch.setattr(Mask, "pair", staticmethod(spied))
    talk = ready(MaskedSum())
    for _ in range(2):
        talk.holder.epoch()
    talk.holder.predict("holdout")
    talk.holder.predict("holdout")
    talk.prepared(MaskedSum())
    talk.begun()
    talk.holder.epoch()
    counts = Counter(made)
    assert max(counts.values()) == 1
    keys = {name: {key for owner, key in made if owner == name} for name in talk.owners}
    assert keys["bank"] == keys["shop"]
    assert len(keys["bank"]) == 3 * 3 + 3 + 2  # steps and evaluations of three epochs, two predictions


def test_an_owner_answers_no_request_twice_nor_an_earlier_one() -> None:
    talk = ready(MaskedSum())
    talk.holder.epoch()
    asked = [message for name, message in talk.heard(Forward) if name == "bank"]
    for again in (asked[-1], asked[0]):
        with pytest.raises(ProtocolError, match="number"):
            talk.owners["bank"].answer(encode(Forward(again.number, "holdout", 0, 0, 4096, b"")))


def test_two_sessions_never_share_a_mask() -> None:
    """The same rows, seed and request again: fresh keys, so that the difference of messages is as random as each."""
    first, second = (ready(MaskedSum()) for _ in range(2))
    sent = []
    for talk in (first, second):
        loss = talk.holder.epoch().loss
        sent.append((loss, next(message.values for name, message in talk.heard(Embedding) if name == "bank")))
    assert sent[0][0] == sent[1][0]
    difference = values(sent[0][1], "<u4") - values(sent[1][1], "<u4")
    assert len(np.unique(difference)) == len(difference)


def test_rows_that_an_owner_lacks_are_hidden_in_the_sum() -> None:
    """An owner that lacks all rows of a batch sends words as random as any."""
    tables, labels = people(lacking=40)
    talk = Talk(tables, labels)
    talk.aligned(AlignPlan("allow"))
    talk.prepared(MaskedSum(), width=8)
    talk.begun()
    talk.holder.epoch()
    for name, message in talk.heard(Embedding):
        rows = values(message.values, "<u4").reshape(-1, 8)
        assert len(np.unique(rows, axis=0)) == len(rows), name


def test_a_sum_of_one_is_refused_with_the_reason() -> None:
    tables, labels = people()
    talk = Talk({"bank": tables["bank"]}, labels)
    talk.aligned()
    with pytest.raises(ConfigError, match=r"one feature owner.*\n.*nothing would hide it"):
        talk.prepared(MaskedSum())


def test_widths_that_differ_are_refused_and_named() -> None:
    talk = Talk(*people())
    talk.aligned()
    widths = {
        name: owner.prepare(mlp_of(width), MaskedSum())
        for (name, owner), width in zip(talk.owners.items(), (5, 6), strict=True)
    }
    with pytest.raises(ModelError, match="bank 5, shop 6"):
        talk.holder.prepare(torch.nn.Identity(), MaskedSum(), widths)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_is_none_is_refused(clip: float) -> None:
    with pytest.raises(ConfigError, match="clip"):
        MaskedSum(clip)


def test_a_sum_that_owners_cannot_have_made_is_recognised() -> None:
    talk = ready(MaskedSum())
    shop = talk.owners["shop"]
    answer = shop.answer
    shop.answer = lambda message: _with(answer(message), lambda words: words + np.uint32(2**30))  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="beyond its bound"):
        talk.holder.epoch()


def _with(answer: bytes, change: Any) -> bytes:
    message = decode(answer, Embedding)
    return encode(Embedding(change(values(message.values, "<u4")).tobytes()))


def test_a_key_that_was_changed_on_the_way_is_noticed() -> None:
    """Without enrolled identities too: the signature is over key, name and run."""
    talk = Talk(*people())
    ask = talk.holder._line._ask

    def changed(messages: dict[str, bytes]) -> dict[str, bytes]:
        if not isinstance(peers := decode(messages["bank"], Hello, Peers), Peers):
            return ask(messages)
        other = Keyring("shop", {}).introduction(RUN)
        swapped = [
            Introduction(one.name, other.public, one.identity, one.signature) if one.name == "shop" else one
            for one in peers.introductions
        ]
        return ask({**messages, "bank": encode(Peers(swapped))})

    talk.holder._line._ask = changed  # type: ignore[assignment]
    with pytest.raises(ProtocolError, match="has not signed"):
        talk.holder.meet()


def test_with_enrolled_identities_the_label_holder_cannot_put_itself_between_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_KEYS", str(tmp_path))
    identities = {name: Identity(path=key_file(name)) for name in ("bank", "shop", "hospital")}
    for one in identities.values():
        one.save()
    enrolled = {name: one.public for name, one in identities.items()}
    Talk(*people(), enrolled=enrolled).aligned()
    talk = Talk(*people(), enrolled=enrolled)
    ask = talk.holder._line._ask

    def between(messages: dict[str, bytes]) -> dict[str, bytes]:
        if not isinstance(peers := decode(messages["bank"], Hello, Peers), Peers):
            return ask(messages)
        own = Keyring("shop", {}).introduction(talk.holder._run)
        swapped = [own if one.name == "shop" else one for one in peers.introductions]
        return ask({**messages, "bank": encode(Peers(swapped))})

    talk.holder._line._ask = between  # type: ignore[assignment]
    with pytest.raises(ProtocolError, match="another signing key"):
        talk.holder.meet()


@pytest.mark.parametrize(
    ("name", "owners"), [("hospital", ["bank"]), ("hospital", ["bank", "hospital"]), ("mallory", ["bank", "shop"])]
)
def test_an_owner_talks_with_those_of_the_run_only_so_that_its_sum_is_not_of_one(name: str, owners: list[str]) -> None:
    talk = Talk(*people(20))
    greeting = Hello(RUN, Keyring(name, {}).introduction(RUN), owners)
    with pytest.raises(ProtocolError, match="another label holder, or of other owners"):
        talk.owners["bank"].answer(encode(greeting))


def test_concat_shows_embeddings_and_so_the_test_of_uniformity_is_about_something() -> None:
    talk = ready(Concat(), FitPlan(64, sgd(0.1)))
    talk.holder.epoch()
    name, message = talk.heard(Embedding)[0]
    assert np.abs(values(message.values)).max() < 100, name


def test_the_sum_for_whom_one_owner_alone_has_is_its_embedding_and_a_constant() -> None:
    """What docs/vertical.md says of missing='allow': no other owner's embedding is there to hide it."""
    talk = Talk(*people(lacking=40))
    found = talk.aligned(AlignPlan("allow", 0.0))
    talk.prepared(MaskedSum(), width=8)
    talk.begun()
    _, fused = talk.holder._forward("train", 0, 1000, dict.fromkeys(talk.owners, b""))
    bank, shop = talk.owners["bank"], talk.owners["shop"]
    alone = shop._aligned().rows < 0
    assert 0 < int(alone.sum()) < found.n_alone < found.n_train
    own = bank._trained().bottom.eval()(bank._features, bank._aligned().rows[alone])
    constant = shop._trained().bottom.missing
    torch.testing.assert_close(fused.value[alone] - constant, own, atol=1e-6, rtol=1e-6)


def test_a_label_holder_that_points_an_owner_to_nothing_sees_the_others_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What docs/vertical.md says of a label holder that lies: nothing binds the order that it tells."""
    talk = Talk(*people())
    tell = talk.holder._tell
    monkeypatch.setattr(talk.holder, "_tell", lambda common, shared: tell(common, {**shared, "shop": np.zeros(0)}))
    talk.aligned(AlignPlan(holdout=0.0))
    talk.prepared(MaskedSum(), width=8)
    _, fused = talk.holder._forward("train", 0, 1000, dict.fromkeys(talk.owners, b""))
    bank, shop = talk.owners["bank"], talk.owners["shop"]
    own = bank._trained().bottom.eval()(bank._features, bank._aligned().rows)
    torch.testing.assert_close(fused.value - shop._trained().bottom.missing, own, atol=1e-6, rtol=1e-6)


class _Diverges(torch.nn.Linear):
    """Finite on zeros when it is made, and not in training."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows) * (float("inf") if self.training else 1.0)


def test_an_embedding_that_is_not_finite_is_not_masked_and_sent_as_a_number() -> None:
    talk = Talk(*people())
    talk.aligned()
    talk.prepared(MaskedSum(), bottom=lambda shape: _Diverges(shape[0], 5))
    talk.begun()
    with pytest.raises(ProtocolError, match="'bank' that is not finite"):
        talk.holder.epoch()
