"""The server's rounds, held against plain torch and against cohorts that misbehave."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import MODELS, Meddling, changed, federation, make_module, shard, torch_task

from fedray.errors import RunError
from fedray.protection.fixed_point import DELTA_BOUND, WEIGHT_BOUND
from fedray.rounds import Federation, ServerState, federate, initial_state, merged
from fedray.strategies import FedAvg, FedProx
from fedray.values import Absent, Examples, RoundRecord, Sealed, Shard, Tally, Vector, Work, sha256
from fedray.vectors import Layout

SHARDS = {"a": shard(12, 5, seed=1), "b": shard(7, 3, seed=2), "c": shard(20, 4, seed=3)}
FULL = partial(torch_task, batch_size=100)


def _run(federation: Federation, state: ServerState | None = None) -> tuple[Vector, list[RoundRecord]]:
    pairs = list(federate(federation, state))
    return pairs[-1][0].vector, [record for _, record in pairs]


def _pooled(shards: dict[str, Shard], part: str) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [getattr(one, part) for one in shards.values()]
    return tuple(torch.from_numpy(np.concatenate([getattr(p, key) for p in parts])) for key in ("features", "targets"))  # type: ignore[return-value]


@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn", "lstm"])
def test_one_full_step_of_fedavg_is_gradient_descent_on_all_rows(model: str) -> None:
    """FedSGD, McMahan et al. 2017, section 2: the weighted mean of owners' gradients is the pooled gradient."""
    shards = {name: shard(n, 3, MODELS[model][1], seed=n) for name, n in (("a", 12), ("b", 5), ("c", 20))}
    found, _ = _run(federation(partial(FULL, model), shards, seed=6))
    torch.manual_seed(6)
    module = make_module(model)
    x, y = _pooled(shards, "train")
    F.cross_entropy(module(x), y).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(0.1 * parameter.grad)
    np.testing.assert_allclose(found, Layout(module).read(), rtol=1e-5, atol=1e-6)


def test_uniform_weights_are_the_plain_mean_of_the_owners_models() -> None:
    strategy = FedAvg(Work(1, "epochs"), weighting="uniform")
    found, _ = _run(federation(partial(FULL, "logistic"), SHARDS, strategy))
    models = [_run(federation(partial(FULL, "logistic"), {name: one}))[0] for name, one in SHARDS.items()]
    np.testing.assert_allclose(found, np.mean(np.array(models, dtype=np.float64), axis=0), atol=1e-6)


