"""The server's rounds, held against plain torch and against cohorts that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import MASKED, MODELS, PLAIN, Meddling, changed, federation, make_module, shard, torch_task

from fedray.errors import RunError
from fedray.evaluating import merged
from fedray.federation import Federation, ServerState
from fedray.protection.fixed_point import WEIGHT_BOUND
from fedray.rounds import federate, initial_state
from fedray.selection import cohort_of_round
from fedray.strategies import FedAvg, FedProx
from fedray.values import (
    Absent,
    Examples,
    Released,
    RoundPlan,
    RoundRecord,
    Sealed,
    Shard,
    Spent,
    Tally,
    Total,
    Vector,
    Work,
    sha256,
)
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
    assert merged({}).means == {}
    tallies = {"a": Tally({"loss": 3.0}, 2), "b": Tally({"loss": 0.0}, 0), "c": Tally({"loss": 1.0}, 2)}
    assert merged(tallies).means == {"loss": 1.0}


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
    alone, _ = _run(federation(torch_task, {fast: SHARDS[fast]}, FedAvg(WORK), weight_bound=32))
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


UNITS = 8 * 2**24
"""The clip in steps of ``toys.PLAIN``; a weight fits in one limb."""


def _with(payload: Any, at: int, value: int) -> Any:
    payload = payload.copy()
    payload[at] = value
    return payload


BAD: dict[str, Any] = {
    "floats": lambda p: p.astype(np.float64),
    "nan": lambda p: np.full(p.shape, np.nan),
    "misshapen": lambda p: p[:-1],
    "oversized": lambda p: np.concatenate([p, p]),
    "another ring": lambda p: p.astype(np.uint64),
    "beyond its bound": lambda p: _with(p, 0, UNITS + 1),
    "below its bound": lambda p: _with(p, 0, 2**32 - UNITS - 1),
    "no weight": lambda p: _with(p, -1, 0),
    "negative weight": lambda p: 0 - p,
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


@pytest.mark.parametrize(
    "lie", [{"round": 2}, {"round": 0}, {"owner": "c"}, {"owner": "stranger"}, {"terms": b""}, {"terms": b"x" * 32}]
)
def test_an_answer_to_another_question_is_never_averaged(lie: dict[str, Any]) -> None:
    """Owner b answers for another round, model or plan, or in another's name; the last to speak for c is not heard."""

    def meddle(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        order = sorted(answers, key=lambda answer: "acb".index(answer.owner))
        return [changed(answer, **lie) if answer.owner == "b" else answer for answer in order]

    found, (record,) = _run(federation(torch_task, SHARDS, around=partial(Meddling, meddle=meddle)))
    without, _ = _run(federation(torch_task, {name: SHARDS[name] for name in ("a", "c")}))
    assert sha256(found) == sha256(without)
    assert (record.n_updates, record.n_rejected) == (2, 1)
    assert {owner.name: owner.outcome for owner in record.owners}["b"] in ("rejected", "absent")
    assert record.bytes_up == 2 * (found.size + 1) * 4


@settings(deadline=None, max_examples=12)
@given(order=st.permutations("abc"), section=st.sampled_from([PLAIN, MASKED]))
def test_the_order_of_arrival_changes_no_bit_of_the_model(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], section: Any
) -> None:
    def shuffled(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        return sorted(answers, key=lambda answer: order.index(answer.owner))

    protected = {"section": section, "folder": tmp_path_factory.mktemp("owners")}
    around = partial(Meddling, meddle=shuffled)
    _, records = _run(federation(torch_task, SHARDS, around=around, rounds=2, **protected))
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
    with pytest.raises(RunError, match=r"no sum of updates: .*a: KeyError at x\.py:3"):
        _run(federation(torch_task, SHARDS, around=_silent(outcome, set(range(9))), rounds=5))


def test_owners_that_are_only_slow_do_not_end_the_run() -> None:
    vector, records = _run(federation(torch_task, SHARDS, around=_silent("dropped", set(range(9))), rounds=5))
    assert len(records) == 5
    assert sha256(vector) == records[0].parameters_sha256


# Budgets that are spent ---------------------------------------------------------------------------------------------


def _spent(from_round: int, owners: str) -> Any:
    """A cohort in which these owners' budgets end before a round."""

    def meddle(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        return [
            Absent(a.owner, a.round, "exhausted", "epsilon") if a.owner in owners and a.round >= from_round else a
            for a in answers
        ]

    return partial(Meddling, meddle=meddle)


@pytest.mark.parametrize("from_round", [1, 3])
def test_a_run_ends_early_once_nobody_has_a_budget_left(from_round: int) -> None:
    """The model that was trained until then is the result, and nothing went wrong."""
    pairs = list(federate(federation(torch_task, SHARDS, around=_spent(from_round, "abc"), rounds=9)))
    states, records = zip(*pairs, strict=True)
    assert [state.is_exhausted for state in states] == [False] * (from_round - 1) + [True]
    assert [record.n_updates for record in records] == [3] * (from_round - 1) + [0]
    assert {owner.outcome for owner in records[-1].owners} == {"exhausted"}
    assert {owner.reason for owner in records[-1].owners} == {"epsilon"}
    assert states[-1].spending.exhausted == set("abc")
    whole, _ = _run(federation(torch_task, SHARDS, rounds=max(1, from_round - 1)))
    kept = whole if from_round > 1 else initial_state(federation(torch_task, SHARDS)).vector
    assert sha256(states[-1].vector) == sha256(kept)


def test_a_run_that_has_ended_so_does_not_begin_again() -> None:
    made = federation(torch_task, SHARDS, around=_spent(1, "abc"), rounds=9)
    ((state, _),) = federate(made)
    assert list(federate(made, state)) == []


def test_owners_without_a_budget_leave_the_run_to_the_others() -> None:
    pairs = list(federate(federation(torch_task, SHARDS, around=_spent(2, "ac"), rounds=6)))
    assert [record.n_updates for _, record in pairs] == [3, 1, 1, 1, 1, 1]
    assert {state.is_exhausted for state, _ in pairs} == {False}
    assert {state.barren for state, _ in pairs} == {0}


def test_a_round_that_failed_for_other_reasons_does_not_end_a_run_as_exhausted() -> None:
    """All but one have spent their budgets; the one that is left does not answer, and is waited for."""

    def meddle(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        return [Absent(a.owner, a.round, "exhausted", "epsilon") for a in answers if a.owner != "c"]

    around = partial(Meddling, meddle=meddle)
    pairs = list(federate(federation(torch_task, SHARDS, around=around, rounds=5)))
    assert len(pairs) == 5
    assert {state.is_exhausted for state, _ in pairs} == {False}


def test_an_owner_that_never_answers_is_absent() -> None:
    around = partial(Meddling, meddle=lambda answers: [a for a in answers if a.owner != "c"])
    _, (record,) = _run(federation(torch_task, SHARDS, around=around))
    assert {owner.name: owner.outcome for owner in record.owners} == {"a": "update", "b": "update", "c": "absent"}


def test_a_record_adds_up() -> None:
    federated = federation(torch_task, SHARDS, cohort={"name": "fixed", "size": 2})
    vector, (record,) = _run(federated)
    assert len(record.cohort) == record.n_updates == 2
    assert record.bytes_down == 2 * vector.size * 4
    assert record.bytes_up == 2 * (vector.size + 1) * 4
    assert [owner.name for owner in record.owners] == ["a", "b", "c"]
    assert sum(owner.outcome == "idle" for owner in record.owners) == 1
    phases = {name: value for name, value in record.seconds.items() if name != "total"}
    assert record.seconds["total"] == pytest.approx(sum(phases.values()))
    assert set(phases) == {"prepare", "train", "combine", "open", "step", "evaluate"}
    assert all(value >= 0 for value in phases.values())
    assert (record.sum.protection, record.sum.outcome, record.sum.min_owners) == ("plain", "opened", 1)
    assert dict(record.sum.stages) == {"asked": 2, "updates": 2}
    assert (record.epsilon, record.epsilon_rdp, record.accountant) == (None, None, None)


# The server's half of owner-level privacy -----------------------------------------------------------------------------


class Noting:
    """A mechanism that clips at the round's number, gives ten times the mean, and something where there is none."""

    def __init__(self, n_values: int) -> None:
        self.n_values = n_values
        self.totals: list[Total | None] = []

    def init(self) -> Any:
        return {"round": np.zeros(1)}

    def plan(self, state: Any, plan: RoundPlan) -> RoundPlan:
        return replace(plan, clip=1.0 + float(state["round"][0]))

    def release(self, state: Any, plan: RoundPlan, total: Total | None) -> Any:
        assert plan.clip == 1.0 + state["round"][0]
        self.totals.append(total)
        mean = np.ones(self.n_values) if total is None else 10 * total.mean
        return {"round": state["round"] + 1}, Released(mean, {"accuracy": 0.125})


def test_owners_are_told_the_clip_and_what_the_mechanism_releases_is_stepped() -> None:
    seen: list[Any] = []

    class Reading(Meddling):
        def train(self, vector: Vector, assignments: Sequence[Any], patience_s: float | None = None) -> Any:
            seen.extend((one.plan.round, one.plan.clip) for one in assignments)
            return super().train(vector, assignments)

    plain, _ = _run(federation(FULL, SHARDS))
    start = initial_state(federation(FULL, SHARDS)).vector
    around = partial(Reading, meddle=lambda answers: answers)
    made = federation(FULL, SHARDS, mechanism=Noting(plain.size), around=around, rounds=2)
    pairs = list(federate(made))
    assert seen == [(1, 1.0)] * 3 + [(2, 2.0)] * 3
    np.testing.assert_allclose(pairs[0][0].vector - start, 10 * (plain - start), rtol=1e-3, atol=1e-5)
    assert [state.mechanism["round"].tolist() for state, _ in pairs] == [[1.0], [2.0]]


def test_what_a_mechanism_releases_of_no_sum_is_stepped_too() -> None:
    """Otherwise a model that stands still would tell that nobody was drawn."""
    plain = initial_state(federation(torch_task, SHARDS)).vector
    mechanism = Noting(plain.size)
    silent = partial(Meddling, meddle=lambda answers: [])
    ((state, record),) = federate(federation(torch_task, SHARDS, mechanism=mechanism, around=silent))
    assert mechanism.totals == [None]
    np.testing.assert_allclose(state.vector, plain + 1, rtol=1e-6)
    assert record.n_updates == 0


def test_where_owners_are_not_asked_for_their_figures_those_of_the_release_are_recorded() -> None:
    class Silent(Meddling):
        def evaluate(self, vector: Vector, part: Any) -> Any:
            raise AssertionError("these figures are not noised")

    around = partial(Silent, meddle=lambda answers: answers)
    made = federation(torch_task, SHARDS, around=around, rounds=4, evaluation={"every": 3})
    made = replace(made, mechanism=Noting(made.task.initial(0).size), evaluates_owners=False)
    _, records = _run(made)
    assert [dict(record.metrics) for record in records] == [{}, {}, {"accuracy": 0.125}, {"accuracy": 0.125}]
    assert all(owner.metrics == {} and owner.n_holdout == 0 for record in records for owner in record.owners)
    assert records[-1].evaluation == {"accuracy": 0.125}


def test_a_round_is_judged_by_the_servers_own_rows_where_owners_gave_nothing() -> None:
    made = federation(torch_task, SHARDS, rounds=1)
    _, (record,) = _run(replace(made, evaluates_owners=False, central_test=SHARDS["a"].holdout))
    assert record.metrics == {}
    assert record.evaluation == record.central_metrics != {}
    _, (both,) = _run(replace(made, central_test=SHARDS["a"].holdout))
    assert both.evaluation == both.metrics != both.central_metrics


def test_cohorts_are_drawn_from_a_seed_of_their_own() -> None:
    """A secret one, where being drawn is not to be known."""
    made = federation(torch_task, MANY, rounds=8, cohort={"name": "fixed", "size": 2})
    cohorts = [[r.cohort for r in _run(replace(made, cohort_seed=seed))[1]] for seed in (0, 0, 2**127 + 5)]
    assert cohorts[0] == cohorts[1] != cohorts[2]
    assert cohorts[0] == [cohort_of_round(made.experiment.cohort, list(MANY), 0, round) for round in range(1, 9)]


def test_what_owners_have_spent_at_most_is_recorded_after_every_round() -> None:
    """The record's figure is that of whoever has spent most, with the name of its accountant."""

    def worst(name: str, n_rounds: int, n_parts: int) -> Spent:
        return Spent(n_parts + (0.5 if name == "b" else 0.0), "RDP" if name == "b" else "PLD", 10.0 * n_rounds, 1e-5)

    made = federation(torch_task, SHARDS, rounds=2, around=partial(Meddling, meddle=lambda answers: answers[:2]))
    _, records = _run(replace(made, worst_spent=worst))
    assert [(r.epsilon, r.epsilon_rdp, r.accountant) for r in records] == [(1.5, 10.0, "RDP"), (2.5, 20.0, "RDP")]
    assert [[(o.epsilon, o.epsilon_rdp) for o in r.owners] for r in records] == [
        [(1.0, 10.0), (1.5, 10.0), (1.0, 10.0)],
        [(2.0, 20.0), (2.5, 20.0), (2.0, 20.0)],
    ]


# Protected sums -----------------------------------------------------------------------------------------------------

MANY = {**SHARDS, "d": shard(9, 2, seed=4), "e": shard(15, 6, seed=5)}


@pytest.fixture
def masked(tmp_path: Path) -> dict[str, Any]:
    """Settings of a federation whose owners mask their updates; the integers are those of ``toys.PLAIN``."""
    return {"section": MASKED, "folder": tmp_path}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cohort": {"name": "fixed", "size": 3}},
        {"train": {"epochs": 3}, "stragglers": {"fraction": 0.4}},
    ],
    ids=["all", "fixed", "stragglers"],
)
def test_masks_change_no_bit_of_any_round(settings: dict[str, Any], masked: dict[str, Any]) -> None:
    strategy = FedProx(Work(3, "epochs"), mu=0.1)
    plain, hidden = (
        _run(federation(torch_task, MANY, strategy, rounds=4, **settings, **protection))[1]
        for protection in ({}, masked)
    )
    assert [r.parameters_sha256 for r in plain] == [r.parameters_sha256 for r in hidden]
    assert [r.metrics for r in plain] == [r.metrics for r in hidden]
    assert [(r.sum.protection, r.sum.outcome) for r in hidden] == [("masked", "opened")] * 4
    assert len({r.parameters_sha256 for r in plain}) == 4


def test_a_record_says_how_the_sum_was_protected_and_counts_its_bytes(masked: dict[str, Any]) -> None:
    sent: dict[int, list[int]] = {}

    class Counting(Meddling):
        def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
            answers = super().ask(round, messages)
            down, up = sent.setdefault(round, [0, 0])
            sent[round] = [
                down + sum(map(len, messages.values())),
                up + sum(len(one) for one in answers.values() if isinstance(one, bytes)),
            ]
            return answers

    around = partial(Counting, meddle=lambda answers: answers)
    vector, records = _run(federation(torch_task, MANY, rounds=2, around=around, **masked))
    for record in records:
        assert record.sum.stages["asked"] == record.sum.stages["updates"] == 5
        assert record.sum.min_owners == 3
        assert record.sum.threshold == 3
        down, up = sent[record.round]
        assert (record.sum.bytes_down, record.sum.bytes_up) == (down, up)
        assert record.bytes_down == 5 * vector.size * 4 + down
        assert record.bytes_up == 5 * (vector.size + 1) * 4 + up


@pytest.mark.parametrize(
    "payload",
    [lambda p: p.astype(np.float64), lambda p: p[:-1], lambda p: np.concatenate([p, p]), lambda p: None],
    ids=["floats", "misshapen", "oversized", "nothing"],
)
def test_a_bad_update_under_masks_is_counted_and_never_averaged(payload: Any, masked: dict[str, Any]) -> None:
    found, (record,) = _run(federation(torch_task, MANY, around=_bad("b", payload), **masked))
    without, _ = _run(federation(torch_task, {name: MANY[name] for name in "acde"}))
    assert sha256(found) == sha256(without) == record.parameters_sha256
    assert (record.n_updates, record.n_rejected, record.sum.outcome) == (4, 1, "opened")
    assert {owner.name for owner in record.owners if owner.outcome != "update"} == {"b"}


def test_updates_of_another_model_than_the_others_are_refused(masked: dict[str, Any]) -> None:
    """Someone between server and owner gives owner b another model in round 2."""

    class Inconsistent(Meddling):
        def train(self, vector: Vector, assignments: Sequence[Any], patience_s: float | None = None) -> Any:
            for one in assignments:
                other = one.owner == "b" and one.plan.round == 2
                yield from super().train(vector + 1 if other else vector, [one])

    around = partial(Inconsistent, meddle=lambda answers: answers)
    _, records = _run(federation(torch_task, MANY, rounds=3, around=around, **masked))
    assert [(r.n_updates, r.n_rejected, r.sum.outcome) for r in records] == [
        (5, 0, "opened"),
        (4, 1, "opened"),
        (5, 0, "opened"),
    ]
    assert next(owner for owner in records[1].owners if owner.name == "b").outcome == "rejected"
    left_out = partial(Meddling, meddle=lambda answers: [a for a in answers if (a.owner, a.round) != ("b", 2)])
    plain = _run(federation(torch_task, MANY, rounds=3, around=left_out))[1]
    assert [r.parameters_sha256 for r in records] == [r.parameters_sha256 for r in plain]


def test_an_owner_that_is_lost_while_it_trains_leaves_the_others_sum(masked: dict[str, Any]) -> None:
    around = partial(Meddling, meddle=lambda answers: [a for a in answers if (a.owner, a.round) != ("d", 2)])
    _, records = _run(federation(torch_task, MANY, rounds=3, around=around, **masked))
    plain = _run(federation(torch_task, MANY, rounds=3, around=around))[1]
    assert [r.parameters_sha256 for r in records] == [r.parameters_sha256 for r in plain]
    assert [r.n_updates for r in records] == [5, 4, 5]
    assert [{o.name: o.outcome for o in r.owners}["d"] for r in records] == ["update", "absent", "update"]


class Deaf(Meddling):
    """A cohort in which some owners do not answer messages of some rounds, though they train.

    Args:
        deaf: the first round and the owners.
        after: stages of the protocol that they still answer.
    """

    def __init__(self, cohort: Any, deaf: dict[int, str], after: int = 0) -> None:
        super().__init__(cohort, lambda answers: answers)
        self._deaf = deaf
        self._after = after
        self._asked: dict[int, int] = {}
        self.trained: dict[int, list[str]] = {}

    def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
        self._asked[round] = self._asked.get(round, 0) + 1
        deaf = self._deaf.get(round, "") if self._asked[round] > self._after else ""
        answers = dict(super().ask(round, {name: one for name, one in messages.items() if name not in deaf}))
        return answers | {n: Absent(n, round, "absent", "its actor died") for n in messages if n in deaf}

    def train(self, vector: Vector, assignments: Sequence[Any], patience_s: float | None = None) -> Any:
        for one in assignments:
            self.trained.setdefault(one.plan.round, []).append(one.owner)
        return super().train(vector, assignments)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_owner_that_does_not_get_through_the_protocol_is_not_asked_to_train(
    after: int, masked: dict[str, Any]
) -> None:
    """At none of the stages before training; the model is that of the others, and the next round has it back."""
    opened: list[Deaf] = []

    def around(cohort: Any) -> Deaf:
        opened.append(Deaf(cohort, {2: "bd"}, after))
        return opened[-1]

    vector, records = _run(federation(torch_task, MANY, rounds=3, around=around, **masked))
    assert opened[0].trained == {1: list("abcde"), 2: list("ace"), 3: list("abcde")}
    lost = {owner.name: owner for owner in records[1].owners if owner.outcome != "update"}
    assert {name: owner.outcome for name, owner in lost.items()} == {"b": "absent", "d": "absent"}
    assert all("its actor died" in owner.reason for owner in lost.values())
    assert records[1].cohort == tuple("abcde")
    assert records[1].bytes_down == 3 * vector.size * 4 + records[1].sum.bytes_down
    assert [record.n_updates for record in records] == [5, 3, 5]
    left_out = partial(Meddling, meddle=lambda answers: [a for a in answers if a.round != 2 or a.owner in "ace"])
    plain = _run(federation(torch_task, MANY, rounds=3, around=left_out))[1]
    assert [r.parameters_sha256 for r in records] == [r.parameters_sha256 for r in plain]


def test_a_sum_of_too_few_is_not_opened_and_the_run_goes_on(masked: dict[str, Any]) -> None:
    """Two updates under ``min_owners: 3``; the strategy is not stepped, and those owners are told from the others."""
    around = partial(Meddling, meddle=lambda answers: [a for a in answers if a.round != 2 or a.owner in "ac"])
    strategy = FedAvg(Work(1, "epochs"), server_momentum=0.9)
    pairs = list(federate(federation(torch_task, MANY, strategy, rounds=3, around=around, **masked)))
    states, records = zip(*pairs, strict=True)
    assert [r.n_updates for r in records] == [5, 0, 5]
    assert [r.sum.outcome for r in records] == ["opened", "abandoned", "opened"]
    assert "2 owners left of 5" in records[1].sum.reason
    assert {o.name: o.outcome for o in records[1].owners} == dict.fromkeys("bde", "absent") | dict.fromkeys(
        "ac", "unopened"
    )
    assert records[1].parameters_sha256 == records[0].parameters_sha256 != records[2].parameters_sha256
    assert all(np.array_equal(states[1].strategy[name], states[0].strategy[name]) for name in states[0].strategy)
    assert [state.barren for state in states] == [0, 1, 0]


def test_three_rounds_whose_sum_is_not_opened_end_the_run_with_the_reason(masked: dict[str, Any]) -> None:
    around = partial(Meddling, meddle=lambda answers: [a for a in answers if a.owner in "ac"])
    rounds = federate(federation(torch_task, MANY, rounds=9, around=around, **masked))
    for _ in range(2):
        next(rounds)
    with pytest.raises(RunError, match="no sum of updates: 2 owners left of 5"):
        next(rounds)


@pytest.mark.parametrize(("gone", "n_rounds"), [("de", 4), ("cde", 2)])
def test_a_masked_run_ends_once_too_few_have_a_budget_left_to_make_up_a_sum(
    gone: str, n_rounds: int, masked: dict[str, Any]
) -> None:
    """``min_owners: 3`` of five."""
    pairs = list(federate(federation(torch_task, MANY, around=_spent(2, gone), rounds=4, **masked)))
    assert len(pairs) == n_rounds
    assert pairs[-1][0].is_exhausted == (n_rounds < 4)
    assert [record.n_updates for _, record in pairs] == ([5, 3, 3, 3] if n_rounds == 4 else [5, 0])


def test_nobody_trains_in_a_round_that_cannot_be_prepared(masked: dict[str, Any]) -> None:
    opened: list[Deaf] = []

    def around(cohort: Any) -> Deaf:
        opened.append(Deaf(cohort, {2: "bcd"}))
        return opened[-1]

    _, records = _run(federation(torch_task, MANY, rounds=3, around=around, **masked))
    assert opened[0].trained == {1: list("abcde"), 3: list("abcde")}
    assert [(r.n_updates, r.sum.outcome) for r in records] == [(5, "opened"), (0, "abandoned"), (5, "opened")]
    assert records[1].bytes_down == records[1].sum.bytes_down
    assert records[1].cohort == tuple("abcde")
    found = {owner.name: (owner.outcome, owner.reason) for owner in records[1].owners}
    assert found == dict.fromkeys("bcd", ("absent", "its actor died")) | dict.fromkeys("ae", ("idle", ""))


def test_cohorts_that_are_too_small_to_be_hidden_are_not_opened_and_do_not_end_the_run(masked: dict[str, Any]) -> None:
    cohort = {"name": "poisson", "rate": 0.3}
    pairs = list(federate(federation(torch_task, MANY, rounds=16, cohort=cohort, **masked)))
    sizes = [len(record.cohort) for _, record in pairs]
    assert [record.n_updates for _, record in pairs] == [size if size >= 3 else 0 for size in sizes]
    assert {record.sum.outcome for _, record in pairs if len(record.cohort) >= 3} == {"opened"}
    assert "opened" not in {record.sum.outcome for _, record in pairs if len(record.cohort) < 3}
    in_a_row = "".join("x" if size < 3 else "." for size in sizes)
    assert "xxx" in in_a_row, "three such rounds in a row, or this tests nothing"
    assert {state.barren for state, _ in pairs} == {0}


class Watched:
    """A protection that notes what it is asked for, and by whom."""

    def __init__(self, protection: Any) -> None:
        self._protection = protection
        self.prepared: list[tuple[int, tuple[str, ...]]] = []
        self.in_main_thread: list[bool] = []

    def combiner(self, round: int, owners: Sequence[str], ask: Any) -> Any:
        self.prepared.append((round, tuple(owners)))
        self.in_main_thread.append(threading.current_thread() is threading.main_thread())
        return self._protection.combiner(round, owners, ask)


@pytest.mark.parametrize("section", [PLAIN, MASKED], ids=["plain", "masked"])
def test_each_round_is_prepared_once_while_the_one_before_it_trains(section: Any, tmp_path: Path) -> None:
    prepared_at: dict[int, int] = {}

    def meddle(answers: list[Sealed | Absent]) -> list[Sealed | Absent]:
        """Where the next round is not prepared during training, this waits in vain."""
        (round,) = {answer.round for answer in answers}
        deadline = time.monotonic() + 30
        while round < 4 and len(watched.prepared) <= round and time.monotonic() < deadline:
            time.sleep(0.005)
        prepared_at[round] = len(watched.prepared)
        return answers

    made = federation(
        torch_task, MANY, rounds=4, around=partial(Meddling, meddle=meddle), section=section, folder=tmp_path
    )
    watched = Watched(made.protection)
    _run(replace(made, protection=watched))
    assert watched.prepared == [(round, tuple("abcde")) for round in (1, 2, 3, 4)]
    assert watched.in_main_thread == [True, False, False, False]
    assert prepared_at == {1: 2, 2: 3, 3: 4, 4: 4}


def test_who_is_too_slow_for_a_round_is_not_asked_for_keys_either(masked: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"train": {"epochs": 4}, "stragglers": {"fraction": 0.4}}
    made = federation(torch_task, MANY, FedAvg(WORK), rounds=3, **settings, **masked)
    watched = Watched(made.protection)
    _, records = _run(replace(made, protection=watched))
    for (round, owners), record in zip(watched.prepared, records, strict=True):
        assert round == record.round
        assert {owner.name for owner in record.owners if owner.outcome == "update"} == set(owners)
        assert len(owners) == record.n_updates == 3
        assert sum(owner.outcome == "dropped" for owner in record.owners) == 2


def test_what_goes_wrong_in_a_preparation_ends_the_run_where_it_is_needed() -> None:
    class Broken(Watched):
        def combiner(self, round: int, owners: Sequence[str], ask: Any) -> Any:
            if round == 2:
                raise KeyError("no such key")
            return super().combiner(round, owners, ask)

    made = federation(torch_task, SHARDS, rounds=3)
    rounds = federate(replace(made, protection=Broken(made.protection)))
    assert next(rounds)[1].n_updates == 3
    with pytest.raises(KeyError, match="no such key"):
        next(rounds)


def test_owners_are_told_what_their_weights_are_scaled_by_and_what_was_prepared() -> None:
    """All that the assignments of ``selection`` lack."""
    seen: list[Any] = []

    class Noting(Meddling):
        def train(self, vector: Vector, assignments: Sequence[Any], patience_s: float | None = None) -> Any:
            seen.extend(assignments)
            return super().train(vector, assignments)

    class Briefing(Watched):
        def combiner(self, round: int, owners: Sequence[str], ask: Any) -> Any:
            combiner = super().combiner(round, owners, ask)
            combiner.briefing = lambda owner: f"{owner} in {round}".encode()
            return combiner

    made = federation(torch_task, SHARDS, rounds=2, around=partial(Noting, meddle=lambda answers: answers))
    _run(replace(made, protection=Briefing(made.protection)))
    assert [(one.owner, one.weight_bound, one.briefing) for one in seen] == [
        (name, 32, f"{name} in {round}".encode()) for round in (1, 2) for name in "abc"
    ]


class Fickle(Watched):
    """A protection that takes an owner's update out again when the sum is opened, as key holders make it."""

    def combiner(self, round: int, owners: Sequence[str], ask: Any) -> Any:
        inner = super().combiner(round, owners, ask)
        add, decode, sent = inner.add, inner.open, []

        def opened() -> Any:
            for sealed in sent:
                if (sealed.owner, round) != ("b", 2):
                    add(sealed)
            inner.lost = {"b": "lost before the sum was opened"} if round == 2 else {}
            return decode()

        inner.add, inner.open = sent.append, opened
        return inner


def test_an_update_that_was_taken_out_of_the_sum_is_not_recorded_as_one() -> None:
    made = federation(torch_task, MANY, rounds=3)
    _, records = _run(replace(made, protection=Fickle(made.protection)))
    for record in records:
        assert sum(owner.outcome == "update" for owner in record.owners) == record.n_updates
    b = next(owner for owner in records[1].owners if owner.name == "b")
    assert records[1].n_updates == 4
    assert b.outcome != "update"
    assert b.reason == "lost before the sum was opened"
