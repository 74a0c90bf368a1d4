"""DP-SGD in the owner against Algorithm 1 of Abadi et al. 2016 written out example by example in plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_accounting import opacus_epsilon, pld_epsilon, renyi_epsilon
from torch import Tensor, nn
from toys import MODELS, PLAIN, TABLE, assignment, make_fixed_point, make_module, make_sealer, plan, shard, torch_task

from fedray.build import check, open_federation, open_owner
from fedray.config import Experiment
from fedray.errors import ConfigError, ModelError
from fedray.making import make_module as experiment_module
from fedray.owners import Owner
from fedray.pools import InProcessCohort
from fedray.privacy.account import Account
from fedray.privacy.accounting import spent
from fedray.privacy.dp_sgd import DpSgdPlan, PrivateDescent, check_private, make_private
from fedray.privacy.events import Charge, SampledGaussian
from fedray.privacy.ledger import Ledger
from fedray.privacy.ledger_file import LedgerFile
from fedray.rounds import federate
from fedray.tasks.losses import accuracy, cross_entropy
from fedray.tasks.torch_task import TorchTask
from fedray.values import Absent, Sealed, Shard, Vector
from fedray.vectors import Layout

N_ROWS, SEED = 12, 9
PLAN = DpSgdPlan(n_rows=N_ROWS, batch_size=4, clip=0.5, noise_multiplier=0.8)
OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=0.3),
    "momentum": partial(torch.optim.SGD, lr=0.2, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.02),
}


def _ledger(folder: Path) -> Ledger:
    return Ledger(LedgerFile(folder / "ledger.jsonl"), "a")


def _account(folder: Path, budget: float | None = None) -> Account:
    return Account(_ledger(folder), "a run", "dp-sgd", "example", 1e-5, budget)


def _charged(folder: Path) -> list[Charge]:
    return [Charge(release.event, release.count) for release in _ledger(folder).releases()]


def _descent(folder: Path, dp: DpSgdPlan = PLAN, replay: int | None = 5, budget: float | None = None) -> PrivateDescent:
    return PrivateDescent(dp, _account(folder, budget), replay)


def _private(name: str) -> nn.Module:
    return make_private(make_module(name))


def _task(folder: Path, model: str | Callable[[], nn.Module] = "mlp", optimizer: str = "sgd", **kw: Any) -> TorchTask:
    make = partial(_private, model) if isinstance(model, str) else model
    return torch_task(make, OPTIMIZERS[optimizer], descent=_descent(folder, **kw))


def _by_hand(model: str, optimizer: str, rows: Shard, vector: Vector, n_steps: int, mu: float, folder: Path) -> Vector:
    """Batches and noise from generators of the same state; gradients one example at a time."""
    module = _private(model)
    layout = Layout(module)
    layout.write(vector)
    parameters = list(module.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    step = OPTIMIZERS[optimizer](parameters)
    descent = _descent(folder)
    noise = descent._generator(SEED, "noise")
    coins = descent._generator(SEED, "batches")
    x, y = torch.from_numpy(rows.train.features), torch.from_numpy(rows.train.targets)
    for _ in range(n_steps):
        chosen = np.flatnonzero(coins.random(N_ROWS) < 4 / N_ROWS).tolist()
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for row in chosen:
            loss = F.cross_entropy(module(x[row : row + 1]).reshape(-1, 3), y[row].reshape(-1))
            gradient = torch.autograd.grad(loss, parameters)
            norm = torch.cat([part.reshape(-1) for part in gradient]).norm()
            factor = min(1.0, PLAN.clip / float(norm))
            total = [one + factor * part for one, part in zip(total, gradient, strict=True)]
        for parameter, anchor, one in zip(parameters, start, total, strict=True):
            drawn = torch.from_numpy(
                PLAN.noise_multiplier * PLAN.clip * noise.standard_normal(tuple(parameter.shape), dtype=np.float32)
            )
            pull = mu * (parameter.detach() - anchor)
            parameter.grad = (one + drawn) / 4 + pull
        step.step()
    return layout.read() - vector


CASES = [(model, optimizer, mu) for model in ("mlp", "cnn") for optimizer in OPTIMIZERS for mu in (0.0, 1.0)]


@pytest.mark.parametrize(("model", "optimizer", "mu"), [*CASES, ("lstm", "sgd", 1.0), ("lstm every step", "sgd", 0.0)])
def test_private_training_is_the_algorithm_written_out(model: str, optimizer: str, mu: float, tmp_path: Path) -> None:
    """With mu = 1 the pull mu (w - w_t) comes on top of the noised gradient, exactly."""
    rows = shard(N_ROWS, 3, MODELS[model][1])
    task = _task(tmp_path, model, optimizer)
    vector = task.initial(2)
    update = task.train(vector, assignment(plan(15, "steps", mu=mu)), rows, SEED)
    expected = _by_hand(model, optimizer, rows, vector, 15, mu, tmp_path)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(update.delta, expected, rtol=2e-3, atol=2e-5)


def test_the_pull_changes_private_training(tmp_path: Path) -> None:
    """The comparison of FedAvg and FedProx under DP compares two algorithms."""
    rows, vector = shard(N_ROWS), _task(tmp_path).initial(2)
    free, held = (
        _task(tmp_path / str(mu)).train(vector, assignment(plan(15, "steps", mu=mu)), rows, SEED).delta for mu in (0, 1)
    )
    assert np.abs(free - held).max() > 0.01


class _ProximalLoss:
    """Cross-entropy plus mu/2 ||w - w_t||^2 in the loss: the trap."""

    def __init__(self, mu: float) -> None:
        self.mu, self.modules, self.start = mu, [], None

    def make(self) -> nn.Module:
        self.modules.append(_private("mlp"))
        return self.modules[-1]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        parameters = list(self.modules[0].parameters())
        self.start = self.start or [parameter.detach().clone() for parameter in parameters]
        distance = sum(((p - s) ** 2).sum() for p, s in zip(parameters, self.start, strict=True))
        return cross_entropy(outputs, targets) + self.mu / 2 * distance


def test_the_same_term_written_into_the_loss_has_no_effect_at_all_under_opacus(tmp_path: Path) -> None:
    rows, deltas = shard(N_ROWS), []
    for mu in (0.0, 100.0):
        loss = _ProximalLoss(mu)
        task = TorchTask(loss.make, loss, {"accuracy": accuracy}, OPTIMIZERS["sgd"], _descent(tmp_path / str(mu)))
        vector = task.initial(2)
        deltas.append(task.train(vector, assignment(plan(15, "steps")), rows, SEED).delta)
    assert deltas[0].tobytes() == deltas[1].tobytes()
    assert np.abs(deltas[0]).max() > 0.01


class Watching(nn.Module):
    """Notes what it is asked in training; can be slow, and can fail."""

    def __init__(self, seen: list[list[float]], pause_s: float = 0.0, fails: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.seen, self.pause_s, self.fails = seen, pause_s, fails

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x[:, 0].tolist())
            time.sleep(self.pause_s)
            if self.fails:
                self.fails()
        return self.linear(x)


def test_the_account_is_charged_before_the_first_noise_is_drawn(tmp_path: Path) -> None:
    def fail() -> None:
        assert _charged(tmp_path) == [Charge(SampledGaussian(4 / N_ROWS, 0.8), 7)]
        raise RuntimeError("out of memory")

    task = _task(tmp_path, partial(Watching, [], fails=fail))
    with pytest.raises(RuntimeError, match="out of memory"):
        task.train(task.initial(0), assignment(plan(7, "steps")), shard(N_ROWS), 0)
    assert _charged(tmp_path) == [Charge(SampledGaussian(4 / N_ROWS, 0.8), 7)]
    assert _account(tmp_path).spent.epsilon == pytest.approx(pld_epsilon([(4 / N_ROWS, 0.8, 7)]), rel=0.01)


def test_steps_that_a_deadline_cut_off_are_given_back(tmp_path: Path) -> None:
    seen: list[list[float]] = []
    spent([Charge(SampledGaussian(4 / N_ROWS, 0.8), 300)], 1e-5)  # remembered, so that the deadline is for training
    task = _task(tmp_path, partial(Watching, seen, 0.02))
    update = task.train(task.initial(0), assignment(plan(300, "steps"), deadline_s=0.4), shard(N_ROWS), 0)
    assert 1 <= update.n_steps == len(seen) < 300
    assert not update.is_complete
    assert _charged(tmp_path) == [Charge(SampledGaussian(4 / N_ROWS, 0.8), update.n_steps)]


def test_an_owner_whose_budget_is_spent_refuses_and_the_round_goes_on(tmp_path: Path) -> None:
    budget = pld_epsilon([(4 / N_ROWS, 0.8, 7)]) * 1.02
    task = _task(tmp_path, budget=budget)
    account = task.descent._account  # type: ignore[attr-defined]
    vector = task.initial(0)
    sealer = make_sealer(PLAIN, "a", make_fixed_point(PLAIN, vector.size, 3))
    owner = Owner("a", shard(N_ROWS), task, sealer, 0, account)
    first = owner.train(vector, assignment(plan(7, "steps")))
    second = owner.train(vector, assignment(plan(7, "steps", round=2)))
    assert isinstance(first, Sealed)
    assert isinstance(second, Absent)
    assert (second.outcome, second.round) == ("exhausted", 2)
    assert first.spent == second.spent
    assert first.spent is not None
    assert first.spent.epsilon <= budget


@pytest.mark.parametrize("model", ["mlp", "cnn", "lstm", "lstm every step"])
def test_empty_batches_train_finitely_and_count(model: str, tmp_path: Path) -> None:
    """At one expected row of 12 a third of the batches is empty; each is a step, with noise."""
    sizes: list[int] = []
    task = _task(tmp_path, model, dp=DpSgdPlan(N_ROWS, 1, 0.5, 0.8))
    task.bench.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    update = task.train(task.initial(0), assignment(plan(30, "steps")), shard(N_ROWS, 3, MODELS[model][1]), 0)
    assert len(sizes) < 27
    assert min(sizes) >= 1
    assert update.n_steps == 30
    assert np.isfinite(update.delta).all()
    assert (update.delta != 0).all()


def test_batches_are_poisson() -> None:
    """Sizes of batches are binomial; a row's chance does not depend on the others."""
    descent = PrivateDescent(DpSgdPlan(20, 5, 1.0, 1.0), _NoAccount(), 3)
    draws = descent.draw(assignment(plan(2000, "steps")), 20, 0)
    sizes = [len(rows) for rows in draws.batches]
    assert len(sizes) == 2000
    assert np.mean(sizes) == pytest.approx(5.0, abs=0.2)
    assert np.var(sizes) == pytest.approx(20 * 0.25 * 0.75, rel=0.15)


