"""Runs in this process: what they leave on disk, and that they end the way they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

import fedray
from fedray import data
from fedray.config import Experiment, load, validated
from fedray.errors import ConfigError, ModelError, RecordsError, RunDirectoryError
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.records import read_run
from fedray.values import Tally, Update, sha256
from fedray.vectors import Layout

RAW: dict[str, Any] = {
    "data": {"name": "digits", "owners": 3, "split": "iid"},
    "model": {"name": "mlp", "hidden": [8]},
    "rounds": 2,
    "train": {"batch_size": 64},
}


def _run(raw: dict[str, Any], folder: Path) -> list[fedray.RoundRecord]:
    return list(fedray.run(Experiment.model_validate(raw), folder, in_process=True))


VARIANTS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox with stragglers": {
        "strategy": {"name": "fedprox", "mu": 0.5, "server_momentum": 0.5},
        "train": {"epochs": 3, "batch_size": 64},
        "stragglers": {"fraction": 0.5},
    },
    "cnn with batch norm": {"model": {"name": "cnn", "channels": [2], "hidden": 4, "norm": "batch"}},
    "replayed privacy": {"privacy": {"name": "example", "noise_multiplier": 2.0, "unsafe_replay_seed": 3}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_experiment_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    raw = {**RAW, **VARIANTS[variant]}
    torch.manual_seed(1)
    first = _run(raw, tmp_path / "a")
    torch.manual_seed(2)
    second = _run(raw, tmp_path / "b")
    assert [r.parameters_sha256 for r in first] == [r.parameters_sha256 for r in second]
    assert [r.metrics for r in first] == [r.metrics for r in second]
    other = _run({**raw, "seed": 1}, tmp_path / "c")
    assert other[-1].parameters_sha256 != first[-1].parameters_sha256


def test_private_runs_differ_without_a_replay_seed(tmp_path: Path) -> None:
    raw = {**RAW, "privacy": {"name": "example", "noise_multiplier": 2.0}}
    digests = {_run(raw, tmp_path / name)[-1].parameters_sha256 for name in "ab"}
    assert len(digests) == 2


@pytest.mark.parametrize("protection", ["plain", "masked"])
def test_a_run_leaves_records_experiment_and_model(protection: str, tmp_path: Path) -> None:
    """Under masks what owners keep is beside them, in a folder of its own."""
    raw = {**RAW, "protection": protection}
    records = _run(raw, tmp_path / "run")
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept - {"owners"} == {
        "experiment.yaml",
        "model.safetensors",
        "rounds.parquet",
        "checkpoints",
        "events.jsonl",
    }
    assert ("owners" in kept) == (protection == "masked")
    found = read_run(tmp_path / "run")
    assert found.rounds == tuple(records)
    assert found.status == "complete"
    assert load(tmp_path / "run" / "experiment.yaml") == validated(raw) == validated(found.experiment)
    assert [(r.sum.protection, r.sum.outcome, r.n_updates) for r in records] == [(protection, "opened", 3)] * 2


def test_masked_runs_are_the_plain_ones_to_the_bit(tmp_path: Path) -> None:
    """Whatever keys and masks were drawn: twice masked, and once plain."""
    runs = {
        name: _run({**RAW, "protection": name.split()[0]}, tmp_path / name) for name in ("plain", "masked", "masked 2")
    }
    assert len({tuple(r.parameters_sha256 for r in records) for records in runs.values()}) == 1
    assert len({repr([r.metrics for r in records]) for records in runs.values()}) == 1


def test_records_are_on_disk_before_they_are_yielded(tmp_path: Path) -> None:
    for record in fedray.run(Experiment.model_validate(RAW), tmp_path / "run", in_process=True):
        assert read_run(tmp_path / "run").rounds[-1] == record
        assert read_run(tmp_path / "run").status == "running"


def test_leaving_the_loop_early_ends_the_run_as_interrupted(tmp_path: Path) -> None:
    rounds = iter(fedray.run(Experiment.model_validate(RAW), tmp_path / "run", in_process=True))
    first = next(rounds)
    rounds.close()
    found = read_run(tmp_path / "run")
    assert (found.rounds, found.status) == ((first,), "interrupted")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_whose_owners_budgets_end_stops_early_with_the_model_that_they_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each owner's ledger on its machine allows for two of five rounds."""
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    private = {**RAW, "rounds": 5, "privacy": {"name": "example", "noise_multiplier": 2.0}}
    costs = [record.epsilon for record in _run(private, tmp_path / "unlimited")]
    assert costs[1] is not None
    for name in ("owner-00", "owner-01", "owner-02"):
        Ledger(LedgerFile(ledger_path(name)), name).set_budget("example", costs[1] * 1.01, 1e-5)
    run = fedray.run(Experiment.model_validate(private), tmp_path / "run", in_process=True)
    records = list(run)
    assert [record.n_updates for record in records] == [3, 3, 0]
    assert {owner.outcome for owner in records[-1].owners} == {"exhausted"}
    assert [record.epsilon for record in records[:2]] == pytest.approx(costs[:2])
    assert records[2].epsilon == records[1].epsilon
    assert read_run(tmp_path / "run").status == "exhausted"
    assert records[2].parameters_sha256 == records[1].parameters_sha256
    module = fedray.load_model(run.experiment, tmp_path / "run")
    assert sha256(Layout(module).read()) == records[1].parameters_sha256


