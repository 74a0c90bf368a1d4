"""Owner-level audits: of a Gaussian mechanism written out here, whose epsilon is known, and through real rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from scipy import sparse

import fedray
from fedray.auditing import audit_models, audit_owners
from fedray.auditing.owner_level import run_models, with_canary_owners
from fedray.errors import ConfigError
from fedray.privacy.owner_level import OwnerLevelMechanism

N, DELTA, NOISE, ROUNDS = 20_000, 1e-5, 4.0, 4


def _exact(noise: float, n_rounds: int, delta: float) -> float:
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), n_rounds))
    return float(accountant.get_epsilon(delta))


def _models(coins: np.ndarray, noise: float, n_rounds: int, directions: np.ndarray | None = None) -> list[np.ndarray]:
    """Sums of unit contributions with Gaussian noise, all owners in every round; models move by them."""
    rng = np.random.default_rng(17)
    signal = coins.astype(float) if directions is None else directions.T @ coins
    steps = [signal + noise * rng.normal(size=len(signal)) for _ in range(n_rounds)]
    return [np.zeros(len(signal), np.float32), *np.cumsum(steps, axis=0).astype(np.float32)]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "consistent"), (2.0, "consistent"), (0.5, "violated"), (0.0, "violated")]
)
def test_the_verdict_on_a_gaussian_mechanism_is_right(factor: float, verdict: str) -> None:
    coins = np.random.default_rng(2).random(N) < 0.5
    claim = _exact(NOISE, ROUNDS, DELTA)
    found = audit_models(_models(coins, factor * NOISE, ROUNDS), sparse.eye_array(N), coins, claim, DELTA)
    assert found.verdict == verdict
    if factor:
        truth = _exact(factor * NOISE, ROUNDS, DELTA)
        assert 0.3 * truth < found.empirical_epsilon < truth
        assert found.estimated_epsilon == pytest.approx(truth, rel=0.15)


def test_dense_directions_score_as_their_inner_products() -> None:
    rng = np.random.default_rng(4)
    coins = rng.random(300) < 0.5
    directions = np.linalg.qr(rng.normal(size=(400, 300)))[0].T
    turned = _models(coins, 0.05, 3, directions)
    found = audit_models(turned, directions, coins, 2.0, DELTA)
    assert found.verdict == "violated"
    assert found.n_correct == found.n_guesses
    assert audit_models(turned, -directions, coins, 2.0, DELTA).n_correct == 0


def test_a_start_away_from_zero_is_no_signal() -> None:
    coins = np.random.default_rng(6).random(500) < 0.5
    models = _models(coins, 1.0, 2)
    moved = [model + 64.0 * np.arange(500, dtype=np.float32) for model in models]
    found = [audit_models(one, sparse.eye_array(500), coins, 5.0, DELTA) for one in (models, moved)]
    assert found[0].n_correct == found[1].n_correct


@pytest.mark.parametrize("protection", ["plain", "masked"])
def test_canary_owners_pass_through_real_rounds(protection: str, tmp_path: Path) -> None:
    """Without privacy the models give every coin away."""
    coins = np.array([True, False, True, True, False])
    experiment = fedray.Experiment(rounds=2, protection=protection, strategy={"name": "fedavg", "weighting": "uniform"})
    audited = with_canary_owners(experiment, coins, 1.0, tmp_path / "data")
    epsilon, models = run_models(audited, tmp_path / "state")
    assert epsilon is None
    assert len(models) == 3
    assert models[-1] == pytest.approx(2 * coins / 5, abs=1e-4)


OWNERS = {"name": "synthetic", "owners": 200}
UNIFORM = {"name": "fedavg", "weighting": "uniform"}


def _experiment(**settings: Any) -> fedray.Experiment:
    privacy = {"name": "owner", "noise_multiplier": 3.0, "delta": 1e-5, "unsafe_replay_seed": 1}
    given = {"rounds": 2, "data": OWNERS, "protection": "plain", "strategy": UNIFORM, "privacy": privacy, **settings}
    return fedray.Experiment(**given)


def test_fedrays_own_mechanism_is_consistent_with_its_account() -> None:
    found = audit_owners(_experiment(), 200)
    assert found.claimed_epsilon == pytest.approx(_exact(3.0, 2, DELTA), rel=2e-3)
    assert found.verdict == "consistent"
    assert found.reach > found.claimed_epsilon
    assert 0.5 < found.estimated_epsilon / found.claimed_epsilon < 1.5


def test_a_server_that_forgets_the_noise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(self: OwnerLevelMechanism, state: Any, total: Any) -> Any:
        keys = [key for key in state if key.startswith("noise.")]
        return {key: state[key] for key in keys}, total.weighted_sum / self.weight_bound

    monkeypatch.setattr(OwnerLevelMechanism, "_noised", bare)
    found = audit_owners(_experiment(), 200)
    assert found.verdict == "violated"
    assert found.n_correct == found.n_guesses


def test_cohorts_larger_than_the_canaries_are_refused() -> None:
    with pytest.raises(ConfigError, match="cohorts of 50 owners and 20 canaries"):
        audit_owners(_experiment(cohort={"name": "fixed", "size": 50}), 20)


@pytest.mark.parametrize("privacy", ["none", {"name": "example", "epsilon": 1.0}])
def test_privacy_that_is_not_of_owners_is_refused(privacy: object) -> None:
    with pytest.raises(ConfigError, match="owner-level privacy"):
        audit_owners(fedray.Experiment(privacy=privacy), 10)
