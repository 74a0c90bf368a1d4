"""A comparison with random stopping: a secret number of trials, what they cost, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedray.config import Experiment, replaced
from fedray.errors import ConfigError, RunError
from fedray.privacy.accounting import spent
from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.tuning import RandomStopping
from fedray.report.cost import search_cost
from fedray.tune import compare

DRAWS = {"name": "random_stopping", "mean": 2.0}
NOISE = {"name": "owner", "noise_multiplier": 4.0}
BASE = Experiment.model_validate(
    {
        "name": "drawn",
        "rounds": 1,
        "data": {"name": "digits", "owners": 3, "central_test": 0.2},
        "model": "logistic",
        "strategy": {"name": "fedavg", "weighting": "uniform"},
        "privacy": NOISE,
        "search": {"draws": DRAWS},
    }
)
RATES = {"train.optimizer.lr": [0.1, 0.3, 1.0]}


def test_as_many_trials_run_as_were_drawn_and_all_are_charged(
    tmp_path: Path, ray_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomStopping, "draw", lambda self: 2)
    result = compare(BASE, RATES, tmp_path / "out")
    assert len(result.runs) == 2
    assert {run.experiment["train"]["optimizer"]["lr"] for run in result.runs} <= {0.1, 0.3, 1.0}
    cost = search_cost(result.runs)
    assert cost is not None
    assert cost.was_drawn
    assert not cost.is_plain_sum
    assert cost.selected is not None
    both = spent([Charge(Gaussian(4.0 / 2**0.5))], 1e-5)
    assert cost.composed.epsilon == pytest.approx(both.epsilon, rel=1e-3)
    assert yaml.safe_load((tmp_path / "out" / "compare.yaml").read_text())["search"]["draws"]["mean"] == 2.0


@pytest.mark.parametrize(
    ("changes", "space", "word"),
    [
        ({}, {"privacy.clip": [0.5, 1.0]}, "privacy.clip varied"),
        ({}, {"rounds": [1, 2]}, "rounds varied"),
        ({"train.steps": 1}, {"train.batch_size": [8, 16]}, "train.batch_size varied"),
        ({"cohort": {"name": "fixed", "size": 3}, "data.owners": 5}, {"seed": [0, 1]}, "seed varied"),
        ({"privacy": {**NOISE, "name": "local"}, "protection": "plain"}, {"model.name": ["logistic", "mlp"]}, "model"),
        ({"privacy": "none"}, RATES, "privacy none"),
        ({"privacy": {**NOISE, "name": "example"}}, RATES, "without noise"),
    ],
)
def test_searches_whose_cost_random_stopping_does_not_cover_are_refused(
    changes: dict[str, object], space: dict[str, object], word: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=word):
        compare(replaced(BASE, changes), space, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("search", [{"samples": 3}, {"algorithm": "optuna"}, {"stopping": "asha"}])
def test_searches_that_look_at_trials_are_refused(search: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="without a look"):
        Experiment.model_validate({"search": {"draws": DRAWS, **search}})


def test_a_draw_of_no_trials_ends_the_search(tmp_path: Path, ray_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomStopping, "draw", lambda self: 0)
    with pytest.raises(RunError, match="0 trials"):
        compare(replaced(BASE, {"search.draws.distribution": "poisson"}), RATES, tmp_path / "out")
