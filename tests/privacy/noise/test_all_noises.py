"""What holds for every noise: its cost, its variances, and a state that can be laid aside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_noise import matrix, replay, squared_sensitivity, squared_sensitivity_charged, stream
from safetensors.numpy import load_file, save_file
from scipy import stats

from fedray.errors import ConfigError, FedrayError, RunError
from fedray.privacy.noise import BandedNoise, Independent, Noise, TreeNoise, most_participations

NOISES: dict[str, tuple[Noise, int, int]] = {
    "independent": (Independent(1.5, 12, 4), 12, 4),
    "independent, every round": (Independent(0.5, 7, 7), 7, 7),
    "one tree": (TreeNoise(2.0, 16, 16, 1), 16, 1),
    "one uneven tree": (TreeNoise(2.0, 13, 13, 1), 13, 1),
    "trees": (TreeNoise(0.7, 12, 4, 3), 12, 3),
    "trees of a round": (TreeNoise(0.7, 5, 1, 5), 5, 5),
    "a last tree of fewer rounds": (TreeNoise(0.7, 14, 6, 3), 14, 3),
    "fewer participations than trees": (TreeNoise(0.7, 14, 4, 2), 14, 2),
    "one band": (BandedNoise(1.5, 8, 1, 8), 8, 8),
    "two bands": (BandedNoise(1.5, 12, 2, 6), 12, 6),
    "five bands": (BandedNoise(0.8, 14, 5, 3), 14, 3),
    "fewer participations than fit": (BandedNoise(0.8, 14, 3, 2), 14, 2),
    "all bands": (BandedNoise(3.0, 9, 9, 1), 9, 1),
}
every_noise = pytest.mark.parametrize(("noise", "n_rounds", "most"), NOISES.values(), ids=NOISES)


@every_noise
def test_an_owner_is_charged_what_its_worst_participation_tells(noise: Noise, n_rounds: int, most: int) -> None:
    """Of all patterns with the separation that is asked for, on the matrix that streaming gives."""
    charged = sum(map(squared_sensitivity_charged, noise.charges()))
    assert charged == pytest.approx(squared_sensitivity(noise, n_rounds, most), rel=1e-9)


@every_noise
def test_prefix_variances_are_those_of_the_streamed_noise(noise: Noise, n_rounds: int, most: int) -> None:
    errors = np.tri(n_rounds) @ matrix(noise, n_rounds)
    np.testing.assert_allclose(noise.prefix_variances(n_rounds), (errors**2).sum(axis=1), rtol=1e-10)
    np.testing.assert_array_equal(noise.prefix_variances(n_rounds - 2), noise.prefix_variances(n_rounds)[:-2])


@every_noise
def test_prefix_variances_are_met_by_drawn_noise(noise: Noise, n_rounds: int, most: int) -> None:
    n_values = 2_000
    draw = np.random.default_rng(11).standard_normal((n_rounds, n_values))
    errors = np.cumsum(stream(noise, draw), axis=0)
    lowest, highest = stats.chi2.ppf([1e-9, 1 - 1e-9], n_values)
    ratios = (errors**2).sum(axis=1) / noise.prefix_variances(n_rounds)
    assert lowest < ratios.min()
    assert ratios.max() < highest


@every_noise
def test_a_run_goes_on_from_a_saved_state_with_the_same_noise(
    noise: Noise, n_rounds: int, most: int, tmp_path: Path
) -> None:
    draws = np.random.default_rng(5).standard_normal((n_rounds, 3))
    whole = stream(noise, draws)
    for stop in range(n_rounds):
        state, draw = noise.init(3), replay(draws)
        for _ in range(stop):
            state, _ = noise.next(state, draw)
        assert all(type(array) is np.ndarray and array.dtype == np.float64 for array in state.values())
        save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "state")
        _, one = noise.next(load_file(tmp_path / "state"), draw)
        assert one.tobytes() == whole[stop].tobytes()


@every_noise
def test_a_round_leaves_the_state_before_it_as_it_was(noise: Noise, n_rounds: int, most: int) -> None:
    draws = np.random.default_rng(5).standard_normal((n_rounds, 3))
    state = noise.init(3)
    for number in range(n_rounds):
        before = copy.deepcopy(dict(state))
        after, first = noise.next(state, replay(draws[number:]))
        first *= 0
        _, second = noise.next(state, replay(draws[number:]))
        assert second.any()
        assert all(state[name].tobytes() == before[name].tobytes() for name in before)
        state = after
    assert stream(noise, draws)[-1].tobytes() == second.tobytes()


@every_noise
def test_no_round_beyond_the_last_has_noise(noise: Noise, n_rounds: int, most: int) -> None:
    with pytest.raises(RunError, match=f"round {n_rounds + 1} "):
        stream(noise, np.ones((n_rounds + 1, 2)))
    for asked in (0, n_rounds + 1):
        with pytest.raises(ConfigError):
            noise.prefix_variances(asked)


BAD: dict[str, Callable[[], Any]] = {
    "no noise": lambda: Independent(0.0, 10, 1),
    "negative noise": lambda: TreeNoise(-1.0, 10, 5, 1),
    "boundless noise": lambda: BandedNoise(math.inf, 10, 5, 1),
    "noise that is no number": lambda: Independent(math.nan, 10, 1),
    "nobody takes part": lambda: Independent(1.0, 10, 0),
    "more participations than rounds": lambda: Independent(1.0, 10, 11),
    "more participations than trees": lambda: TreeNoise(1.0, 11, 5, 4),
    "a tree that outlasts the run": lambda: TreeNoise(1.0, 10, 11, 1),
    "trees without rounds": lambda: TreeNoise(1.0, 10, 0, 1),
    "no band": lambda: BandedNoise(1.0, 10, 0, 1),
    "more bands than rounds": lambda: BandedNoise(1.0, 10, 11, 1),
    "more participations than fit": lambda: BandedNoise(1.0, 11, 5, 4),
}


@pytest.mark.parametrize("build", BAD.values(), ids=BAD)
def test_settings_that_contradict_each_other_are_refused(build: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        build()
    assert isinstance(raised.value, FedrayError)


def test_participations_that_just_fit_are_taken() -> None:
    assert most_participations(11, 5) == 3
    TreeNoise(1.0, 11, 5, 3)
    BandedNoise(1.0, 11, 5, 3)
    assert most_participations(10, 5) == 2
    assert most_participations(10, 50) == 1
