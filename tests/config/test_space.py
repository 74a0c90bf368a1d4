"""What is a grid, what is a range and what is simply a list is told by the schema."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.config import validated
from fedray.config.loading import override
from fedray.config.space import separate
from fedray.errors import ConfigError


def test_a_plain_experiment_has_one_point() -> None:
    raw = {"strategy": "fedprox", "model": {"name": "mlp", "hidden": [64, 32]}, "metrics": ["accuracy"]}
    space = separate(raw)
    assert (space.grids, space.ranges) == ({}, {})
    assert space.experiments() == [validated(raw)]


def test_lists_where_the_schema_takes_none_are_grids() -> None:
    space = separate(
        {"rounds": [1, 2], "strategy": ["fedavg", "fedprox"], "train": {"optimizer": {"name": "sgd", "lr": [0.1, 0.2]}}}
    )
    assert space.grids == {"rounds": (1, 2), "strategy": ("fedavg", "fedprox"), "train.optimizer.lr": (0.1, 0.2)}
    found = {(e.rounds, e.strategy.name, e.train.optimizer.lr) for e in space.experiments()}
    assert found == {(r, s, lr) for r in (1, 2) for s in ("fedavg", "fedprox") for lr in (0.1, 0.2)}
    assert len(space.experiments()) == space.n_grid == 8


def test_a_list_of_lists_is_a_grid_over_a_list_valued_setting() -> None:
    space = separate({"model": {"name": "mlp", "hidden": [[8], [4, 4]]}})
    assert space.grids == {"model.hidden": ([8], [4, 4])}
    assert [e.model.hidden for e in space.experiments()] == [(8,), (4, 4)]


def test_a_grid_inside_a_list_is_written_out() -> None:
    space = separate({"strategy": ["fedavg", {"name": "fedprox", "mu": [0.1, 1.0]}]})
    assert [(e.strategy.name, getattr(e.strategy, "mu", None)) for e in space.experiments()] == [
        ("fedavg", None),
        ("fedprox", 0.1),
        ("fedprox", 1.0),
    ]


def test_a_list_valued_setting_inside_a_list_stays_a_list() -> None:
    space = separate({"model": ["logistic", {"name": "mlp", "hidden": [8, 4]}]})
    assert [getattr(e.model, "hidden", None) for e in space.experiments()] == [None, (8, 4)]


def test_ranges_are_told_from_sections() -> None:
    space = separate(
        {
            "strategy": {"name": "fedprox", "mu": {"loguniform": [0.001, 1.0]}},
            "train": {"batch_size": {"randint": [4, 64]}, "optimizer": {"name": "sgd", "lr": {"uniform": [0.1, 0.5]}}},
            "model": {"choice": ["logistic", {"name": "mlp", "hidden": [3]}]},
        }
    )
    assert {key: (spread.kind, spread.values) for key, spread in space.ranges.items()} == {
        "strategy.mu": ("loguniform", (0.001, 1.0)),
        "train.batch_size": ("randint", (4, 64)),
        "train.optimizer.lr": ("uniform", (0.1, 0.5)),
        "model": ("choice", ("logistic", {"name": "mlp", "hidden": [3]})),
    }
    assert len(space.experiments()) == 2**4


def test_bounds_may_be_written_as_people_write_them() -> None:
    """YAML 1.1 reads 1e-4 as a string."""
    space = separate({"strategy": {"name": "fedprox", "mu": {"loguniform": ["1e-4", "1e-1"]}}})
    assert space.ranges["strategy.mu"].values == (1e-4, 1e-1)


@pytest.mark.parametrize(
    "spread",
    [
        {"uniform": [1, 0]},
        {"uniform": [1]},
        {"uniform": 3},
        {"loguniform": [0, 1]},
        {"randint": ["a", "b"]},
        {"choice": []},
        {"choice": "ab"},
    ],
)
def test_a_malformed_range_is_named(spread: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.mu"):
        separate({"strategy": {"name": "fedprox", "mu": spread}})


def test_a_range_inside_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="strategy holds a range inside a list"):
        separate({"strategy": ["fedavg", {"name": "fedprox", "mu": {"uniform": [0, 1]}}]})


def test_a_bad_element_is_named_with_its_setting() -> None:
    space = separate({"strategy": {"name": "fedprox", "mu": [0.1, -1]}, "rounds": [1, 2]})
    with pytest.raises(ConfigError) as error:
        space.experiments()
    assert "strategy.mu=-1" in error.value.found
    assert "strategy.mu: " in error.value.found


def test_a_list_of_nothing_right_is_a_wrong_value() -> None:
    space = separate({"rounds": ["a", "b"]})
    assert space.grids == {}
    with pytest.raises(ConfigError, match="rounds: "):
        space.experiments()


def test_an_error_elsewhere_does_not_make_a_grid_of_a_list() -> None:
    space = separate({"model": {"name": "mlp", "hidden": [64, 32]}, "rounds": 0})
    assert space.grids == {}


def test_what_was_given_is_not_changed() -> None:
    raw = {"strategy": {"name": "fedprox", "mu": [0.1, 1.0]}, "rounds": {"randint": [1, 3]}}
    separate(raw)
    assert raw == {"strategy": {"name": "fedprox", "mu": [0.1, 1.0]}, "rounds": {"randint": [1, 3]}}


GRIDS: dict[str, Any] = {
    "rounds": st.integers(1, 50),
    "seed": st.integers(0, 9),
    "strategy": st.sampled_from(["fedavg", "fedprox"]),
    "train.batch_size": st.integers(1, 64),
    "train.optimizer.lr": st.floats(0.01, 1.0),
    "model.hidden": st.lists(st.integers(1, 9), min_size=1, max_size=2),
    "data.split": st.sampled_from(["iid", "quantity"]),
}


@settings(deadline=None, max_examples=15)
@given(data=st.data(), keys=st.lists(st.sampled_from(sorted(GRIDS)), unique=True, max_size=4))
def test_points_are_the_product_of_all_grids(data: st.DataObject, keys: list[str]) -> None:
    raw: dict[str, Any] = {
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "train": {"optimizer": {"name": "sgd"}},
    }
    drawn = {key: data.draw(st.lists(GRIDS[key], min_size=1, max_size=3)) for key in keys}
    space = separate(override(raw, drawn))
    points = list(space.points())
    assert len(points) == math.prod(len(values) for values in drawn.values())
    assert {key: list(values) for key, values in space.grids.items()} == drawn
    assert space.experiments() == [validated(override(raw, point)) for point in points]
