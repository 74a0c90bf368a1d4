"""From the experiment to its parts: every setting arrives where it acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toys import TABLE, assignment, examples, plan, shard

from fedray.build import check, make_strategy, make_task, open_federation, open_owner
from fedray.config import validated
from fedray.errors import ConfigError, DataError, ModelError
from fedray.owners import InProcessCohort
from fedray.strategies import FedAvg, FedProx
from fedray.tasks.descent import ShuffledDescent
from fedray.values import Examples, Schema, Shard, Work

SMALL: dict[str, Any] = {"data": {"name": "digits", "owners": 3, "split": "iid"}, "model": "logistic"}


def test_a_strategy_is_made_of_its_section() -> None:
    shared: dict[str, Any] = {"weighting": "uniform", "server_lr": 0.5, "server_momentum": 0.25}
    fedavg = make_strategy(validated({"strategy": {"name": "fedavg", **shared}, "train": {"steps": 7}}))
    assert fedavg == FedAvg(Work(7, "steps"), **shared)
    assert type(fedavg) is FedAvg
    fedprox = make_strategy(validated({"strategy": {"name": "fedprox", "mu": 0.75, **shared}, "train": {"epochs": 3}}))
    assert fedprox == FedProx(Work(3, "epochs"), mu=0.75, **shared)
    assert make_strategy(validated({})).plan({}, 1).work == Work(1, "epochs")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "sgd", "lr": 0.3, "momentum": 0.8, "weight_decay": 0.05}, torch.optim.SGD),
        ({"name": "adam", "lr": 0.02, "weight_decay": 0.05}, torch.optim.Adam),
    ],
)
def test_an_optimizer_is_made_of_its_section(section: dict[str, Any], expected: Any) -> None:
    """One epoch of full batches equals the same optimizer written out in torch."""
    task = make_task(
        validated({"train": {"optimizer": section}, "model": {"name": "logistic", "zero_init": True}}),
        TABLE,
        ShuffledDescent(100),
    )
    rows = shard()
    found = task.train(np.zeros(18, np.float32), assignment(plan(3)), rows, 0).delta
    linear = torch.nn.Linear(5, 3)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = expected(linear.parameters(), **{key: value for key, value in section.items() if key != "name"})
    for _ in range(3):
        optimizer.zero_grad()
        outputs = linear(torch.from_numpy(rows.train.features))
        torch.nn.functional.cross_entropy(outputs, torch.from_numpy(rows.train.targets)).backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in linear.parameters()]).numpy()
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-6)


def test_a_loss_may_be_a_class_of_torch_by_its_import_path() -> None:
    by_path = make_task(validated({"loss": "torch.nn:CrossEntropyLoss"}), TABLE, ShuffledDescent(4))
    by_name = make_task(validated({}), TABLE, ShuffledDescent(4))
    vector, rows = by_name.initial(0), examples(9)
    assert by_path.evaluate(vector, rows).sums["loss"] == pytest.approx(by_name.evaluate(vector, rows).sums["loss"])


@pytest.mark.parametrize(
    ("raw", "schema", "n_outputs"),
    [
        ({}, TABLE, 3),
        ({"loss": "binary_cross_entropy", "metrics": ["binary_accuracy"]}, Schema((5,), "float32", (), 2), 1),
        ({"loss": "mse", "metrics": ["squared_error"]}, Schema((5,), "float32", (), None), 1),
        ({"loss": "mse", "metrics": ["squared_error"]}, Schema((5,), "float32", (2,), None), 2),
    ],
)
def test_a_built_in_model_has_the_outputs_that_its_loss_needs(raw: Any, schema: Schema, n_outputs: int) -> None:
    task = make_task(validated({**raw, "model": "logistic"}), schema, ShuffledDescent(4))
    assert task.n_parameters == 6 * n_outputs
    task.check(schema)


def test_one_output_for_three_classes_is_refused() -> None:
    raw = {"loss": "binary_cross_entropy", "metrics": ["binary_accuracy"]}
    with pytest.raises(ModelError, match="3 classes"):
        make_task(validated(raw), TABLE, ShuffledDescent(4))


def test_a_regression_learns_a_line() -> None:
    task = make_task(
        validated({"loss": "mse", "metrics": ["squared_error", "absolute_error"], "model": "logistic"}),
        Schema((1,), "float32", (), None),
        ShuffledDescent(10),
    )
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    rows = Examples(x, (2 * x[:, 0] - 0.5).astype(np.float32))
    vector = task.initial(0)
    vector = vector + task.train(vector, assignment(plan(100)), Shard(rows, rows), 0).delta
    np.testing.assert_allclose(vector, [2.0, -0.5], atol=1e-3)
    assert task.evaluate(vector, rows).means["squared_error"] < 1e-5


def test_an_owner_whose_rows_have_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2.0] * 5, "y": [1.0, 2.0] * 5, "target": [0, 1] * 5}).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"x": [1.0, 2.0] * 5, "target": [0, 1] * 5}).to_parquet(tmp_path / "b.parquet")
    experiment = validated({"data": {"name": "tables", "path": tmp_path, "classes": [0, 1]}, "model": "logistic"})
    open_owner(experiment, "a", 1, tmp_path / "state")
    with pytest.raises(DataError, match=r"b\.parquet"):
        open_owner(experiment, "b", 1, tmp_path / "state")


def test_a_cohort_larger_than_a_folder_of_owners_is_found_by_the_check(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2.0] * 5, "target": [0, 1] * 5}).to_parquet(tmp_path / "a.parquet")
    data = {"name": "tables", "path": tmp_path, "classes": [0, 1]}
    with pytest.raises(ConfigError, match=r"cohort\.size 2"):
        check(validated({"data": data, "model": "logistic", "cohort": {"name": "fixed", "size": 2}}))


def test_a_federation_has_every_owner_and_the_servers_test_set(tmp_path: Path) -> None:
    raw = {**SMALL, "data": {**SMALL["data"], "central_test": 0.25}}
    federation = open_federation(validated(raw), InProcessCohort, tmp_path)
    assert [info.name for info in federation.cohort.owners] == ["owner-00", "owner-01", "owner-02"]
    assert federation.central_test is not None
    n_rows = sum(info.n_train + info.n_holdout for info in federation.cohort.owners)
    assert n_rows + len(federation.central_test) == 1797
    assert federation.task.n_parameters == 650
    assert list(tmp_path.iterdir()) == []