class _NoAccount:
    def charge(self, round: int, charge: Charge) -> None: ...

    def settle(self, round: int, count: int) -> None: ...


def test_without_replay_neither_noise_nor_batches_follow_the_seed(tmp_path: Path) -> None:
    seen: list[list[list[float]]] = [[], []]
    vector = np.zeros(18, dtype=np.float32)
    deltas = [
        _task(tmp_path / str(i), partial(Watching, seen[i]), replay=None)
        .train(vector, assignment(plan(10, "steps")), shard(N_ROWS), SEED)
        .delta
        for i in (0, 1)
    ]
    assert seen[0] != seen[1]
    assert not np.isclose(deltas[0], deltas[1]).any()


def test_with_replay_both_follow_it_and_rounds_differ(tmp_path: Path) -> None:
    seen: list[list[list[float]]] = [[], [], []]
    vector = np.zeros(18, dtype=np.float32)
    deltas = [
        _task(tmp_path / str(i), partial(Watching, seen[i]))
        .train(vector, assignment(plan(10, "steps")), shard(N_ROWS), seed)
        .delta
        for i, seed in enumerate((SEED, SEED, SEED + 1))
    ]
    assert seen[0] == seen[1] != seen[2]
    assert deltas[0].tobytes() == deltas[1].tobytes() != deltas[2].tobytes()