def test_nothing_runs_before_the_first_record_is_asked_for(tmp_path: Path) -> None:
    fedray.run(Experiment.model_validate(RAW), tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


class Breaks(nn.Linear):
    """Fits the data, and fails in training."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("this model breaks")
        return super().forward(x)


def test_a_run_that_breaks_is_recorded_as_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="this model breaks"):
        _run({**RAW, "model": _flat_breaks}, tmp_path / "run")
    found = read_run(tmp_path / "run")
    assert (found.rounds, found.status) == ((), "failed")


def _flat_breaks() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Breaks(64, 10))


def test_an_existing_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="exists already"):
        fedray.run(Experiment.model_validate(RAW), tmp_path / "run", in_process=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert len(_run(RAW, tmp_path / "empty")) == 2


def test_a_run_cannot_be_iterated_twice_over_its_own_records(tmp_path: Path) -> None:
    run = fedray.run(Experiment.model_validate(RAW), tmp_path / "run", in_process=True)
    first = list(run)
    with pytest.raises(RunDirectoryError):
        list(run)
    assert read_run(tmp_path / "run").rounds == tuple(first)


@pytest.mark.parametrize("variant", [*VARIANTS, "tied"])
def test_the_loaded_model_has_the_accuracy_of_the_last_record(variant: str, tmp_path: Path) -> None:
    raw = {**RAW, **VARIANTS.get(variant, {"model": {"name": "custom", "factory": _tied}})}
    records = _run(raw, tmp_path / "run")
    experiment = Experiment.model_validate(raw)
    module = fedray.load_model(experiment, tmp_path / "run")
    assert not module.training
    right = total = 0
    for name in data.owner_names(experiment.data):
        rows = data.open_shard(experiment.data, name).holdout
        with torch.no_grad():
            guess = module(torch.from_numpy(rows.features)).argmax(1).numpy()
        right, total = right + int((guess == rows.targets).sum()), total + len(rows)
    assert right / total == pytest.approx(records[-1].metrics["accuracy"])
    assert records[-1].metrics["accuracy"] > 0.1


class Tied(nn.Module):
    """One square weight, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x.flatten(1)).relu()).relu())


def _tied() -> nn.Module:
    return Tied()


def test_the_servers_own_test_set_is_evaluated_there(tmp_path: Path) -> None:
    raw = {**RAW, "data": {**RAW["data"], "central_test": 0.2}}
    experiment = Experiment.model_validate(raw)
    last = _run(raw, tmp_path / "run")[-1]
    rows = data.central_test(experiment.data)
    assert rows is not None
    with torch.no_grad():
        outputs = fedray.load_model(experiment, tmp_path / "run")(torch.from_numpy(rows.features))
    targets = torch.from_numpy(rows.targets)
    assert last.central_metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)), rel=1e-5)
    assert last.central_metrics["accuracy"] == pytest.approx(float((outputs.argmax(1) == targets).double().mean()))
    assert last.central_metrics != last.metrics


def test_no_model_to_load_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no model\.safetensors"):
        fedray.load_model(Experiment.model_validate(RAW), tmp_path)


def test_the_model_of_a_round_that_was_kept(tmp_path: Path) -> None:
    raw = {**RAW, "rounds": 4, "checkpoints": {"last": 1, "every": 2}}
    records = _run(raw, tmp_path / "run")
    experiment = Experiment.model_validate(raw)
    for round in (2, 4):
        found = Layout(fedray.load_model(experiment, tmp_path / "run", round=round)).read()
        assert sha256(found) == records[round - 1].parameters_sha256
    with pytest.raises(RecordsError, match="round-000003"):
        fedray.load_model(experiment, tmp_path / "run", round=3)


# The user's own parts -----------------------------------------------------------------------------------------------


