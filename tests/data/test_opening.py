"""Simulated sets: dealt once or drawn on demand, opened anywhere with the same result."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fedray.config.data import BreastCancer, Digits, Dirichlet, Images, Synthetic
from fedray.data import catalogue, central_test, ensure_shards, open_shard, owner_names, schema_of
from fedray.data.kinds import SimulatedData
from fedray.data.sklearn_sets import load_pool
from fedray.errors import ConfigError, DataError
from fedray.values import Shard

SETS: list[SimulatedData] = [
    Digits(),
    Digits.model_validate({"split": "iid", "owners": 3, "central_test": 0.25, "holdout": 0}),
    Digits.model_validate({"split": "shards", "owners": 5, "min_classes": 1}),
    BreastCancer.model_validate({"split": "quantity", "owners": 4}),
    Synthetic(owners=3),
    Images(owners=3),
]


def _rows_of(shard: Shard) -> list[tuple[bytes, int]]:
    parts = (shard.train, shard.holdout)
    return [(x.tobytes(), int(y)) for part in parts for x, y in zip(part.features, part.targets, strict=True)]


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
def test_shards_match_their_schema_and_own_writable_memory(data: SimulatedData) -> None:
    schema = schema_of(data)
    for name in owner_names(data):
        shard = open_shard(data, name)
        for part in (shard.train, shard.holdout):
            assert part.features.shape == (len(part), *schema.feature_shape)
            assert part.features.dtype == schema.feature_dtype
            assert part.targets.shape == (len(part),)
            assert part.targets.dtype == schema.target_dtype
            assert all(array.flags.writeable and array.flags.c_contiguous for array in (part.features, part.targets))
        assert len(shard.train) >= 1
        assert set(np.unique(shard.train.targets)) <= set(range(schema.n_classes or 0))


def test_owners_and_the_central_test_set_hold_every_row_exactly_once() -> None:
    data = Digits.model_validate({"central_test": 0.1, "owners": 6})
    central = central_test(data)
    assert central is not None
    found = [row for name in owner_names(data) for row in _rows_of(open_shard(data, name))]
    found += _rows_of(Shard(central, central))[: len(central)]
    pool = load_pool(data)
    assert sorted(found) == sorted(_rows_of(Shard(pool, pool))[: len(pool)])
    assert len(central) == 180


def test_names_are_as_wide_as_needed() -> None:
    assert owner_names(Digits(owners=3)) == ("owner-00", "owner-01", "owner-02")
    assert owner_names(Synthetic(owners=101))[::100] == ("owner-000", "owner-100")


def test_making_shards_twice_gives_the_same_file_and_leaves_it_alone() -> None:
    data = Digits(seed=11)
    path = ensure_shards(data)
    assert path is not None
    before = path.stat()
    assert ensure_shards(data) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_many_processes_that_race_agree_and_leave_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path))
    data = Digits(seed=12)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: ensure_shards(data), range(4)))
    assert len(paths) == 1
    assert list((tmp_path / "shards").iterdir()) == list(paths)


def test_an_owner_on_another_machine_makes_the_same_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits(seed=13)
    here = open_shard(data, "owner-03")
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path / "other"))
    there = open_shard(data, "owner-03")
    assert _rows_of(here) == _rows_of(there)


def test_other_seeds_and_splits_have_other_files_but_scaling_has_not() -> None:
    base = Digits()
    assert ensure_shards(base) != ensure_shards(Digits(seed=1))
    assert ensure_shards(base) != ensure_shards(Digits(split=Dirichlet(alpha=5)))
    fixed = Digits.model_validate({"scaling": {"name": "fixed", "center": [0.5], "scale": [2]}})
    assert ensure_shards(base) == ensure_shards(fixed)


def test_a_failed_making_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="to deal to 9999 owners"):
        ensure_shards(Digits(owners=9999))
    assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize("data", [Digits(), Synthetic(), Images(owners=99)], ids=lambda data: data.name)
def test_an_unknown_owner_is_refused(data: SimulatedData) -> None:
    with pytest.raises(DataError, match="no owner 'owner-99'"):
        open_shard(data, "owner-99")


def test_the_holdout_is_a_share_rounded_up_and_depends_on_the_owner() -> None:
    data = Digits.model_validate({"split": "iid", "owners": 10, "holdout": 0.3})
    shard = open_shard(data, "owner-00")
    assert len(shard.holdout) == int(np.ceil(0.3 * 180))
    without = open_shard(data.model_copy(update={"holdout": 0.0}), "owner-00")
    assert len(without.holdout) == 0
    assert without.holdout.features.shape == (0, 1, 8, 8)
    assert sorted(_rows_of(without)) == sorted(_rows_of(shard))


def test_owner_scaling_standardises_training_rows_and_applies_to_held_out_rows() -> None:
    raw = open_shard(BreastCancer.model_validate({"scaling": "none"}), "owner-02")
    scaled = open_shard(BreastCancer(), "owner-02")
    for column in (0, 7, 29):
        values = [float(value) for value in raw.train.features[:, column]]
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        for got, was in ((scaled.train, raw.train), (scaled.holdout, raw.holdout)):
            expected = [(float(value) - mean) / (deviation + 1e-9) for value in was.features[:, column]]
            np.testing.assert_allclose(got.features[:, column], expected, rtol=1e-4, atol=1e-5)


def test_a_constant_feature_is_only_centred() -> None:
    shard = open_shard(Digits.model_validate({"scaling": "owner"}), "owner-00")
    assert not shard.train.features[:, 0, 0, 0].any()  # a corner pixel is always dark
    assert np.isfinite(shard.holdout.features).all()
    assert np.abs(shard.holdout.features).max() < 1e3


def test_fixed_scaling_takes_one_constant_or_one_a_feature() -> None:
    one = Digits.model_validate({"scaling": {"name": "fixed", "center": [0.5], "scale": [0.25]}})
    all_of_them = Digits.model_validate({"scaling": {"name": "fixed", "center": [0.5] * 64, "scale": [0.25] * 64}})
    raw = open_shard(Digits(), "owner-01").train.features
    for data in (one, all_of_them):
        np.testing.assert_allclose(open_shard(data, "owner-01").train.features, (raw - 0.5) / 0.25, rtol=1e-6)
    wrong = Digits.model_validate({"scaling": {"name": "fixed", "center": [0.5] * 8, "scale": [1]}})
    for call in (lambda: schema_of(wrong), lambda: open_shard(wrong, "owner-00")):
        with pytest.raises(ConfigError, match="center has 8 values"):
            call()


def test_the_central_test_set_is_scaled_by_public_constants_only() -> None:
    plain = central_test(Digits(central_test=0.2))
    section = {"central_test": 0.2, "scaling": {"name": "fixed", "center": [1], "scale": [2]}}
    scaled = central_test(Digits.model_validate(section))
    assert plain is not None
    assert scaled is not None
    np.testing.assert_allclose(scaled.features, (plain.features - 1) / 2, rtol=1e-6)
    assert central_test(Digits()) is None
    assert central_test(Synthetic()) is None
    with pytest.raises(ValidationError, match="central_test"):
        BreastCancer(central_test=0.2)


def test_too_few_classes_name_the_way_out() -> None:
    data = Digits.model_validate({"split": {"name": "shards", "per_owner": 1}, "owners": 10})
    with pytest.raises(DataError, match="min_classes: 1"):
        [open_shard(data, name) for name in owner_names(data)]
    relaxed = data.model_copy(update={"min_classes": 1})
    assert all(len(open_shard(relaxed, name).train) for name in owner_names(relaxed))


def test_the_catalogue_says_what_the_schemas_say() -> None:
    facts = {info.name: info for info in catalogue()}
    assert list(facts) == ["digits", "breast_cancer", "synthetic", "images", "heart_disease", "tables"]
    for data in (Digits(), BreastCancer()):
        pool, info = load_pool(data), facts[data.name]
        assert (len(pool), pool.features.shape[1:]) == (info.n_rows, info.feature_shape)
        assert len(np.unique(pool.targets)) == info.n_classes == schema_of(data).n_classes
    assert all(info.citation and info.licence and info.source for info in facts.values())


def test_importing_the_data_layer_loads_no_heavy_package() -> None:
    code = (
        "import sys, fedray.data; print(sorted({'torch', 'ray', 'pandas', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.strip() == "[]"