class Normed(nn.Module):
    """BatchNorm on the input itself, so that its running statistics can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


def test_batch_statistics_are_plain_means_that_no_server_step_touches() -> None:
    """One batch an owner and round: r <- 0.9 r + 0.1 (mean or unbiased variance of its rows); then weighted by rows."""
    strategy = FedAvg(Work(1, "epochs"), server_lr=0.5, server_momentum=0.9)
    pairs = list(federate(federation(partial(FULL, Normed), SHARDS, strategy, rounds=3)))
    weights = [len(one.train) for one in SHARDS.values()]
    means = np.average([one.train.features.astype(np.float64).mean(0) for one in SHARDS.values()], 0, weights)
    variances = np.average(
        [one.train.features.astype(np.float64).var(0, ddof=1) for one in SHARDS.values()], 0, weights
    )
    mean, variance = np.zeros(5), np.ones(5)
    for state, _ in pairs:
        mean, variance = 0.9 * mean + 0.1 * means, 0.9 * variance + 0.1 * variances
        np.testing.assert_allclose(state.vector[-10:], np.concatenate([mean, variance]), atol=1e-6)


def test_an_lstm_learns() -> None:
    """The class is the last token, modulo 3."""
    rows = []
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, 7, (60, 6))
        rows.append(Shard(Examples(tokens[:40], tokens[:40, -1] % 3), Examples(tokens[40:], tokens[40:, -1] % 3)))
    shards = dict(zip("abc", rows, strict=True))
    task = partial(torch_task, "lstm", partial(torch.optim.Adam, lr=0.05))
    _, records = _run(federation(task, shards, rounds=4, train={"epochs": 2}))
    assert records[-1].metrics["loss"] < 0.5 * records[0].metrics["loss"]
    assert records[-1].metrics["accuracy"] > 0.9


def test_federated_evaluation_is_evaluation_on_all_rows() -> None:
    federated = federation(torch_task, SHARDS, evaluation={"train": True})
    vector, (record,) = _run(federated)
    module = make_module("mlp").eval()
    Layout(module).write(vector)
    for part, found in (("holdout", record.metrics), ("train", record.train_metrics)):
        x, y = _pooled(SHARDS, part)
        with torch.no_grad():
            outputs = module(x)
        assert found["loss"] == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-5)
        assert found["accuracy"] == pytest.approx(float((outputs.argmax(1) == y).double().mean()), rel=1e-9)
    owners = {owner.name: owner for owner in record.owners}
    counts = {name: len(one.holdout) for name, one in SHARDS.items()}
    assert {name: owner.n_holdout for name, owner in owners.items()} == counts
    mean = sum(owners[name].metrics["accuracy"] * n for name, n in counts.items()) / sum(counts.values())
    assert mean == pytest.approx(record.metrics["accuracy"])


def test_evaluation_comes_every_so_many_rounds_and_after_the_last() -> None:
    _, records = _run(federation(torch_task, SHARDS, rounds=5, evaluation={"every": 2}))
    assert [bool(record.metrics) for record in records] == [False, True, False, True, True]


def test_a_tally_over_nobody_has_no_means() -> None:
    assert merged([]).means == {}
    assert merged([Tally({"loss": 3.0}, 2), Tally({"loss": 0.0}, 0), Tally({"loss": 1.0}, 2)]).means == {"loss": 1.0}


# FedProx and FedAvg -------------------------------------------------------------------------------------------------

SLOW: dict[str, Any] = {"train": {"epochs": 4}, "stragglers": {"fraction": 0.67}}
WORK = Work(4, "epochs")


def test_fedprox_without_mu_and_without_stragglers_is_fedavg_to_the_bit() -> None:
    runs = [_run(federation(torch_task, SHARDS, s, rounds=3))[1] for s in (FedAvg(WORK), FedProx(WORK, mu=0.0))]
    digests = [[record.parameters_sha256 for record in records] for records in runs]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3
    other = _run(federation(torch_task, SHARDS, FedProx(WORK, mu=1.0), rounds=3))[1]
    assert other[-1].parameters_sha256 != digests[0][-1]


def test_fedavg_drops_stragglers_and_fedprox_uses_their_work() -> None:
    vector, (dropped,) = _run(federation(torch_task, SHARDS, FedAvg(WORK), **SLOW))
    _, (used,) = _run(federation(torch_task, SHARDS, FedProx(WORK, mu=0.0), **SLOW))
    assert sorted(owner.outcome for owner in dropped.owners) == ["dropped", "dropped", "update"]
    assert sorted(owner.outcome for owner in used.owners) == ["partial", "partial", "update"]
    assert (dropped.n_updates, used.n_updates) == (1, 3)
    (fast,) = [owner.name for owner in dropped.owners if owner.outcome == "update"]
    alone, _ = _run(federation(torch_task, {fast: SHARDS[fast]}, FedAvg(WORK)))
    assert sha256(vector) == sha256(alone)
    steps = {owner.name: owner.n_steps for owner in used.owners}
    for name, one in SHARDS.items():
        whole = 4 * -(-len(one.train) // 4)
        assert (steps[name] == whole) == (name == fast)
        assert 0 < steps[name] <= whole


class Slow(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.02)
        return super().forward(x)


def test_owners_beyond_their_deadline_are_dropped_by_fedavg_and_used_by_fedprox() -> None:
    task = partial(torch_task, partial(Slow, 5, 3))
    limits: dict[str, Any] = {"train": {"epochs": 50}, "deadline_s": 0.2}
    work = Work(50, "epochs")
    start, (dropped,) = _run(federation(task, SHARDS, FedAvg(work), **limits))
    moved, (used,) = _run(federation(task, SHARDS, FedProx(work, mu=0.0), **limits))
    assert {owner.outcome for owner in dropped.owners} == {"dropped"}
    assert {owner.outcome for owner in used.owners} == {"partial"}
    assert sha256(start) == sha256(initial_state(federation(task, SHARDS)).vector)
    assert sha256(moved) != sha256(start)
    assert all(1 <= owner.n_steps < 50 for owner in used.owners)


# Cohorts that misbehave ---------------------------------------------------------------------------------------------


def _bad(name: str, payload: Any) -> Any:
    """A cohort in which one owner's sealed payload is something else."""
    return partial(
        Meddling,
        meddle=lambda answers: [changed(a, payload=payload(a.payload)) if a.owner == name else a for a in answers],
    )


