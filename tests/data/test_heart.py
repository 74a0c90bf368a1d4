"""Heart disease equals FLamby's preparation: sizes, rates, and a second derivation with pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from fedray.config.data import HeartDisease
from fedray.data import open_shard, owner_names, schema_of
from fedray.data.heart import HOSPITALS, pooled
from fedray.errors import DataError

SIZES = {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)}
POSITIVE_RATES = {"cleveland": 0.459, "hungarian": 0.375, "switzerland": 0.978, "va": 0.777}


def _section(folder: Path, **changes: object) -> HeartDisease:
    return HeartDisease.model_validate({"path": folder, "min_classes": 1, **changes})


def _derived(folder: Path, scaled: bool = True) -> dict[str, tuple[pd.DataFrame, pd.Series, list[int], list[int]]]:
    """All hospitals in one frame, categories found in it, as FLamby goes about it; float64."""
    frames = []
    for hospital in HOSPITALS:
        frame = pd.read_csv(folder / f"processed.{hospital}.data", header=None, dtype=str)
        frame = frame[[column for column in frame if column not in (10, 11, 12)]]
        frame = frame[~(frame == "?").any(axis=1)].astype(float)
        frames.append(frame.assign(hospital=hospital))
    together = pd.get_dummies(pd.concat(frames, ignore_index=True), columns=[2, 6], drop_first=True, dtype=float)
    result = {}
    for hospital, frame in together.groupby("hospital"):
        labels = (frame[13].reset_index(drop=True) != 0).astype(int)
        features = frame.drop(columns=["hospital", 13]).reset_index(drop=True)
        stratify = labels if labels.value_counts().min() > 2 and labels.nunique() > 1 else None
        train, test = train_test_split(
            range(len(labels)), test_size=1.0 - 0.66, train_size=0.66, random_state=43, stratify=stratify
        )
        if scaled:
            features = (features - features.loc[train].mean()) / (features.loc[train].std() + 1e-9)
        result[str(hospital)] = (features, labels, sorted(train), sorted(test))
    return result


def test_hospitals_have_flambys_sizes_and_positive_rates(heart_folder: Path) -> None:
    data = _section(heart_folder)
    assert owner_names(data) == HOSPITALS
    for hospital in HOSPITALS:
        shard = open_shard(data, hospital)
        assert (len(shard.train), len(shard.holdout)) == SIZES[hospital]
        labels = np.concatenate([shard.train.targets, shard.holdout.targets])
        assert labels.dtype == np.int64
        assert labels.mean() == pytest.approx(POSITIVE_RATES[hospital], abs=5e-4)
        assert shard.train.features.shape[1:] == schema_of(data).feature_shape == (13,)


def test_scaled_features_equal_a_derivation_from_the_pooled_frame(heart_folder: Path) -> None:
    derived = _derived(heart_folder)
    for hospital in HOSPITALS:
        features, labels, train, test = derived[hospital]
        shard = open_shard(_section(heart_folder), hospital)
        for part, rows in ((shard.train, train), (shard.holdout, test)):
            np.testing.assert_allclose(part.features, features.loc[rows].to_numpy(), rtol=2e-5, atol=2e-6)
            assert np.array_equal(part.targets, labels.loc[rows].to_numpy())


def test_pooled_rows_are_scaled_by_the_pooled_training_rows(heart_folder: Path) -> None:
    shard = pooled(heart_folder)
    assert (len(shard.train), len(shard.holdout)) == (486, 254)
    derived = _derived(heart_folder, scaled=False)
    train = pd.concat([features.loc[rows] for features, _, rows, _ in derived.values()])
    test = pd.concat([features.loc[rows] for features, _, _, rows in derived.values()])
    expected = (test - train.mean()) / (train.std() + 1e-9)
    np.testing.assert_allclose(shard.holdout.features, expected.to_numpy(), rtol=2e-5, atol=2e-6)


def test_a_missing_hospital_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"processed\.cleveland\.data"):
        open_shard(_section(tmp_path), "cleveland")


def test_unscaled_features_stay_in_their_units(heart_folder: Path) -> None:
    shard = open_shard(_section(heart_folder, scaling="none"), "va")
    assert 35 <= shard.train.features[:, 0].min() <= shard.train.features[:, 0].max() <= 80  # years


@pytest.mark.parametrize("content", ["63,1,x7secret\n", "1,2,3\n", ""])
def test_a_file_unlike_ucis_is_refused_without_its_content(tmp_path: Path, content: str) -> None:
    for hospital in HOSPITALS:
        (tmp_path / f"processed.{hospital}.data").write_text(content)
    with pytest.raises(DataError) as caught:
        open_shard(_section(tmp_path), "va")
    assert "secret" not in str(caught.value)


def test_an_unknown_category_is_counted(tmp_path: Path) -> None:
    for hospital in HOSPITALS:
        (tmp_path / f"processed.{hospital}.data").write_text("63,1,9,145,233,1,2,150,0,2.3,3,0,6,0\n")
    with pytest.raises(DataError, match="1 rows of cleveland"):
        open_shard(_section(tmp_path), "cleveland")
