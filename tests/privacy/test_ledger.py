"""An owner's ledger: what it adds up, what it refuses, and that it agrees with a plain model of itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedray.errors import BudgetExhausted, ConfigError, ProtocolError
from fedray.privacy import ledger as ledger_module
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Event, Gaussian, SampledGaussian, Tree, Unit
from fedray.privacy.ledger import Ledger, own_ledger
from fedray.privacy.ledger_entries import Budget, Release
from fedray.privacy.ledger_file import LedgerFile, ledger_path

DELTA = 1e-5
STEP = SampledGaussian(0.25, 1.0)


def release(
    event: Event = STEP, count: int = 10, *, run: str = "a", round: int | None = 1, unit: Unit = "example"
) -> Release:
    return Release(run, "trial", round, "train", unit, event, count)


def opened(path: Path, owner: str = "ann") -> Ledger:
    return Ledger(LedgerFile(path), owner)


def gaussian_epsilon(multipliers: Sequence[float], delta: float) -> float:
    """Of Gaussian mechanisms, exactly (Balle and Wang 2018, Theorem 8; multipliers compose as 1/z^2)."""
    mu = math.sqrt(sum(z**-2 for z in multipliers))

    def excess(epsilon: float) -> float:
        upper = norm.cdf(mu / 2 - epsilon / mu)
        return float(upper - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    return float(brentq(excess, 0, 200))


# What it adds up ------------------------------------------------------------------------------------------------------


def test_charges_of_all_runs_add_up_and_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = opened(path)
    for run, z, count in (("a", 4.0, 3), ("a", 5.0, 1), ("b", 4.0, 2)):
        ledger.charge(release(Gaussian(z), count, run=run))
    for reader in (ledger, opened(path)):
        exact = gaussian_epsilon([4.0] * 5 + [5.0], DELTA)
        assert exact <= reader.spent("example", DELTA).epsilon <= 1.01 * exact
        alone = gaussian_epsilon([4.0] * 3 + [5.0], DELTA)
        assert alone <= reader.spent("example", DELTA, "a").epsilon <= 1.01 * alone
        assert reader.charges("example", "b") == (Charge(Gaussian(4.0), 2),)
    assert opened(path, "bob").spent("example", DELTA).epsilon == 0.0


def test_a_charge_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    seq = opened(tmp_path / "ledger").charge(release(round=7))
    (line,) = (tmp_path / "ledger").read_text().splitlines()
    found = json.loads(line)
    assert (seq, found["seq"], found["owner"], found["previous"]) == (1, 1, "ann", "0" * 64)
    assert found["entry"] == {
        "kind": "charge",
        "run": "a",
        "experiment": "trial",
        "round": 7,
        "purpose": "train",
        "unit": "example",
        "event": {"name": "sampled_gaussian", "sample_rate": 0.25, "noise_multiplier": 1.0},
        "count": 10,
    }


def test_what_protects_owners_protects_their_examples_by_half_the_noise(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.charge(release(Gaussian(8.0), 2, unit="owner"))
    exact, doubled = gaussian_epsilon([8.0] * 2, DELTA), gaussian_epsilon([4.0] * 2, DELTA)
    assert exact <= ledger.spent("owner", DELTA).epsilon <= 1.01 * exact
    assert doubled <= ledger.spent("example", DELTA).epsilon <= 1.01 * doubled
    ledger.charge(release(SampledGaussian(0.1, 8.0), 3, unit="owner"))
    assert ledger.charges("example") == (Charge(Gaussian(4.0), 5),)


def test_what_protects_examples_does_not_protect_their_owner(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    seq = ledger.charge(release())
    assert ledger.charges("owner") is None
    assert ledger.spent("owner", DELTA).epsilon == ledger.spent("owner", DELTA).epsilon_rdp == math.inf
    ledger.settle(seq, 0)
    assert ledger.spent("owner", DELTA).epsilon == 0.0


def test_settling_lowers_a_charge_and_never_raises_it(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    first, second = ledger.charge(release(count=10)), ledger.charge(release(count=10, round=2))
    for count, expected in ((99, 10), (10, 10), (4, 4), (7, 4), (0, 0)):
        ledger.settle(first, count)
        assert [found.count for found in ledger.releases()] == [expected, 10]
    assert len((tmp_path / "ledger").read_text().splitlines()) == 4
    assert opened(tmp_path / "ledger").charges("example") == (Charge(STEP, 10),)
    for seq, count in ((second + 1, 0), (99, 0), (0, 0), (second, -1)):
        with pytest.raises(ProtocolError, match="settled for"):
            ledger.settle(seq, count)
    with pytest.raises(ProtocolError):
        opened(tmp_path / "ledger", "bob").settle(second, 0)


# What it refuses ------------------------------------------------------------------------------------------------------


def test_what_would_pass_the_budget_over_all_runs_is_refused_and_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = opened(path)
    ledger.set_budget("example", spent([Charge(STEP, 25)], DELTA).epsilon, DELTA)
    ledger.charge(release(run="a"))
    ledger.charge(release(run="b"))
    before = path.read_bytes()
    with pytest.raises(BudgetExhausted, match="round 3 would take epsilon to"):
        ledger.charge(release(run="c", round=3))
    assert path.read_bytes() == before
    ledger.charge(release(count=5, run="c"))
    with pytest.raises(BudgetExhausted, match="over all runs"):
        opened(path).charge(release(count=1, run="d"))
    opened(path, "bob").charge(release(count=99))


def test_settling_makes_room(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.set_budget("example", spent([Charge(STEP, 10)], DELTA).epsilon, DELTA)
    seq = ledger.charge(release(count=10))
    with pytest.raises(BudgetExhausted):
        ledger.charge(release(count=6))
    ledger.settle(seq, 4)
    ledger.charge(release(count=6))


def test_a_run_keeps_to_its_own_plan_too(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    plan = Budget("example", spent([Charge(STEP, 10)], DELTA).epsilon, DELTA)
    ledger.charge(release(run="a", count=50))
    ledger.charge(release(run="b", count=10), plan)
    with pytest.raises(BudgetExhausted, match="planned for this run"):
        ledger.charge(release(run="b", count=1), plan)
    ledger.charge(release(run="b", count=1))


def test_the_newest_budget_of_each_unit_holds(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.set_budget("example", 0.5, DELTA)
    ledger.set_budget("owner", 3.0, 1e-6)
    with pytest.raises(BudgetExhausted):
        ledger.charge(release(Gaussian(2.0), 1, unit="owner"))
    ledger.set_budget("example", 100.0, 1e-4)
    again = opened(tmp_path / "ledger")
    assert again.budgets == {"example": Budget("example", 100.0, 1e-4), "owner": Budget("owner", 3.0, 1e-6)}
    again.charge(release(Gaussian(2.0), 1, unit="owner"))
    with pytest.raises(BudgetExhausted, match="for each owner"):
        again.charge(release(Gaussian(2.0), 1, unit="owner"))


def test_under_a_budget_for_owners_what_protects_examples_only_is_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.set_budget("owner", 1e6, DELTA)
    with pytest.raises(BudgetExhausted, match="protects examples"):
        ledger.charge(release(count=1))
    assert ledger.releases() == ()


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, DELTA), (-1, DELTA), (math.nan, DELTA), (math.inf, DELTA), (1, 0), (1, 1), (1, math.nan)]
)
def test_a_budget_out_of_range_is_refused(epsilon: float, delta: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a budget of epsilon"):
        opened(tmp_path / "ledger").set_budget("example", epsilon, delta)
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize("z", [math.nan, math.inf, 0.0, -1.0])
def test_an_entry_that_could_not_be_read_again_is_never_written(z: float, tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.charge(release())
    before = (tmp_path / "ledger").read_bytes()
    with pytest.raises(Exception, match=r"noise_multiplier|Expected"):
        ledger.charge(release(Gaussian(z)))
    assert (tmp_path / "ledger").read_bytes() == before


def test_without_a_budget_no_epsilon_is_computed_and_with_one_few_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[Charge, ...]] = set()

    def counting(charges: Sequence[Charge], delta: float) -> object:
        asked.add(tuple(charges))
        return spent(charges, delta)

    monkeypatch.setattr(ledger_module, "spent", counting)
    ledger = Ledger(LedgerFile(tmp_path / "ledger", "process"), "ann")
    event = Gaussian(40.0)
    for round in range(1, 1001):
        ledger.charge(release(event, 1, round=round))
    assert asked == set()
    ledger.set_budget("example", spent([Charge(event, 2000)], DELTA).epsilon, DELTA)
    for round in range(1001, 2001):
        ledger.charge(release(event, 1, round=round))
    assert len(asked) < 60
    with pytest.raises(BudgetExhausted):
        ledger.charge(release(event, 1, round=2001))


# A run's reservation and participations -------------------------------------------------------------------------------


def reservation(*counts: int, run: str = "a", z: float = 5.0) -> list[Release]:
    return [release(Tree(z, 8 * (i + 1)), count, run=run, round=None) for i, count in enumerate(counts)]


def test_a_run_is_charged_once_however_often_it_reserves(tmp_path: Path) -> None:
    for _ in range(3):
        ledger = opened(tmp_path / "ledger")
        ledger.reserve(reservation(2, 1))
        ledger.reserve(reservation(2, 1))
    assert ledger.releases() == tuple(reservation(2, 1))
    ledger.reserve(reservation(2, 1, run="b"))
    assert len(ledger.releases()) == 4


def test_a_crash_between_the_charges_of_a_reservation_is_made_good(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    opened(path).reserve(reservation(2, 1, 1))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        ledger = Ledger(LedgerFile(path, "process"), "ann")
        ledger.reserve(reservation(2, 1, 1))
        assert ledger.releases() == tuple(reservation(2, 1, 1))


def test_a_run_reserves_one_thing_only_and_none_after_it_is_settled(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    ledger.reserve(reservation(2, 2))
    for other in (reservation(2), reservation(2, 1), reservation(2, 2, z=9.0), reservation(3, 2)):
        with pytest.raises(ProtocolError, match="another reservation"):
            opened(tmp_path / "ledger").reserve(other)
    ledger.settle_reservation("a", 1)
    ledger.settle_reservation("a", 5)
    assert [found.count for found in ledger.releases()] == [1, 1]
    with pytest.raises(ProtocolError, match="another reservation"):
        opened(tmp_path / "ledger").reserve(reservation(2, 2))
    for run, count in (("b", 0), ("a", -1)):
        with pytest.raises(ProtocolError, match="settled for"):
            ledger.settle_reservation(run, count)


def test_a_reservation_is_afforded_as_a_whole_or_not_made(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger")
    charges = [Charge(found.event, found.count) for found in reservation(1, 1)]
    ledger.set_budget("example", spent(charges[:1], DELTA).epsilon, DELTA)
    with pytest.raises(BudgetExhausted, match="run 'a' would take"):
        ledger.reserve(reservation(1, 1))
    assert ledger.releases() == ()
    ledger.reserve(reservation(1))


def test_participations_keep_their_distance_and_their_number_also_after_a_restart(tmp_path: Path) -> None:
    def part(round: int, run: str = "a") -> None:
        opened(tmp_path / "ledger").participate(run, round, separation=4, most=3)

    part(1)
    for round in (1, 2, 4):
        with pytest.raises(ProtocolError, match=f"round {round} after rounds"):
            part(round)
    part(9)
    for round in (6, 9, 12):
        with pytest.raises(ProtocolError):
            part(round)
    part(5)
    with pytest.raises(ProtocolError, match="at most 3 rounds"):
        part(100)
    part(2, run="b")


# Where it lies --------------------------------------------------------------------------------------------------------


def test_an_owner_has_a_ledger_of_its_own_once_it_has_opened_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDRAY_LEDGERS", str(tmp_path / "mine"))
    assert own_ledger("St. Mary/2") is None
    path = ledger_path("St. Mary/2")
    assert path == tmp_path / "mine" / "St%2E%20Mary%2F2.jsonl"
    opened(path, "St. Mary/2").set_budget("example", 2.0, DELTA)
    found = own_ledger("St. Mary/2")
    assert found is not None
    assert found.budgets == {"example": Budget("example", 2.0, DELTA)}
    assert own_ledger("..") is None
    assert ledger_path("..").parent == tmp_path / "mine"


def test_without_the_variable_ledgers_lie_with_the_users_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDRAY_LEDGERS", raising=False)
    assert ledger_path("ann").parts[-3:] == ("fedray", "ledgers", "ann.jsonl")


# Against a plain model ------------------------------------------------------------------------------------------------

OWNERS, RUNS, UNITS = ("ann", "bob"), ("a", "b"), ("example", "owner")
EVENTS = (Gaussian(2.0), Gaussian(4.0), STEP)


@dataclass
class Model:
    """Every charge by its number: whose, of which run, for which unit, of what, how often."""

    charges: dict[int, list] = field(default_factory=dict)
    n_entries: int = 0

    def expected(self, owner: str, unit: str, run: str | None) -> dict[Event, int] | None:
        found: Counter[Event] = Counter()
        for of, of_run, charged, event, count in self.charges.values():
            if of != owner or run not in (None, of_run) or not count:
                continue
            if charged == "example" and unit == "owner":
                return None
            found[Gaussian(event.noise_multiplier / 2) if charged != unit else event] += count
        return dict(found)


ACTS = st.one_of(
    st.tuples(
        st.just("charge"),
        st.sampled_from(OWNERS),
        st.sampled_from(RUNS),
        st.sampled_from(UNITS),
        st.sampled_from(EVENTS),
        st.integers(0, 9),
    ),
    st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 9)),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("other process")),
)


@settings(deadline=None, max_examples=200)
@given(acts=st.lists(ACTS, max_size=30))
def test_any_sequence_of_acts_agrees_with_a_plain_model(tmp_path_factory: pytest.TempPathFactory, acts: list) -> None:
    path = tmp_path_factory.mktemp("model") / "ledger"
    model, files = Model(), [LedgerFile(path, "process"), LedgerFile(path, "process")]
    for act in acts:
        match act:
            case ("charge", owner, run, unit, event, count):
                seq = Ledger(files[0], owner).charge(release(event, count, run=run, unit=unit))
                model.n_entries += 1
                assert seq == model.n_entries
                model.charges[seq] = [owner, run, unit, event, count]
            case ("settle", number, count) if model.charges:
                seq = sorted(model.charges)[number % len(model.charges)]
                Ledger(files[0], model.charges[seq][0]).settle(seq, count)
                model.n_entries += count < model.charges[seq][-1]
                model.charges[seq][-1] = min(count, model.charges[seq][-1])
            case ("reopen",):
                files[0] = LedgerFile(path, "process")
            case ("other process",):
                files.reverse()
    for file in (*files, LedgerFile(path)):
        for owner in OWNERS:
            for unit in UNITS:
                for run in (None, *RUNS):
                    found = Ledger(file, owner).charges(unit, run)
                    plain = None if found is None else {charge.event: charge.count for charge in found}
                    assert plain == model.expected(owner, unit, run)
