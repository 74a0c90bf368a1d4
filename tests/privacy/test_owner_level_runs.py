"""Whole runs under owner-level privacy, in this process: what is charged, opened and told, and how they end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privacy.owner_level_toys import N_VALUES, Pushing, along, experiment, federation, ledger, names
from scipy import stats
from toys import Meddling

import fedray
from fedray import bounding
from fedray.errors import ProtocolError
from fedray.federation import Federation
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian, SampledGaussian
from fedray.privacy.ledger import Ledger, own_ledger
from fedray.privacy.ledger_file import LedgerFile, ledger_path
from fedray.protection.masked.graph import Rules
from fedray.protection.masked.server import MaskedProtection
from fedray.protocols import State
from fedray.rounds import federate, initial_state
from fedray.states import load_state, save_state
from fedray.values import Absent, Assignment, Released, RoundPlan, RoundRecord, Shard, Total, Update, Vector

DELTA = 1e-3
SIX = names(6)
FAINT = {"name": "owner", "noise_multiplier": 1e-4, "delta": 1e-4}
"""Noise that hides nothing, so that what is beneath can be seen."""


def run(asked: Any, folder: Path) -> list[RoundRecord]:
    return list(fedray.run(asked, folder, in_process=True))


def charges_of(folder: Path, owner: str) -> list[tuple[int | None, Charge]]:
    return [(found.round, Charge(found.event, found.count)) for found in ledger(folder, owner).releases()]


def open_a_ledger(owner: str, epsilon: float) -> Ledger:
    opened = Ledger(LedgerFile(ledger_path(owner), "process"), owner)
    opened.set_budget("owner", epsilon, DELTA)
    return opened


def after_parts(z: float, n_parts: int) -> float:
    return spent([Charge(Gaussian(z), n_parts)], DELTA).epsilon


# What is charged


def test_every_part_is_on_the_owners_ledger_and_nothing_else_is(tmp_path: Path) -> None:
    asked = experiment({"name": "owner", "noise_multiplier": 2.0}, cohort={"name": "fixed", "size": 2}, rounds=4)
    whole = federation(asked, tmp_path)
    records = [record for _, record in federate(whole)]
    for owner in SIX:
        rounds = [record.round for record in records if owner in record.cohort]
        assert charges_of(tmp_path, owner) == [(round, Charge(Gaussian(2.0))) for round in rounds]
        (line,) = [one for one in records[-1].owners if one.name == owner]
        assert line.epsilon == pytest.approx(after_parts(2.0, len(rounds)))
    assert records[-1].epsilon == max(line.epsilon for line in records[-1].owners if line.epsilon is not None)


def test_the_charge_is_there_before_training_begins(tmp_path: Path) -> None:
    """A task that fails has spent its part: somebody may have seen something of it."""

    class Failing(Pushing):
        def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
            seen.append(charges_of(tmp_path, assignment.owner))
            raise RuntimeError("training fails")

    seen: list[Any] = []
    whole = federation(experiment({"name": "owner", "noise_multiplier": 2.0}, Failing()), tmp_path)
    with pytest.raises(RuntimeError, match="training fails"):
        next(iter(federate(whole)))
    assert seen == [[(1, Charge(Gaussian(2.0)))]]


@pytest.mark.parametrize(
    ("noise", "cohort"), [("gaussian", {"name": "poisson", "rate": 0.3}), ("tree", {"name": "cyclic", "size": 2})]
)
def test_what_a_run_costs_as_a_whole_is_charged_at_joining_to_everyone(
    noise: str, cohort: dict[str, Any], tmp_path: Path
) -> None:
    asked = experiment({"name": "owner", "noise_multiplier": 2.0, "noise": noise}, cohort=cohort, rounds=5)
    whole = federation(asked, tmp_path)
    before = {owner: charges_of(tmp_path, owner) for owner in SIX}
    plan = bounding.owner_plan(asked, N_VALUES)
    assert before == {owner: [(None, charge) for charge in plan.cost.after(5, 0)] for owner in SIX}
    if noise == "gaussian":
        assert before[SIX[0]] == [(None, Charge(SampledGaussian(0.3, 2.0), 5))]
    records = [record for _, record in federate(whole)]
    assert {owner: charges_of(tmp_path, owner) for owner in SIX} == before
    assert records[-1].epsilon == ledger(tmp_path, SIX[0]).spent("owner", DELTA).epsilon


def test_a_run_that_was_charged_as_a_whole_is_not_charged_again_when_it_goes_on(tmp_path: Path) -> None:
    """And an owner holds to the rule of the noise, whatever round the server begins with."""
    asked = experiment(
        {"name": "owner", "noise_multiplier": 2.0, "noise": "banded"}, cohort={"name": "cyclic", "size": 2}, rounds=6
    )
    rounds = federate(federation(asked, tmp_path / "owners"))
    for _ in range(2):
        state, first = next(rounds)
    save_state(tmp_path / "state", state)
    before = {owner: charges_of(tmp_path / "owners", owner) for owner in SIX}
    next(rounds)

    again = list(federate(federation(asked, tmp_path / "owners"), load_state(tmp_path / "state")))
    assert {owner: charges_of(tmp_path / "owners", owner) for owner in SIX} == before
    lost, *rest = [record for _, record in again]
    assert lost.round == first.round + 1
    assert {one.outcome for one in lost.owners if one.name in lost.cohort} == {"refused"}
    assert all("at least 3 apart" in one.reason for one in lost.owners if one.name in lost.cohort)
    assert [record.n_updates for record in rest] == [2, 2, 2]


# Budgets


def test_an_owner_whose_ledger_is_spent_sits_out_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    open_a_ledger(SIX[0], after_parts(2.0, 2) * 1.001)
    task = Pushing()
    records = run(experiment({"name": "owner", "noise_multiplier": 2.0}, task, rounds=4), tmp_path / "run")
    assert [record.owners[0].outcome for record in records] == ["update", "update", "exhausted", "exhausted"]
    assert "this owner's budget over all runs" in records[2].owners[0].reason
    assert [record.n_updates for record in records] == [6, 6, 5, 5]
    assert [round for owner, round in task.trained if owner == SIX[0]] == [1, 2], "it does not even train"
    assert len(own_ledger(SIX[0]).releases()) == 2  # type: ignore[union-attr]
    assert fedray.records.read_run(tmp_path / "run").status == "complete"


def test_a_budget_holds_over_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    budget = after_parts(2.0, 5) * 1.001
    opened = open_a_ledger(SIX[0], budget)
    asked = experiment({"name": "owner", "noise_multiplier": 2.0})
    outcomes = [record.owners[0].outcome for name in "ab" for record in run(asked, tmp_path / name)]
    assert outcomes == ["update"] * 5 + ["exhausted"]
    assert opened.spent("owner", DELTA).epsilon <= budget
    assert len({release.run for release in opened.releases()}) == 2


@pytest.mark.parametrize("kind", ["owner", "poisson", "distributed"])
def test_a_run_ends_in_good_order_when_too_few_owners_have_a_budget_left(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "ledgers"))
    asked, n_spent = {
        "owner": (experiment({"name": "owner", "noise_multiplier": 2.0}, rounds=9), 6),
        "poisson": (
            experiment({"name": "owner", "noise_multiplier": 2.0}, rounds=9, cohort={"name": "poisson", "rate": 1.0}),
            6,
        ),
        "distributed": (
            experiment({"name": "distributed", "noise_multiplier": 2.0}, rounds=9, protection="masked"),
            1,
        ),
    }[kind]
    for owner in SIX[:n_spent]:
        open_a_ledger(owner, bounding.worst_spent(asked, N_VALUES)(2, 2).epsilon * 1.001)
    records = run(asked, tmp_path / "run")
    n_good = 0 if kind == "poisson" else 2
    assert [record.n_updates for record in records] == [6] * n_good + [0]
    assert {one.outcome for one in records[-1].owners[:n_spent]} == {"exhausted"}
    assert fedray.records.read_run(tmp_path / "run").status == "exhausted"


# What is summed and released


class Listening:
    """A mechanism whose sums and releases a test can see."""

    def __init__(self, mechanism: Any) -> None:
        self._mechanism = mechanism
        self.totals: list[Total | None] = []
        self.releases: list[Released | None] = []

    def init(self) -> State:
        return self._mechanism.init()

    def plan(self, state: State, plan: RoundPlan) -> RoundPlan:
        return self._mechanism.plan(state, plan)

    def release(self, state: State, plan: RoundPlan, total: Total | None) -> tuple[State, Released | None]:
        after, released = self._mechanism.release(state, plan, total)
        self.totals.append(total)
        self.releases.append(released)
        return after, released


def listening(whole: Federation) -> tuple[Federation, Listening]:
    heard = Listening(whole.mechanism)
    return replace(whole, mechanism=heard), heard


@pytest.mark.parametrize("protection", ["plain", "masked"])
def test_however_long_an_update_its_owner_moves_the_model_by_the_clip_over_the_owners(
    protection: str, tmp_path: Path
) -> None:
    """One owner of six pushes a million times as hard as the clip, the others not at all."""

    def push(owner: str, round: int) -> Sequence[float]:
        return [1e6 * (owner == SIX[2]), 0, 0, 0, 0]

    asked = experiment(FAINT, Pushing(push), rounds=1, protection=protection, evaluation={"noise_multiplier": 1.0})
    ((state, _),) = federate(federation(replaced(asked, clip=0.3), tmp_path))
    assert float(np.linalg.norm(state.vector)) == pytest.approx(0.3 / 6, abs=1e-3)


def without_figures(asked: Any) -> Any:
    """Nothing rides beside updates."""
    return asked.model_copy(update={"evaluation": asked.evaluation.model_copy(update={"noise_multiplier": None})})


def replaced(asked: Any, **privacy: Any) -> Any:
    return asked.model_copy(update={"privacy": asked.privacy.model_copy(update=privacy)})


def test_a_heavy_owner_moves_the_model_by_the_bound_of_its_weight(tmp_path: Path) -> None:
    """Weighted by rows up to 50, which every owner of this data has: the heavy one counts like the others."""

    class Heavy(Pushing):
        def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
            update = super().train(vector, assignment, shard, seed)
            return replace(update, weight=10**6 if assignment.owner == SIX[2] else len(shard.train))

    def push(owner: str, round: int) -> Sequence[float]:
        return [9.0 * (owner == SIX[2]), 0, 0, 0, 0]

    asked = experiment(
        {**FAINT, "weight_bound": 20, "clip": 0.3},
        Heavy(push),
        rounds=1,
        strategy={"name": "fedavg", "weighting": "examples"},
        evaluation={"noise_multiplier": 1.0},
    )
    ((state, _),) = federate(federation(asked, tmp_path))
    assert float(np.linalg.norm(state.vector)) == pytest.approx(0.3 / 6, abs=1e-3)


def test_the_model_moves_by_noise_of_the_deviation_that_was_paid_for(tmp_path: Path) -> None:
    """Owners that push nothing."""
    asked = without_figures(experiment({"name": "owner", "noise_multiplier": 2.0, "clip": 0.7}, Resting()))
    models = [np.zeros(LONG)] + [state.vector for state, _ in federate(federation(asked, tmp_path))]
    for step in np.diff(np.array(models), axis=0):
        _assert_variance(step, (0.7 * 2.0 / 6) ** 2)


def test_a_round_that_nobody_is_drawn_for_moves_the_model_all_the_same(tmp_path: Path) -> None:
    asked = experiment({"name": "owner", "noise_multiplier": 2.0}, cohort={"name": "poisson", "rate": 1e-9})
    found = list(federate(federation(asked, tmp_path)))
    assert [record.n_updates for _, record in found] == [0, 0, 0]
    assert len({record.parameters_sha256 for _, record in found}) == 3
    assert all(record.metrics for _, record in found)


def test_two_runs_of_one_seed_draw_other_cohorts_and_other_noise(tmp_path: Path) -> None:
    asked = experiment({"name": "owner", "noise_multiplier": 2.0}, cohort={"name": "poisson", "rate": 0.5}, rounds=30)
    runs = [[record for _, record in federate(federation(asked, tmp_path / name))] for name in "ab"]
    assert [record.cohort for record in runs[0]] != [record.cohort for record in runs[1]]
    assert not {record.parameters_sha256 for record in runs[0]} & {record.parameters_sha256 for record in runs[1]}
    again = experiment({"name": "owner", "noise_multiplier": 2.0, "unsafe_replay_seed": 3}, rounds=4)
    replays = [[record for _, record in federate(federation(again, tmp_path / name))] for name in "cd"]
    assert [one.parameters_sha256 for one in replays[0]] == [one.parameters_sha256 for one in replays[1]]


def test_figures_of_many_rounds_are_right_in_the_mean(tmp_path: Path) -> None:
    """Six deviations of the noise on the mean of six owners over 60 rounds."""
    asked = experiment(
        {"name": "owner", "noise_multiplier": 2.0},
        Pushing(accuracy=0.8),
        rounds=60,
        evaluation={"noise_multiplier": 3.0},
        cohort={"name": "poisson", "rate": 1.0},
    )
    found = [record.metrics["accuracy"] for _, record in federate(federation(asked, tmp_path))]
    assert abs(np.mean(found) - 0.8) < 6 * 3.0 / 6 / math.sqrt(60)
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], 60)
    assert low < ((np.array(found) - 0.8) ** 2).sum() / (3.0 / 6) ** 2 < high


def test_a_record_holds_no_figure_of_an_owners_rows_but_those_that_carry_noise(tmp_path: Path) -> None:
    asked = experiment({"name": "owner", "noise_multiplier": 2.0}, rounds=2)
    for _, record in federate(federation(asked, tmp_path)):
        assert set(record.metrics) == {"accuracy"}
        assert record.metrics["accuracy"] != pytest.approx(0.75)
        assert record.train_metrics == record.central_metrics == {}
        assert [(one.metrics, one.n_holdout, one.n_steps) for one in record.owners] == [({}, 0, 1)] * 6


def test_figures_are_not_taken_where_none_are_to_be_noised(tmp_path: Path) -> None:
    asked = experiment({"name": "owner", "noise_multiplier": 2.0}, rounds=1)
    asked = without_figures(asked)
    ((_, record),) = federate(federation(asked, tmp_path))
    assert record.metrics == record.train_metrics == record.central_metrics == {}


@pytest.mark.parametrize("kind", ["owner", "distributed", "local"])
@pytest.mark.parametrize("part", ["holdout", "train"])
def test_an_owner_that_is_protected_as_a_whole_gives_no_figures_of_its_rows(
    kind: str, part: Any, tmp_path: Path
) -> None:
    """Distributed and local privacy claim to need no trust in the server; one that asks gets nothing."""
    protection = "masked" if kind == "distributed" else "plain"
    whole = federation(experiment({"name": kind, "noise_multiplier": 2.0}, protection=protection), tmp_path)
    with pytest.raises(ProtocolError):
        dict(whole.cohort.evaluate(np.zeros(N_VALUES, np.float32), part, whole.cohort.population.names))


# Noise that owners add


LONG = 2_000
TEN = names(10)
SHARES = {"name": "masked", "dropouts": 0.2, "corrupt": 0.2}


class Resting(Pushing):
    """Pushes nothing; some owners are too late.

    Args:
        late: their names.
    """

    n_parameters = LONG

    def __init__(self, late: Sequence[str] = ()) -> None:
        super().__init__(lambda *_: [0.0] * LONG)
        self._late = late

    def initial(self, seed: int) -> Vector:
        return np.zeros(LONG, np.float32)

    def train(self, vector: Vector, assignment: Assignment, shard: Shard, seed: int) -> Update:
        update = super().train(vector, assignment, shard, seed)
        return replace(update, n_steps=0) if assignment.owner in self._late else update


def distributed(late: Sequence[str] = (), seed: int | None = None, law: str = "discrete_gaussian") -> Any:
    asked = experiment(
        {"name": "distributed", "noise_multiplier": 3.0, "noise": law, "unsafe_replay_seed": seed},
        Resting(late),
        n_owners=10,
        rounds=1,
        protection=SHARES,
    )
    return without_figures(asked)


@pytest.mark.parametrize("law", ["discrete_gaussian", "skellam"])
def test_at_the_tolerated_dropouts_the_noise_that_nobody_knows_is_what_was_accounted_for(
    law: str, tmp_path: Path
) -> None:
    """Ten owners: two drop out, and the noise of two of the other eight is known and taken away. Six shares are left.

    Updates are zeros, which rounding leaves alone, so that the sum is noise and nothing else.
    """
    asked = distributed(TEN[:2], seed=4, law=law)
    whole, heard = listening(federation(asked, tmp_path))
    ((_, record),) = federate(whole)
    assert (record.n_updates, record.sum.min_owners, record.sum.outcome) == (8, 8, "opened")
    (total,) = heard.totals
    assert total is not None
    encoding = bounding.encoding_of(asked, LONG)
    assert bounding.owner_plan(asked, LONG).n_honest == 6
    assert 6 * encoding.noise_variance >= 3.0**2 * (1 - 1e-9)
    _assert_variance(total.weighted_sum, 8 * encoding.noise_variance)
    known = sum(_contribution(asked, owner, heard) for owner in TEN[2:4])
    left = total.weighted_sum - known
    _assert_variance(left, 6 * encoding.noise_variance)
    _assert_variance(left, 3.0**2)


def _contribution(asked: Any, owner: str, heard: Listening) -> np.ndarray:
    """What a corrupt owner tells the server: its own encoded zeros, noise included."""
    encoding = bounding.encoding_of(asked, LONG)
    plan = RoundPlan(1, asked.work, 0.0, False, "uniform")
    encoded = encoding.encode(
        Update(np.zeros(LONG, np.float32), 1, 1, True), Assignment(owner, plan, plan.work, None), asked.seed
    )
    return encoding.decode(encoding.signed(encoded), 1).weighted_sum


def _assert_variance(values: np.ndarray, variance: float) -> None:
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], len(values))
    assert low < (values**2).sum() / variance < high


def test_a_sum_of_fewer_owners_than_were_accounted_for_is_never_opened(tmp_path: Path) -> None:
    whole, heard = listening(federation(distributed(TEN[:3]), tmp_path))
    ((state, record),) = federate(whole)
    assert record.sum.outcome == "abandoned"
    assert heard.totals == heard.releases == [None]
    assert not state.vector.any()


def test_owners_do_not_help_a_server_that_would_open_it(tmp_path: Path) -> None:
    """A server that holds itself to three owners: the survivors refuse to sign a list that is too short."""
    asked = distributed(TEN[:3])
    encoding = bounding.encoding_of(asked, LONG)
    whole, heard = listening(federation(asked, tmp_path))
    careless = MaskedProtection(Rules(3, "honest", 0.2, 0.2), encoding, 1, bytes(16), {})
    ((_, record),) = federate(replace(whole, protection=careless))
    assert (record.sum.outcome, record.sum.min_owners) == ("abandoned", 3)
    assert record.sum.stages["updates"] == 7
    assert record.sum.stages["signed"] == 0
    assert heard.totals == [None]


def test_the_server_adds_no_noise_of_its_own_to_noisy_sums(tmp_path: Path) -> None:
    whole, heard = listening(federation(distributed(), tmp_path))
    ((state, _),) = federate(whole)
    (total,), (released,) = heard.totals, heard.releases
    assert total is not None
    assert released is not None
    np.testing.assert_allclose(released.mean, total.weighted_sum / 10, rtol=1e-5)
    assert set(initial_state(whole).mechanism) == set(state.mechanism) == {"clip"}


def test_under_local_privacy_every_single_vector_has_noise_enough(tmp_path: Path) -> None:
    asked = experiment({"name": "local", "noise_multiplier": 3.0}, Resting(), rounds=1)
    asked = without_figures(asked)
    whole = federation(asked, tmp_path)
    plan = whole.mechanism.plan(whole.mechanism.init(), whole.strategy.plan({}, 1))
    asks = [Assignment(owner, plan, plan.work, None) for owner in SIX]
    encoding = bounding.encoding_of(asked, LONG)
    singles = [
        encoding.decode(encoding.signed(answer.payload), 1).weighted_sum  # type: ignore[union-attr]
        for answer in whole.cohort.train(np.zeros(LONG, np.float32), asks)
    ]
    for single in singles:
        _assert_variance(single, 3.0**2)
    assert np.abs(np.corrcoef(singles) - np.eye(6)).max() < 6 / math.sqrt(LONG)


def test_the_same_update_twice_has_other_noise_and_is_paid_for_twice(tmp_path: Path) -> None:
    asked = experiment({"name": "local", "noise_multiplier": 3.0}, Pushing(along), rounds=1)
    whole = federation(asked, tmp_path)
    plan = whole.mechanism.plan(whole.mechanism.init(), whole.strategy.plan({}, 1))
    ask = Assignment(SIX[0], plan, plan.work, None)
    payloads = [next(iter(whole.cohort.train(np.zeros(N_VALUES, np.float32), [ask]))).payload for _ in range(2)]  # type: ignore[union-attr]
    assert not np.array_equal(*payloads)
    assert [round for round, _ in charges_of(tmp_path, SIX[0])] == [1, 1]


# Who is told who was drawn


def test_owners_of_a_masked_round_know_each_other_and_against_them_no_sampling_counts(tmp_path: Path) -> None:
    """As docs/privacy.md says: each is sent the names of all. Under plain sums nobody is told."""
    for protection, is_told in (("masked", True), ("plain", False)):
        asked = experiment(
            {"name": "owner", "noise_multiplier": 2.0, "unsafe_replay_seed": 1},
            cohort={"name": "poisson", "rate": 0.9},
            protection=protection,
            rounds=1,
        )
        whole, heard = overheard(federation(asked, tmp_path / protection))
        ((_, record),) = federate(whole)
        assert len(record.cohort) >= 3
        named = {name for name in record.cohort for message in heard if name.encode() in message}
        assert named == (set(record.cohort) if is_told else set())


def overheard(whole: Federation) -> tuple[Federation, list[bytes]]:
    """A federation whose server is overheard as it writes to owners."""
    heard: list[bytes] = []

    class Overheard(Meddling):
        def ask(self, round: int, messages: Mapping[str, bytes]) -> Mapping[str, bytes | Absent]:
            heard.extend(messages.values())
            return super().ask(round, messages)

    return replace(whole, cohort=Overheard(whole.cohort, lambda answers: answers)), heard