def test_noise_has_the_deviation_that_was_charged(tmp_path: Path) -> None:
    """One step over 3,600 parameters: clipped rows move each a little, the noise by lr z C / L = 0.3 x 1.5 x 2."""
    dp = DpSgdPlan(1000, 1, 2.0, 1.5)
    task = torch_task(lambda: nn.Linear(5, 600), OPTIMIZERS["sgd"], descent=_descent(tmp_path, dp, replay=None))
    update = task.train(task.initial(0), assignment(plan(1, "steps")), shard(1000), 0)
    assert float(update.delta.std()) == pytest.approx(0.3 * 1.5 * 2.0, rel=0.06)
    assert abs(float(update.delta.mean())) < 0.08


def test_a_model_that_mixes_examples_is_refused_with_a_way_out() -> None:
    for module in (make_module("batchnorm"), nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True))):
        with pytest.raises(ModelError) as error:
            make_private(module)
        assert "Norm" in error.value.found
        assert "group" in error.value.remedy


def test_an_experiment_with_batchnorm_under_privacy_is_refused_and_with_groupnorm_is_not() -> None:
    raw: dict[str, Any] = {"data": "digits", "privacy": {"name": "example", "epsilon": 3}}
    with pytest.raises(ModelError, match="BatchNorm2d"):
        check(Experiment.model_validate({**raw, "model": {"name": "cnn", "norm": "batch"}}))
    check(Experiment.model_validate({**raw, "model": {"name": "cnn", "norm": "group"}}))


class HalfUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.lonely = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_parameter_without_per_example_gradients_is_refused_by_name() -> None:
    module = HalfUsed()
    with pytest.raises(ModelError, match=r"lonely\.weight, lonely\.bias"):
        check_private(make_private(module), cross_entropy, TABLE)
    module = HalfUsed()
    module.lonely.requires_grad_(False)
    check_private(make_private(module), cross_entropy, TABLE)


class Remembers(nn.Module):
    """Keeps a mean of the rows that it was trained on, which would leave the owner without noise."""

    def __init__(self, *, remembers: bool) -> None:
        super().__init__()
        self.linear, self.remembers = nn.Linear(5, 3), remembers
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.remembers:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.linear(x - self.mean)


def test_statistics_of_rows_are_refused_since_no_noise_would_cover_them() -> None:
    with pytest.raises(ModelError, match="buffers mean"):
        check_private(make_private(Remembers(remembers=True)), cross_entropy, TABLE)
    check_private(make_private(Remembers(remembers=False)), cross_entropy, TABLE)


def test_a_class_that_cannot_be_pickled_is_made_private_all_the_same() -> None:
    class Local(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

    module = Local(nn.Linear(5, 3))
    assert make_private(module) is module
    assert type(make_private(Local(nn.LSTM(5, 3))).part).__name__ == "DPLSTM"


def test_a_layer_that_stands_in_two_places_is_replaced_in_both_by_one() -> None:
    layer = nn.LSTM(3, 3)
    module = make_private(nn.ModuleDict({"first": layer, "second": layer}))
    assert [type(part).__name__ for part in module.children()] == ["DPLSTM"]
    assert module["first"] is module["second"]  # type: ignore[index]


@pytest.mark.parametrize("model", ["mlp", "cnn", "lstm", "lstm every step"])
def test_the_built_in_models_can_be_trained_privately(model: str) -> None:
    check_private(_private(model), cross_entropy, MODELS[model][1])


@pytest.mark.parametrize("model", ["lstm", "lstm every step"])
def test_a_recurrent_model_is_replaced_by_one_that_computes_the_same(model: str) -> None:
    torch.manual_seed(0)
    module = make_module(model)
    private = make_private(module)
    tokens = torch.randint(0, 7, (4, 6))
    assert type(private.lstm) is not nn.LSTM
    torch.testing.assert_close(private(tokens), module(tokens))
    shapes = [sorted(parameter.numel() for parameter in one.parameters()) for one in (module, private)]
    assert sum(shapes[0]) == sum(shapes[1])


RAW: dict[str, Any] = {
    "data": {"name": "digits", "owners": 3, "split": "iid", "min_classes": 1},
    "model": "logistic",
    "train": {"batch_size": 120, "epochs": 2},
    "rounds": 3,
}


def _rate_and_steps(experiment: Experiment, name: str) -> tuple[float, int]:
    """q and steps a round, by hand."""
    from fedray import data

    n_rows = len(data.open_shard(experiment.data, name).train)
    return 120 / n_rows, 2 * (n_rows // 120 + (n_rows % 120 > 0))


def test_epsilon_grows_over_rounds_as_one_composition(tmp_path: Path) -> None:
    """A fresh budget each round would stay where it is; round 3 must cost what 3 rounds' steps cost together."""
    raw = {**RAW, "privacy": {"name": "example", "noise_multiplier": 1.5}}
    experiment = Experiment.model_validate(raw)
    records = [record for _, record in federate(open_federation(experiment, InProcessCohort, tmp_path))]
    for record in records:
        for owner in record.owners:
            rate, n_steps = _rate_and_steps(experiment, owner.name)
            history = [(rate, 1.5, n_steps * record.round)]
            assert owner.epsilon == pytest.approx(pld_epsilon(history, grid=5e-4), rel=0.01)
            assert owner.epsilon <= opacus_epsilon(history)
            assert owner.epsilon_rdp == pytest.approx(renyi_epsilon(history), rel=0.02)
        assert record.epsilon == max(owner.epsilon for owner in record.owners)
    assert records[0].epsilon < records[1].epsilon < records[2].epsilon


def test_a_reopened_owner_goes_on_where_its_account_was(tmp_path: Path) -> None:
    raw = {**RAW, "privacy": {"name": "example", "noise_multiplier": 1.5}, "protection": "plain"}
    experiment = Experiment.model_validate(raw)
    vector = np.zeros(650, dtype=np.float32)
    rate, n_steps = _rate_and_steps(experiment, "owner-01")
    for round in (1, 2, 3):
        owner = open_owner(experiment, "owner-01", 3, tmp_path, "a run")
        answer = owner.train(vector, assignment(plan(2, round=round), "owner-01", weight_bound=1024))
        assert isinstance(answer, Sealed)
        assert answer.spent is not None
        expected = pld_epsilon([(rate, 1.5, n_steps * round)], grid=5e-4)
        assert answer.spent.epsilon == pytest.approx(expected, rel=0.01)


def test_a_run_ends_at_its_budget_and_an_owner_goes_no_further(tmp_path: Path) -> None:
    experiment = Experiment.model_validate({**RAW, "privacy": {"name": "example", "epsilon": 2.0}})
    (*_, last) = [record for _, record in federate(open_federation(experiment, InProcessCohort, tmp_path))]
    for owner in last.owners:
        assert 2.0 * 0.98 < owner.epsilon <= 2.0
        assert owner.outcome == "update"
    owner = open_owner(experiment, "owner-00", 3, tmp_path / "owner-00", (tmp_path / "run").read_text())
    answer = owner.train(np.zeros(650, dtype=np.float32), assignment(plan(2, round=4), "owner-00", weight_bound=1024))
    assert isinstance(answer, Absent)
    assert answer.outcome == "exhausted"
    assert "epsilon" in answer.reason, "refused for its budget, not for want of a round's keys"


def test_a_budget_is_spread_over_the_rounds_that_an_owner_takes_part_in(tmp_path: Path) -> None:
    raw = {**RAW, "privacy": {"name": "example", "epsilon": 2.0}, "cohort": {"name": "fixed", "size": 1}, "rounds": 4}
    experiment = Experiment.model_validate({**raw, "protection": "plain"})
    records = [record for _, record in federate(open_federation(experiment, InProcessCohort, tmp_path))]
    asked = {name for record in records for name in record.cohort}
    for owner in records[-1].owners:
        if owner.name in asked:
            assert 2.0 * 0.98 < owner.epsilon <= 2.0
        else:
            assert owner.epsilon == 0.0


def test_a_delta_of_one_over_the_rows_is_refused(tmp_path: Path) -> None:
    raw = {**RAW, "privacy": {"name": "example", "epsilon": 2.0, "delta": 0.01}}
    with pytest.raises(ConfigError, match=r"privacy\.delta 0\.01 for owner 'owner-00'"):
        open_owner(Experiment.model_validate(raw), "owner-00", 3, tmp_path, "a run")


def test_the_model_of_a_private_run_is_the_private_one() -> None:
    raw = {"data": "digits", "model": {"name": "mlp", "hidden": [4]}, "privacy": {"name": "example", "epsilon": 1.0}}
    assert Layout(experiment_module(Experiment.model_validate(raw))).n_values == 64 * 4 + 4 + 4 * 10 + 10


def test_noise_depends_on_all_bits_of_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [5, 5 + 7 * 2**32, 5 + 2**100]
    asked: list[int] = []

    def randbits(count: int) -> int:
        asked.append(count)
        return keys[len(asked) - 1]

    monkeypatch.setattr("fedray.privacy.dp_sgd.secrets.randbits", randbits)
    descent = _descent(tmp_path, replay=None)
    drawn = [descent._generator(SEED, "noise").standard_normal(4).tolist() for _ in keys]
    assert asked == [128] * 3
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
