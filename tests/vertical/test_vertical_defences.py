"""Noise at the cut and at owners, and private labels: what each does, against slow versions and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from dp_accounting import NeighboringRelation, RandomizedResponseDpEvent, pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from vertical_toys import Talk, people, ready, values

from fedray.errors import BudgetExhausted, ConfigError
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian, RandomisedResponse, at_example_level
from fedray.privacy.ledger import Ledger, own_ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.vertical import label_privacy
from fedray.vertical.bottom import Activations
from fedray.vertical.cut import Isotropic, MaxNorm, NoNoise
from fedray.vertical.fusion import Concat, MaskedSum
from fedray.vertical.label_privacy import randomised
from fedray.vertical.labels import Labels
from fedray.vertical.messages import Embedding, EndEpoch, Forward
from fedray.vertical.models import sgd
from fedray.vertical.plans import FitPlan, LabelPrivacy


def gradients(n: int, width: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(n, width)) * draw.exponential(size=(n, 1))).astype(np.float32)


def test_max_norm_makes_every_row_as_long_as_the_longest_on_average() -> None:
    """Row by row over 20,000 draws, against the paper's E||g~||^2 = ||g_max||^2; each stays on its own line."""
    clear = gradients(6, 4, 1)
    noise = np.random.default_rng(2)
    noised = np.stack([MaxNorm().applied(clear, noise) for _ in range(20_000)])
    longest = float(max(sum(float(value) ** 2 for value in row) for row in clear))
    np.testing.assert_allclose((noised.astype(float) ** 2).sum(2).mean(0), longest, rtol=0.08)
    cosines = (noised * clear).sum(2) / np.linalg.norm(noised, axis=2) / np.linalg.norm(clear, axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-3)
    np.testing.assert_allclose(noised.mean(0), clear, atol=0.06 * math.sqrt(longest))
    at = np.linalg.norm(clear, axis=1).argmax()
    np.testing.assert_array_equal(noised[:, at], np.broadcast_to(clear[at], noised[:, at].shape))


def test_isotropic_noise_has_the_length_that_was_asked_for() -> None:
    clear = gradients(5, 8, 3)
    noise = np.random.default_rng(4)
    added = np.stack([Isotropic(2.0).applied(clear, noise) - clear for _ in range(20_000)]).astype(float)
    longest = float(np.linalg.norm(clear, axis=1).max())
    np.testing.assert_allclose(added.var(0), (2 * longest) ** 2 / 8, rtol=0.08)
    np.testing.assert_allclose(added.mean(0), 0, atol=0.05 * longest)


@pytest.mark.parametrize("cut", [MaxNorm(), Isotropic(3.0), NoNoise()])
def test_gradients_of_zero_and_of_one_row_are_taken(cut: MaxNorm | Isotropic | NoNoise) -> None:
    noise = np.random.default_rng(0)
    assert not cut.applied(np.zeros((3, 2), np.float32), noise).any()
    with_zero = cut.applied(np.array([[0, 0], [3, 4]], np.float32), noise)
    assert np.isfinite(with_zero).all()
    assert cut.applied(np.ones((1, 2), np.float32), noise).shape == (1, 2)


@pytest.mark.parametrize("times", [0.0, -1.0, math.inf, math.nan])
def test_noise_of_no_size_is_refused(times: float) -> None:
    with pytest.raises(ConfigError):
        Isotropic(times)


def sent_gradients(talk: Talk, owner: str) -> list[np.ndarray]:
    messages = [one for name, one in [*talk.heard(Forward), *talk.heard(EndEpoch)] if name == owner]
    return [values(one.gradient) for one in messages if one.gradient]


def test_noise_at_the_cut_is_in_what_owners_get_and_differs_from_run_to_run() -> None:
    """The first step's gradient, which is otherwise the same in every run of one seed."""
    clear, *noised = (
        sent_gradients(talk, "bank")[0]
        for talk in (ready(plan=FitPlan(32, sgd(0.1), cut)) for cut in (NoNoise(), Isotropic(1.0), Isotropic(1.0)))
        if talk.holder.epoch()
    )
    assert np.abs(noised[0] - clear).max() > 0.05 * np.abs(clear).max()
    assert (noised[0] != noised[1]).all()


def test_owners_of_a_masked_sum_are_told_the_same_noised_gradient() -> None:
    talk = ready(MaskedSum(), FitPlan(32, sgd(0.1), Isotropic(1.0)))
    talk.holder.epoch()
    for at_bank, at_shop in zip(sent_gradients(talk, "bank"), sent_gradients(talk, "shop"), strict=True):
        np.testing.assert_array_equal(at_bank, at_shop)


