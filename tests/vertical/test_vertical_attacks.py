"""Attacks on labels: AUC against scikit-learn's, the attacks against plain versions, and what a run records."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from vertical_toys import Talk, people, ready, values

from fedray.vertical.attacks import auc, cosine_leak, cosine_scores, norm_leak, norm_scores
from fedray.vertical.bottom import Activations
from fedray.vertical.cut import Isotropic, NoNoise
from fedray.vertical.fusion import Concat, MaskedSum
from fedray.vertical.leakage import LeakageReport
from fedray.vertical.messages import EndEpoch, Forward
from fedray.vertical.models import adam
from fedray.vertical.plans import FitPlan
from fedray.vertical.records import EpochRecord, Leak


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_auc_is_that_of_scikit_learn_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float32)
    labels = np.array([label for _, label in rows])
    if labels.all() or not labels.any():
        assert math.isnan(auc(scores, labels))
    else:
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_scores_are_lengths_and_cosines() -> None:
    draw = np.random.default_rng(0)
    gradients = draw.normal(size=(20, 3)).astype(np.float32)
    gradients[4] = 0
    lengths = [math.sqrt(sum(float(value) ** 2 for value in row)) for row in gradients]
    np.testing.assert_allclose(norm_scores(gradients), lengths, rtol=1e-5)
    dots = [sum(float(a) * float(b) for a, b in zip(row, gradients[0], strict=True)) for row in gradients]
    cosines = [dot / (length * lengths[0]) if length else 0.0 for dot, length in zip(dots, lengths, strict=True)]
    np.testing.assert_allclose(cosine_scores(gradients), cosines, atol=1e-5)


def test_an_attack_that_is_always_wrong_is_as_good_as_one_that_is_always_right() -> None:
    labels = np.array([1, 0, 0, 1])
    right = np.array([1.0, 0.0, 0.1, 0.9], np.float32)
    assert norm_leak([(right, labels)]) == 1.0
    assert norm_leak([(-right, labels)]) == 1.0
    assert norm_leak([(right, labels), (-right, labels)]) == 0.5


def test_the_row_that_the_cosine_attack_knows_may_be_of_either_class_and_is_not_counted() -> None:
    for first in (0, 1):
        labels = np.array([first, 1, 0, 1, 0])
        same = (labels == first).astype(np.float32)
        assert cosine_leak([(same, labels)]) == 1.0
    assert math.isnan(cosine_leak([(np.ones(2, np.float32), np.array([1, 1]))]))
    assert math.isnan(norm_leak([]))


@pytest.mark.parametrize("fusion", [Concat(), MaskedSum()])
def test_what_a_run_records_is_what_its_own_messages_give(fusion: Concat | MaskedSum) -> None:
    """Attacks done anew on the gradients of the run's messages, with true labels and scikit-learn's AUC."""
    talk = ready(fusion, FitPlan(32, adam(0.01)), n=200)
    talk.holder.epoch()
    talk.said.clear()
    record = talk.holder.epoch()
    n_train, truth = talk.holder._batches.n_train, talk.holder._truth
    order = talk.holder._batches.batch("step", 2, 0, n_train)
    for owner in talk.owners:
        asked = [one for name, one in [*talk.heard(Forward), *talk.heard(EndEpoch)] if name == owner]
        sent = [values(one.gradient).reshape(-1, 5) for one in asked if one.gradient]
        assert sum(map(len, sent)) == n_train
        norms, cosines = [], []
        for gradients, rows in zip(sent, order.split(32), strict=True):
            labels = truth[rows].numpy()
            norms.append(roc_auc_score(labels, np.linalg.norm(gradients, axis=1)))
            units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
            scores = units[1:] @ units[0] * (1 if labels[0] else -1)
            cosines.append(roc_auc_score(labels[1:], scores))
        expected = [max(np.mean(one), 1 - np.mean(one)) for one in (norms, cosines)]
        found = record.leaks[owner]
        np.testing.assert_allclose([found.norm, found.cosine], expected, atol=1e-6)


def test_directions_give_labels_away_and_noise_hides_them_again() -> None:
    leaks = {}
    for cut in (NoNoise(), Isotropic(3.0)):
        talk = ready(plan=FitPlan(64, adam(0.01), cut), n=400)
        for _ in range(3):
            record = talk.holder.epoch()
        leaks[type(cut)] = record.leaks["bank"].cosine
    assert leaks[NoNoise] > 0.9
    assert leaks[Isotropic] < 0.7


def test_more_than_two_classes_are_not_attacked_and_the_report_says_so() -> None:
    talk = Talk(*people(n_classes=3))
    talk.aligned()
    talk.prepared()
    talk.begun()
    record = talk.holder.epoch()
    assert record.leaks == {}
    report = LeakageReport("hospital", ("bank", "shop"), "drop", Concat(), 0, [FitPlan()], [record])
    assert "none was run" in str(report)
    assert math.isnan(report.worst("norm"))


def test_the_report_is_of_all_fits_and_of_people_that_no_sum_hides() -> None:
    noise = Activations(2.0, 0.5)
    plans = [FitPlan(), FitPlan(cut=Isotropic(2.0), activations=noise), FitPlan(activations=noise)]
    leaks = {"bank": Leak(math.nan, 0.6), "shop": Leak(0.7, math.nan)}
    record = EpochRecord(1, 0.5, {}, leaks, {}, 0, 0, 1)
    report = LeakageReport("hospital", ("bank", "shop"), "allow", MaskedSum(), 7, plans, [record])
    shown = " ".join(str(report).split())
    assert "without noise, then with noise (Isotropic(times=2.0)): the table says" in shown
    assert "clipped" not in shown
    assert "no owner's own, but for the 7 people whom one owner alone has" in shown
    assert (report.worst("norm"), report.worst("cosine")) == (0.7, 0.6)
    assert "values clipped to 2 with noise of 0.5" in " ".join(str(replace(report, plans=plans[1:])).split())


def test_the_report_says_who_saw_what_under_each_fusion() -> None:
    talk = ready(plan=FitPlan(64, adam(0.01)))
    records = [talk.holder.epoch() for _ in range(2)]
    shown = {}
    for fusion in (Concat(), MaskedSum()):
        report = LeakageReport("hospital", ("bank", "shop"), "drop", fusion, 0, [FitPlan()], records)
        shown[fusion.name] = " ".join(str(report).split())
        assert f"{records[1].leaks['shop'].norm:.3f}" in shown[fusion.name]
        assert report.worst("cosine") == max(leak.cosine for one in records for leak in one.leaks.values())
        assert repr(report) == str(report)
    assert "every embedding of every owner" in shown["concat"]
    assert "sums of embeddings over 2 owners" in shown["masked_sum"]
    assert "no owner's own" in shown["masked_sum"]
