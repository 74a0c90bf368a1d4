"""Example-level audits of fedray's own training: below the claim as it is, above it with a bug planted.

Settings and bugs are those of ``scripts/studies/audit.py``. Noise, batches and coins are replayed here. By the binomial
tail of a Gaussian mechanism's counts, fresh ones would call the first setting violated with probability 2e-7 at 2,000
canaries and 7e-7 at 5,000, and would miss half the noise with probability 3e-3 at 20,000.
"""

from __future__ import annotations

import numpy as np
import pytest
from toys import study

import fedray
from fedray.auditing import audit_examples
from fedray.auditing.example_level import Layout
from fedray.config import replaced
from fedray.errors import ConfigError

STUDY = study("audit")
ALL_ROWS, SAMPLED = "z 4, 2 rounds of 2 steps, all rows", "z 1, 2 rounds of 4 steps, q 0.1"


@pytest.mark.parametrize("setting", STUDY.SETTINGS)
def test_the_bound_stays_below_the_claim(setting: str) -> None:
    found = STUDY.audited(setting, "as it is", n_canaries=5_000, replay_seed=1)
    assert found.verdict == "consistent"
    assert 0 < found.empirical_epsilon < 0.8 * found.claimed_epsilon
    assert found.reach > found.claimed_epsilon


@pytest.mark.parametrize(
    ("setting", "bug", "n_canaries"),
    [
        (ALL_ROWS, "half the noise", 20_000),
        ("epsilon 3, 5 rounds of an epoch, all rows", "half the noise", 20_000),
        (ALL_ROWS, "no noise", 5_000),
        (ALL_ROWS, "no clipping", 5_000),
        (SAMPLED, "no noise", 5_000),
        (SAMPLED, "no clipping", 5_000),
        (SAMPLED, "no sampling", 5_000),
    ],
)
def test_a_planted_bug_is_found(setting: str, bug: str, n_canaries: int) -> None:
    found = STUDY.audited(setting, bug, n_canaries, replay_seed=1)
    assert found.verdict == "violated"
    assert found.claimed_epsilon < found.empirical_epsilon <= found.reach


def test_the_claim_is_the_accounts_and_not_a_function_of_the_bug() -> None:
    claims = {STUDY.audited(ALL_ROWS, bug, 100, replay_seed=1).claimed_epsilon for bug in STUDY.BUGS}
    assert len(claims) == 1
    assert claims.pop() == pytest.approx(1.993, abs=1e-3)  # mu = sqrt(4) / 4 = 1/2 at delta 1e-5


@pytest.mark.parametrize("setting", [ALL_ROWS, "z 2, clip 0.1, one step, all rows"])
def test_the_gaussian_estimate_is_near_the_claim_where_every_row_is_in_every_batch(setting: str) -> None:
    found = STUDY.audited(setting, "as it is", n_canaries=20_000, replay_seed=1)
    assert found.estimated_epsilon == pytest.approx(found.claimed_epsilon, rel=0.1)


def test_fresh_coins_and_noise_give_other_counts_and_the_same_verdict() -> None:
    found = [STUDY.audited(ALL_ROWS, "as it is", n_canaries=2_000) for _ in range(2)]
    assert {one.verdict for one in found} == {"consistent"}
    assert found[0].estimated_epsilon != found[1].estimated_epsilon


def test_optimizer_strategy_cohort_and_protection_of_the_experiment_change_nothing() -> None:
    base = STUDY.experiment(STUDY.SETTINGS[ALL_ROWS], replay_seed=1)
    others = {
        "train.optimizer": {"name": "adam", "lr": 0.5},
        "strategy": {"name": "fedprox", "mu": 3.0},
        "cohort": {"name": "fixed", "size": 4},
        "protection": "ckks",
        "data": {"name": "synthetic"},
    }
    assert audit_examples(replaced(base, others), 200) == audit_examples(base, 200)


def test_canaries_are_dealt_evenly_and_leave_room_for_ordinary_rows() -> None:
    assert Layout.of(100, 500) == Layout(1, 100, 500)
    assert Layout.of(1_000, 500) == Layout(3, 334, 500)
    assert Layout.of(1_000, 5_000) == Layout(2, 500, 5_000)
    for n_canaries, n_rows in ((1, 2), (477, 500), (20_000, 64)):
        layout = Layout.of(n_canaries, n_rows)
        assert layout.n_canaries >= n_canaries
        assert layout.per_owner <= n_rows


def test_no_privacy_is_refused() -> None:
    with pytest.raises(ConfigError, match="privacy 'none'"):
        audit_examples(fedray.Experiment())


def test_coins_do_not_reach_the_claim_or_the_number_of_guesses() -> None:
    found = [STUDY.audited(SAMPLED, "as it is", 1_000, replay_seed=seed) for seed in (1, 2)]
    assert found[0].n_correct != found[1].n_correct
    assert np.ptp([one.n_guesses for one in found]) == 0
    assert np.ptp([one.claimed_epsilon for one in found]) == 0