def test_activations_leave_clipped_and_with_the_noise_that_was_asked_for() -> None:
    draws = np.random.default_rng(1)
    embedding = torch.linspace(-3, 3, 60_000).reshape(-1, 10)
    left = Activations(clip=1.5, deviation=0.25).applied(embedding, draws)
    added = (left - embedding.clamp(-1.5, 1.5)).numpy()
    assert added.std() == pytest.approx(0.25, rel=0.02)
    assert abs(added.mean()) < 0.01


@pytest.mark.parametrize("fusion", [Concat(), MaskedSum()])
def test_training_goes_through_activations_that_are_clipped_and_noised(fusion: Concat | MaskedSum) -> None:
    talk = ready(fusion, FitPlan(32, sgd(0.5), activations=Activations(1.0, 0.05)))
    losses = [talk.holder.epoch().loss for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    if isinstance(fusion, Concat):
        largest = max(np.abs(values(message.values)).max() for _, message in talk.heard(Embedding))
        assert 1.0 < largest < 1.0 + 0.05 * 6.5


@settings(max_examples=25, deadline=None)
@given(epsilon=st.floats(0.05, 10), n_classes=st.integers(2, 12))
def test_labels_change_as_randomised_response_says(epsilon: float, n_classes: int) -> None:
    """Share kept by an exact binomial test; the others equally likely, by chi-squared."""
    n = 20_000
    truth = torch.full((n,), n_classes - 1)
    found = randomised(truth, RandomisedResponse(epsilon, n_classes))
    assert found.dtype == torch.int64
    counts = np.bincount(found.numpy(), minlength=n_classes)
    assert len(counts) == n_classes
    kept = math.exp(epsilon) / (math.exp(epsilon) + n_classes - 1)
    assert binomtest(int(counts[-1]), n, kept).pvalue > 1e-9
    if n_classes > 2 and counts[:-1].sum() > 200:
        assert chisquare(counts[:-1]).pvalue > 1e-9


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 2.0, 5.0, 9.9])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("count", [1, 3])
def test_the_ledger_takes_randomised_response_for_what_it_costs(epsilon: float, n_classes: int, count: int) -> None:
    """Never above the sum of pure epsilons, and never below dp-accounting's own finest figure for the same event."""
    found = spent([Charge(RandomisedResponse(epsilon, n_classes), count)], 1e-6)
    accountant = pld.PLDAccountant(NeighboringRelation.REPLACE_ONE, value_discretization_interval=1e-5)
    event = RandomizedResponseDpEvent(n_classes / (math.exp(epsilon) + n_classes - 1), n_classes)
    accountant.compose(event, count)
    assert found.epsilon <= epsilon * count
    assert found.epsilon >= accountant.get_epsilon(1e-6) - 1e-3 * epsilon * count
    renyi = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    renyi.compose(event, count)
    assert found.epsilon_rdp == pytest.approx(renyi.get_epsilon(1e-6), rel=1e-9)


def test_the_ledger_takes_an_epsilon_of_any_size() -> None:
    assert 719 < spent([Charge(RandomisedResponse(720.0, 2))], 1e-6).epsilon <= 720


def test_randomised_response_composes_with_noise_and_stays_what_it_is_for_examples() -> None:
    event = RandomisedResponse(0.7, 4)
    both = spent([Charge(event), Charge(Gaussian(2.0), 3)], 1e-5).epsilon
    alone = spent([Charge(Gaussian(2.0), 3)], 1e-5).epsilon
    assert alone < both < alone + 0.75
    assert at_example_level(event) == event


def test_private_labels_are_charged_once_kept_and_used(tmp_path: Path) -> None:
    talk = Talk(*people(200), folder=tmp_path)
    talk.aligned()
    talk.prepared()
    plan = FitPlan(32, sgd(0.1), label_dp=LabelPrivacy(0.5))
    talk.begun(plan)
    kept = talk.holder._targets.clone()
    talk.holder.epoch()
    talk.begun(plan)
    talk.holder.epoch()
    torch.testing.assert_close(talk.holder._targets, kept)
    n_train = talk.holder._batches.n_train
    changed = int((kept != talk.holder._truth)[:n_train].sum())
    assert binomtest(changed, n_train, 1 / (1 + math.exp(0.5))).pvalue > 1e-9
    assert torch.equal(kept[n_train:], talk.holder._truth[n_train:])
    ledger = Ledger(LedgerFile(tmp_path / "hospital" / "ledger.jsonl"), "hospital")
    (release,) = ledger.releases()
    assert (release.event, release.count, release.unit) == (RandomisedResponse(0.5, 2), 1, "example")
    assert ledger.spent("example", 1e-5).epsilon == pytest.approx(0.5, rel=1e-3)