def _with(payload: Any, at: int, value: int) -> Any:
    payload = payload.copy()
    payload[at] = value
    return payload


BAD: dict[str, Any] = {
    "floats": lambda p: p.astype(np.float64),
    "nan": lambda p: np.full(p.shape, np.nan),
    "misshapen": lambda p: p[:-1],
    "oversized": lambda p: np.concatenate([p, p]),
    "beyond its bound": lambda p: _with(p, 0, DELTA_BOUND * 2**28 * int(p[-1]) + 1),
    "no weight": lambda p: _with(p, -1, 0),
    "negative weight": lambda p: -p,
    "too heavy": lambda p: _with(p, -1, WEIGHT_BOUND + 1),
    "nothing": lambda p: None,
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_a_bad_update_is_counted_and_never_averaged(payload: Any) -> None:
    """The model is that of the federation without this owner, to the bit."""
    found, (record,) = _run(federation(torch_task, SHARDS, around=_bad("b", payload)))
    without, _ = _run(federation(torch_task, {name: SHARDS[name] for name in ("a", "c")}))
    assert sha256(found) == sha256(without) == record.parameters_sha256
    assert (record.n_updates, record.n_rejected) == (2, 1)
    assert {owner.name: owner.outcome for owner in record.owners} == {"a": "update", "b": "rejected", "c": "update"}
    assert next(owner.reason for owner in record.owners if owner.name == "b")


def test_an_owner_whose_training_diverges_is_rejected_by_its_own_sealer() -> None:
    hot = {
        **SHARDS,
        "b": Shard(replace(SHARDS["b"].train, features=SHARDS["b"].train.features * 1e30), SHARDS["b"].holdout),
    }
    found, (record,) = _run(federation(torch_task, hot))
    without, _ = _run(federation(torch_task, {name: SHARDS[name] for name in ("a", "c")}))
    assert sha256(found) == sha256(without)
    assert (record.n_updates, record.n_rejected) == (2, 1)


@pytest.mark.parametrize("lie", [{"round": 2}, {"round": 0}, {"owner": "c"}, {"owner": "stranger"}])
def test_an_answer_to_another_question_is_never_averaged(lie: dict[str, Any]) -> None:
    """Owner b answers for another round, or in another's name; the last to speak for c is not heard."""

    def meddle(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        order = sorted(answers, key=lambda answer: "acb".index(answer.owner))
        return [changed(answer, **lie) if answer.owner == "b" else answer for answer in order]

    found, (record,) = _run(federation(torch_task, SHARDS, around=partial(Meddling, meddle=meddle)))
    without, _ = _run(federation(torch_task, {name: SHARDS[name] for name in ("a", "c")}))
    assert sha256(found) == sha256(without)
    assert (record.n_updates, record.n_rejected) == (2, 1)
    assert {owner.name: owner.outcome for owner in record.owners}["b"] in ("rejected", "absent")
    assert record.bytes_up == 2 * (found.size + 1) * 8


@settings(deadline=None, max_examples=12)
@given(order=st.permutations("abc"))
def test_the_order_of_arrival_changes_no_bit_of_the_model(order: list[str]) -> None:
    def shuffled(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        return sorted(answers, key=lambda answer: order.index(answer.owner))

    _, records = _run(federation(torch_task, SHARDS, around=partial(Meddling, meddle=shuffled), rounds=2))
    assert [record.parameters_sha256 for record in records] == _in_order()


@cache
def _in_order() -> list[str]:
    return [record.parameters_sha256 for record in _run(federation(torch_task, SHARDS, rounds=2))[1]]


def test_an_empty_poisson_cohort_leaves_the_model_as_it_is() -> None:
    strategy = FedAvg(Work(1, "epochs"), server_momentum=0.9)
    federated = federation(torch_task, SHARDS, strategy, rounds=12, cohort={"name": "poisson", "rate": 0.2})
    pairs = list(federate(federated))
    before = initial_state(federated)
    n_empty = 0
    for state, record in pairs:
        if not record.cohort:
            n_empty += 1
            assert sha256(state.vector) == sha256(before.vector)
            assert all(np.array_equal(state.strategy[name], before.strategy[name]) for name in before.strategy)
            assert {owner.outcome for owner in record.owners} == {"idle"}
            assert (record.n_updates, record.bytes_up, record.bytes_down) == (0, 0, 0)
        else:
            assert sha256(state.vector) != sha256(before.vector)
        before = state
    assert 3 < n_empty < 12


def _silent(outcome: Any, rounds: set[int]) -> Any:
    def meddle(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        return [Absent(a.owner, a.round, outcome, "KeyError at x.py:3") if a.round in rounds else a for a in answers]

    return partial(Meddling, meddle=meddle)


@pytest.mark.parametrize("outcome", ["failed", "absent"])
def test_three_barren_rounds_end_the_run(outcome: str) -> None:
    rounds = federate(federation(torch_task, SHARDS, around=_silent(outcome, {2, 3, 4}), rounds=9))
    for _ in range(3):
        next(rounds)
    with pytest.raises(RunError, match="KeyError"):
        next(rounds)


def test_two_barren_rounds_and_an_update_do_not_end_the_run() -> None:
    _, records = _run(federation(torch_task, SHARDS, around=_silent("failed", {1, 2, 4, 5}), rounds=6))
    assert [record.n_updates for record in records] == [0, 0, 3, 0, 0, 3]


@pytest.mark.parametrize("outcome", ["refused", "rejected"])
def test_a_run_in_which_every_update_is_refused_is_no_success(outcome: str) -> None:
    with pytest.raises(RunError, match="no owner gave an update"):
        _run(federation(torch_task, SHARDS, around=_silent(outcome, set(range(9))), rounds=5))


def test_owners_that_are_only_slow_do_not_end_the_run() -> None:
    vector, records = _run(federation(torch_task, SHARDS, around=_silent("dropped", set(range(9))), rounds=5))
    assert len(records) == 5
    assert sha256(vector) == records[0].parameters_sha256


def test_an_owner_that_never_answers_is_absent() -> None:
    around = partial(Meddling, meddle=lambda answers: [a for a in answers if a.owner != "c"])
    _, (record,) = _run(federation(torch_task, SHARDS, around=around))
    assert {owner.name: owner.outcome for owner in record.owners} == {"a": "update", "b": "update", "c": "absent"}


def test_a_record_adds_up() -> None:
    federated = federation(torch_task, SHARDS, cohort={"name": "fixed", "size": 2})
    vector, (record,) = _run(federated)
    assert len(record.cohort) == record.n_updates == 2
    assert record.bytes_down == 2 * vector.size * 4
    assert record.bytes_up == 2 * (vector.size + 1) * 8
    assert [owner.name for owner in record.owners] == ["a", "b", "c"]
    assert sum(owner.outcome == "idle" for owner in record.owners) == 1
    phases = {name: value for name, value in record.seconds.items() if name != "total"}
    assert record.seconds["total"] == pytest.approx(sum(phases.values()))
    assert all(value >= 0 for value in phases.values())
    assert record.epsilon is None