class Rings(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Points in the plane; the class is whether they lie beyond a radius."""

    def __init__(self, seed: int) -> None:
        self.points = torch.randn(240, 2, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.points[row], int(self.points[row].norm() > 1.2)


def make_rings(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))


def smooth_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def recall(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == 1).float() * (targets == 1)


def test_own_data_model_loss_and_metrics(tmp_path: Path) -> None:
    fedray.write_shards(tmp_path / "shards", Rings(0), owner=[name for name in "abc" for _ in range(80)])
    experiment = Experiment.model_validate(
        {
            "data": {"name": "tables", "path": tmp_path / "shards", "classes": [0, 1]},
            "model": {"name": "custom", "factory": make_rings, "args": {"width": 16}},
            "loss": smooth_cross_entropy,
            "metrics": ["accuracy", recall],
            "train": {"optimizer": {"name": "adam", "lr": 0.02}, "epochs": 10},
            "rounds": 3,
        }
    )
    records = list(fedray.run(experiment, tmp_path / "run", in_process=True))
    last = records[-1]
    assert [owner.name for owner in last.owners] == ["a", "b", "c"]
    assert set(last.metrics) == {"loss", "accuracy", "recall"}
    assert last.metrics["accuracy"] > 0.8
    module = fedray.load_model(experiment, tmp_path / "run")
    rows = [data.open_shard(experiment.data, name).holdout for name in "abc"]
    x = torch.from_numpy(np.concatenate([one.features for one in rows]))
    y = torch.from_numpy(np.concatenate([one.targets for one in rows]))
    with torch.no_grad():
        outputs = module(x)
    expected = torch.nn.functional.cross_entropy(outputs, y, label_smoothing=0.1)
    assert last.metrics["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert last.metrics["recall"] == pytest.approx(
        float(((outputs.argmax(1) == 1) & (y == 1)).float().mean()), rel=1e-5
    )
    text = yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())
    assert text["loss"].endswith(":smooth_cross_entropy")


class ConstantTask:
    """A task of one's own that knows nothing of torch: learns the mean of the first feature."""

    def __init__(self, schema: object) -> None:
        self.n_parameters = 1

    def initial(self, seed: int) -> Any:
        return np.full(1, seed, dtype=np.float32)

    def train(self, vector: Any, assignment: Any, shard: Any, seed: int) -> Any:
        delta = shard.train.features.reshape(len(shard.train), -1)[:, :1].mean(0, dtype=np.float64) - vector
        return Update(delta.astype(np.float32), len(shard.train), 1, not assignment.is_partial)

    def evaluate(self, vector: Any, examples: Any) -> Any:
        return Tally({"loss": float(len(examples) * vector[0])}, len(examples))


def test_a_task_of_ones_own_runs_without_torch_models(tmp_path: Path) -> None:
    raw = {
        "data": {"name": "synthetic", "owners": 4},
        "task": ConstantTask,
        "rounds": 1,
        "search": {"metric": "loss"},
        "protection": {"name": "masked", "precision": 1e-7},
    }
    (record,) = _run(raw, tmp_path / "run")
    experiment = Experiment.model_validate(raw)
    rows = [data.open_shard(experiment.data, name).train.features[:, 0] for name in data.owner_names(experiment.data)]
    assert record.metrics["loss"] == pytest.approx(np.concatenate(rows).mean(dtype=np.float64), abs=1e-6)
    assert load_file(tmp_path / "run" / "model.safetensors")["vector"].shape == (1,)
    assert load(tmp_path / "run" / "experiment.yaml").task.endswith(":ConstantTask")


@pytest.mark.parametrize(
    ("raw", "error", "said"),
    [
        ({"model": {"name": "custom", "factory": "test_running:_too_narrow"}}, ModelError, "output has shape"),
        ({"model": {"name": "custom", "factory": "test_running:_too_wide"}}, ModelError, "fails on features"),
        ({"model": {"name": "custom", "factory": "test_running:nothing_of_the_kind"}}, ConfigError, "cannot import"),
        ({"model": {"name": "custom", "factory": "no_such_package:f"}}, ConfigError, "cannot import"),
        ({"model": {"name": "custom", "factory": "test_running:RAW"}}, ConfigError, "is a dict"),
        ({"loss": "binary_cross_entropy", "metrics": ["binary_accuracy"]}, ModelError, "10 classes"),
        ({"loss": "test_running:bad_loss"}, ModelError, "loss or metrics fail"),
        ({"metrics": ["test_running:mean_accuracy"]}, ModelError, "'mean_accuracy'"),
        ({"placement": {"owner-99": {}}}, ConfigError, "owner-99"),
        ({"protection": {"name": "masked", "precision": 1e-9}}, ConfigError, "3 owners, which takes 36 bits"),
        ({"protection": {"name": "masked", "identities": {"owner-00": "ab" * 32}}}, ConfigError, "owner-01, owner-02"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_written(
    raw: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        fedray.run(Experiment.model_validate({**RAW, **raw}), tmp_path / "run", in_process=True)
    assert not (tmp_path / "run").exists()


def _too_narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))


def _too_wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))


def bad_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs, targets.float().reshape(2, 2, 2))


def mean_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()