def test_two_runs_randomise_labels_anew_and_the_owners_own_ledger_composes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "own"))
    Ledger(LedgerFile(ledger_path("hospital")), "hospital").set_budget("example", 1.5, 1e-6)
    plan, kept = FitPlan(32, sgd(0.1), label_dp=LabelPrivacy(0.7)), []
    for _ in range(2):
        talk = ready(plan=plan, n=200)
        kept.append(talk.holder._targets)
    assert not torch.equal(*kept)
    ledger = own_ledger("hospital")
    assert ledger
    assert ledger.spent("example", 1e-6).epsilon == pytest.approx(1.4, rel=1e-3)
    with pytest.raises(BudgetExhausted, match="budget"):
        ready(plan=plan)
    assert len(ledger.releases()) == 2


def test_another_label_privacy_after_training_is_refused(tmp_path: Path) -> None:
    talk = Talk(*people(), folder=tmp_path)
    talk.aligned()
    talk.prepared()
    talk.begun()
    talk.holder.epoch()
    with pytest.raises(ConfigError, match="same as before"):
        talk.holder.begin(FitPlan(label_dp=LabelPrivacy(1.0)))
    assert not list(tmp_path.iterdir())


def test_labels_that_are_numbers_cannot_be_randomised() -> None:
    tables, labels = people()
    talk = Talk(tables, {"pid": labels["pid"], "y": np.linspace(0, 1, 120)})
    talk.aligned()
    talk.prepared()
    with pytest.raises(ConfigError, match="numbers"):
        talk.holder.begin(FitPlan(label_dp=LabelPrivacy(1.0)))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 31.0, math.inf, math.nan])
def test_label_privacy_of_no_epsilon_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError):
        LabelPrivacy(epsilon)


def test_no_secret_of_a_party_is_in_its_repr() -> None:
    talk = ready(MaskedSum())
    secret = talk.owners["bank"]._keyring.secret("shop")
    for party in (*talk.owners.values(), talk.holder, *(vars(talk.owners["bank"]).values())):
        assert secret.hex() not in repr(party)
        assert repr(secret) not in repr(party)
    assert "tensor" not in repr(Labels("mse", torch.zeros(3), None))


@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 20.0, 30.0])
@pytest.mark.parametrize("n_classes", [2, 3, 1000])
def test_rounding_never_makes_labels_less_private(
    epsilon: float, n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least draw that keeps a class, found by bisection, against the probability in exact arithmetic."""
    draw = [0]
    monkeypatch.setattr(label_privacy, "_draws", lambda n: np.full(n, draw[0], dtype=np.uint64))
    low, high = 0, 2**64 - 1
    while low < high:
        draw[0] = (low + high) // 2
        is_kept = int(randomised(torch.zeros(1, dtype=torch.int64), RandomisedResponse(epsilon, n_classes))) == 0
        low, high = (low, draw[0]) if is_kept else (draw[0] + 1, high)
    with mpmath.workdps(60):
        others = n_classes - 1
        least = (1 - mpmath.mpf(others) / 2**64) * low / mpmath.mpf(2) ** 64 / others
        found = mpmath.log((1 - mpmath.mpf(low) / mpmath.mpf(2) ** 64) / least)
        assert found <= epsilon
        assert found > epsilon - 1e-6


def test_a_fit_without_label_privacy_uses_true_labels_if_nothing_was_trained_on_others(tmp_path: Path) -> None:
    talk = Talk(*people(), folder=tmp_path)
    talk.aligned()
    talk.prepared()
    talk.begun(FitPlan(label_dp=LabelPrivacy(0.1)))
    assert not torch.equal(talk.holder._targets, talk.holder._truth)
    talk.begun(FitPlan())
    assert torch.equal(talk.holder._targets, talk.holder._truth)


def test_an_optimizer_that_cannot_be_made_is_refused_before_labels_are_charged(tmp_path: Path) -> None:
    talk = Talk(*people(), folder=tmp_path)
    talk.aligned()
    talk.prepared()
    with pytest.raises(ConfigError, match="Invalid learning rate"):
        talk.holder.begin(FitPlan(optimizer=sgd(-1.0), label_dp=LabelPrivacy(1.0)))
    assert not list(tmp_path.iterdir())
