"""Images made on demand: sizes, shares and pixels follow the law they are said to follow, and can be learned."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from fedray.config.data import BreastCancer, Digits, Images, Synthetic
from fedray.data import Sizes, central_test, ensure_shards, images, open_shard, owner_names, schema_of, sizes_of
from fedray.data.kinds import AnyData
from fedray.errors import DataError
from fedray.seeds import generator
from fedray.values import Examples


def _section(**changes: Any) -> Images:
    return Images.model_validate(changes)


def _sizes(data: AnyData) -> Sizes:
    found = sizes_of(data)
    assert found is not None
    return found


def _n_rows(data: Images) -> np.ndarray:
    return _sizes(data).n_train + _sizes(data).n_holdout


# --- sizes --------------------


@settings(max_examples=40, deadline=None)
@given(
    owners=st.integers(1, 12),
    rows=st.integers(2, 40),
    spread=st.floats(0, 2),
    holdout=st.floats(0, 0.99),
    seed=st.integers(0, 2**40),
    alpha=st.none() | st.floats(1e-6, 1e6),
)
def test_sizes_are_those_of_opened_shards(
    owners: int, rows: int, spread: float, holdout: float, seed: int, alpha: float | None
) -> None:
    data = Images(
        owners=owners, rows=rows, spread=spread, holdout=holdout, seed=seed, alpha=alpha, shape=(1, 3, 2), classes=3
    )
    sizes, schema = _sizes(data), schema_of(data)
    assert sizes.n_train.dtype == sizes.n_holdout.dtype == np.int64
    assert len(sizes.n_train) == len(sizes.n_holdout) == len(owner_names(data)) == owners
    assert (sizes.n_train + sizes.n_holdout).min() >= 2
    assert sizes.n_train.min() >= 1
    for place, name in enumerate(owner_names(data)):
        shard = open_shard(data, name)
        assert (len(shard.train), len(shard.holdout)) == (sizes.n_train[place], sizes.n_holdout[place])
        for part in (shard.train, shard.holdout):
            assert part.features.shape == (len(part), *schema.feature_shape)
            assert part.features.dtype == np.float32
            assert part.targets.dtype == np.int64
            assert set(part.targets.tolist()) <= {0, 1, 2}
            assert part.features.flags.writeable
            assert part.features.flags.c_contiguous


@pytest.mark.parametrize(("rows", "spread"), [(60, 0.5), (60, 2.0), (3, 1.0), (2, 1.0)])
def test_the_mean_size_stays_whatever_the_spread(rows: int, spread: float) -> None:
    n_rows = _n_rows(_section(owners=400_000, rows=rows, spread=spread, seed=1))
    deviation = math.sqrt((rows - 2) ** 2 * (math.exp(spread**2) - 1) + 0.25)
    assert n_rows.mean() == pytest.approx(rows, abs=5 * deviation / math.sqrt(400_000))


def test_without_spread_all_owners_are_alike() -> None:
    assert set(_n_rows(_section(owners=1000, rows=17, spread=0.0)).tolist()) == {17}


def test_sizes_follow_the_log_normal_law() -> None:
    beyond = _n_rows(_section(owners=20_000, rows=100_002, spread=0.7)) - 2
    law = stats.lognorm(s=0.7, scale=100_000 * math.exp(-(0.7**2) / 2))
    assert stats.kstest(beyond, law.cdf).pvalue > 1e-3


def test_a_million_sizes_take_no_more_than_their_arrays_and_one_draw() -> None:
    tracemalloc.start()
    data = _section(owners=10**6, seed=77)
    assert len(owner_names(data)) == len(_sizes(data).n_train) == 10**6
    assert tracemalloc.get_traced_memory()[1] < 80e6
    tracemalloc.stop()


def test_sizes_cannot_be_changed_for_whoever_asks_next() -> None:
    data = _section(owners=5)
    with pytest.raises(ValueError, match="read-only"):
        images.sizes(data)[0] = 7


def test_sizes_are_unknown_where_owners_must_be_opened_or_may_be_refused() -> None:
    for data in (Digits(), BreastCancer(), Synthetic(), _section(min_classes=2)):
        assert sizes_of(data) is None
    with pytest.raises(DataError, match="min_classes: 1"):
        open_shard(_section(alpha=1e-6, min_classes=2), "owner-00")


# --- owners --------------------


def _same(one: Examples, other: Examples) -> bool:
    return np.array_equal(one.features, other.features) and np.array_equal(one.targets, other.targets)


def test_an_owners_rows_depend_on_its_number_and_the_section_alone() -> None:
    one, many = _section(owners=5, seed=3), _section(owners=2000, seed=3)
    assert np.array_equal(_n_rows(one), _n_rows(many)[:5])
    before = [images.rows(one, number).examples for number in range(5)]
    again = [images.rows(many, number).examples for number in reversed(range(5))][::-1]
    assert all(map(_same, before, again))
    assert not any(_same(before[0], other) for other in before[1:])
    assert not _same(before[0], images.rows(_section(owners=5, seed=4), 0).examples)


def test_nothing_is_written_for_sets_that_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path))
    for data in (_section(central_test=5), Synthetic(owners=2)):
        assert ensure_shards(data) is None
        assert all(len(open_shard(data, name).train) for name in owner_names(data)[:2])
        central_test(data)
    assert list(tmp_path.iterdir()) == []


def test_class_shares_have_the_spread_of_the_dirichlet_law() -> None:
    # of K classes: Var(share) = (1/K)(1 - 1/K) / (K alpha + 1)
    data = _section(classes=4, alpha=2.0)
    shares = np.array([images.class_shares(data, generator(0, "images", number)) for number in range(2000)])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=0.015)
    np.testing.assert_allclose(shares.var(axis=0), 0.25 * 0.75 / 9, rtol=0.12)


@pytest.mark.parametrize("alpha", [None, 0.3, 50.0])
def test_labels_of_an_owner_follow_its_shares(alpha: float | None) -> None:
    data = _section(alpha=alpha, rows=20_000, spread=0.0, shape=(1, 1, 1), classes=5)
    for number in range(3):
        shares = images.class_shares(data, generator(data.seed, "images", number))
        counts = np.bincount(images.rows(data, number).examples.targets, minlength=5)
        is_held = shares > 1e-3
        expected = shares[is_held] / shares[is_held].sum() * counts[is_held].sum()
        assert stats.chisquare(counts[is_held], expected).pvalue > 1e-4
        assert counts[~is_held].sum() < 40


def test_owners_are_skewed_the_more_the_smaller_alpha_is() -> None:
    def most_frequent(alpha: float | None) -> float:
        data = _section(alpha=alpha, spread=0.0, shape=(1, 1, 1))
        tops = [np.bincount(images.rows(data, number).examples.targets).max() / 60 for number in range(100)]
        return float(np.mean(tops))

    found = [most_frequent(alpha) for alpha in (0.01, 0.1, 1.0, 10.0, None)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9
    assert found[-1] < 0.25


# --- pixels --------------------


def _drawn(noise: float) -> Examples:
    return images.rows(_section(rows=30, spread=0.0, noise=noise, shape=(2, 12, 18), classes=4, seed=9), 0).examples


def _prototypes() -> np.ndarray:
    """As the file says them, wave by wave: moved by up to 2 of 12 and 3 of 18 pixels, so 16 x 24 in all."""
    amplitudes = generator(9, "images", "prototypes").standard_normal((4, 2, 8, 8))
    down, right = ((np.arange(side) + 0.5) * np.pi / side for side in (16, 24))
    found = np.zeros((4, 2, 16, 24))
    for i in range(8):
        for j in range(8):
            wave = np.outer(np.cos(i * down), np.cos(j * right))
            found += amplitudes[:, :, i, j, None, None] * (wave if i + j else 0)
    return found / np.sqrt((found**2).mean(axis=(2, 3), keepdims=True))


def test_a_row_without_noise_is_a_window_of_its_classs_prototype() -> None:
    prototypes, drawn = _prototypes(), _drawn(0.0)
    places, contrasts = [], []
    for image, label in zip(drawn.features.astype(np.float64), drawn.targets, strict=True):
        fits = {}
        for down in range(5):
            for right in range(7):
                window = prototypes[label, :, down : down + 12, right : right + 18]
                contrast = (image * window).sum() / (window**2).sum()
                fits[np.abs(image - contrast * window).max()] = (down, right, contrast)
        assert min(fits) < 1e-5
        places.append(fits[min(fits)][:2])
        contrasts.append(fits[min(fits)][2])
    assert 0.5 <= min(contrasts) < 0.7 < 1.3 < max(contrasts) <= 1.5
    assert len(set(places)) > 15


def test_noise_is_white_and_of_the_deviation_asked_for() -> None:
    plain, noisy = _drawn(0.0), _drawn(2.0)
    assert np.array_equal(plain.targets, noisy.targets)
    left = (noisy.features * math.sqrt(5) - plain.features) / 2
    assert stats.kstest(left.reshape(-1), stats.norm.cdf).pvalue > 1e-3
    for axis in (1, 2, 3):
        neighbours = np.moveaxis(left, axis, 0)
        assert abs((neighbours[1:] * neighbours[:-1]).mean()) < 0.05


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_pixels_have_mean_square_one_or_thereabouts(noise: float) -> None:
    drawn = central_test(_section(noise=noise, central_test=500))
    assert drawn is not None
    assert (drawn.features**2).mean() == pytest.approx(1.04, abs=0.12)


# --- the server's rows --------------------


def test_the_central_test_set_has_rows_of_all_classes_and_none_of_the_owners() -> None:
    data = _section(central_test=3000, owners=20, shape=(1, 6, 6))
    central = central_test(data)
    assert central is not None
    assert central.features.shape == (3000, 1, 6, 6)
    assert stats.chisquare(np.bincount(central.targets, minlength=10)).pvalue > 1e-3
    owners = {row.tobytes() for number in range(20) for row in images.rows(data, number).examples.features}
    assert not owners & {row.tobytes() for row in central.features}
    assert central_test(_section()) is None


def test_rows_are_scaled_by_public_constants_or_by_their_owner() -> None:
    fixed = {"name": "fixed", "center": [1], "scale": [2]}
    plain, scaled = (_section(central_test=9, **change) for change in ({}, {"scaling": fixed}))
    for one, other in (
        (central_test(plain), central_test(scaled)),
        (open_shard(plain, "owner-01").train, open_shard(scaled, "owner-01").train),
    ):
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(other.features, (one.features - 1) / 2, rtol=1e-6)
    own = open_shard(_section(scaling="owner"), "owner-01").train.features
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(own.std(axis=0, ddof=1), 1, atol=1e-4)


MISUSE: list[tuple[dict[str, Any], str]] = [
    ({"rows": 1}, "rows"),
    ({"owners": 0}, "owners"),
    ({"shape": [28, 28]}, "shape"),
    ({"shape": [0, 28, 28]}, "shape"),
    ({"classes": 1}, "classes"),
    ({"alpha": 0}, "alpha"),
    ({"spread": -0.1}, "spread"),
    ({"noise": -1}, "noise"),
    ({"holdout": 1}, "holdout"),
    ({"central_test": 0.2}, "central_test"),
    ({"central_test": 100, "scaling": "owner"}, "no owner to be scaled by"),
]


@pytest.mark.parametrize(("section", "message"), MISUSE)
def test_misuse_is_refused_when_the_section_is_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _section(**section)


# --- learning --------------------


def _accuracy(model: torch.nn.Module, train: Examples, test: Examples, rate: float) -> float:
    features, targets = torch.from_numpy(train.features), torch.from_numpy(train.targets)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(3):
        for batch in torch.randperm(len(targets)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(features[batch]), targets[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        found = model(torch.from_numpy(test.features)).argmax(1).numpy()
    return float((found == test.targets).mean())


def test_a_linear_model_learns_and_a_convolutional_one_learns_more() -> None:
    data = _section(owners=60, holdout=0.0, central_test=1000)
    shards = [open_shard(data, name).train for name in owner_names(data)]
    features, targets = (np.concatenate([getattr(x, part) for x in shards]) for part in ("features", "targets"))
    train, test = Examples(features, targets), central_test(data)
    assert test is not None
    nn = torch.nn
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        first = (nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        convolutional = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16 * 49, 10))
        by_linear = _accuracy(linear, train, test, 0.005)
        by_convolutional = _accuracy(convolutional, train, test, 0.02)
    assert by_linear > 0.6
    assert by_convolutional > by_linear + 0.05
