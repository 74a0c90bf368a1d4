"""Noise in prefix sums, at equal privacy: independent, of binary trees, and banded.

Cohorts take turns, so that an owner comes back after ``owners / cohort`` rounds. Each noise is calibrated to the same
budget of owners. Shown is the mean over all prefix sums of the squared error of one coordinate, in units of the squared
clipping norm: by formula, and of noise that is drawn.

    .venv/bin/python scripts/studies/prefix_sums.py
    .venv/bin/python scripts/studies/prefix_sums.py --coordinates 200
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedray.privacy.accounting import calibrate, spent
from fedray.privacy.events import Charge
from fedray.privacy.noise import BandedNoise, Independent, Noise, TreeNoise, most_participations

DELTA = 1e-5
EPSILONS = (2.0, 8.0)
MOST_BANDS = 100
"""As many past rounds a server may remember."""


@dataclass(frozen=True)
class Setting:
    n_owners: int
    cohort: int
    n_rounds: int

    @property
    def separation(self) -> int:
        return min(self.n_owners // self.cohort, self.n_rounds)

    @property
    def participations(self) -> int:
        return most_participations(self.n_rounds, self.separation)


SETTINGS = (Setting(1_000, 100, 100), Setting(1_000, 100, 500), Setting(10_000, 100, 500), Setting(50_000, 100, 500))


def noises(setting: Setting) -> Iterator[tuple[str, Callable[[float], Noise]]]:
    """All that the separation allows, for a noise multiplier: trees and bands of powers of two, and the most."""
    run = {"n_rounds": setting.n_rounds, "max_participations": setting.participations}
    yield "independent", partial(Independent, **run)
    longest = 2 ** (setting.separation.bit_length() - 1)
    for size in sorted({longest, setting.separation}):
        yield f"tree of {size}", partial(TreeNoise, restart_every=size, **run)
    most = min(setting.separation, MOST_BANDS)
    for bands in sorted({2**power for power in range(1, most.bit_length())} | {most}):
        yield f"{bands} bands", partial(BandedNoise, bands=bands, **run)


def measured(noise: Noise, n_rounds: int, n_coordinates: int, random: np.random.Generator) -> float:
    """Mean square over coordinates and prefix sums of noise that is drawn."""
    state, total, squares = noise.init(n_coordinates), np.zeros(n_coordinates), 0.0
    for _ in range(n_rounds):
        state, one = noise.next(state, random.standard_normal)
        total += one
        squares += float(total @ total)
    return squares / n_rounds / n_coordinates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, default=400)
    asked = parser.parse_args()
    fits = [_table(setting, epsilon, asked.coordinates) for setting in SETTINGS for epsilon in EPSILONS]
    sys.exit(not all(fits))


def _table(setting: Setting, epsilon: float, n_coordinates: int) -> bool:
    """Print a table; whether what was drawn fits the formula within six standard errors, and the budget is kept."""
    print(
        f"\n{setting.n_owners} owners, cohorts of {setting.cohort}, {setting.n_rounds} rounds; participations: "
        f"{setting.participations}, {setting.separation} rounds apart; epsilon {epsilon:g}, delta {DELTA:g}"
    )
    print("noise            multiplier  epsilon  error by formula    measured  to independent", flush=True)
    random, reference, fits = np.random.default_rng(0), 0.0, []
    for name, make in noises(setting):
        multiplier = calibrate(partial(_charges, make), epsilon, DELTA)
        noise = make(multiplier)
        cost = spent(noise.charges(), DELTA).epsilon
        formula = float(noise.prefix_variances(setting.n_rounds).mean())
        found = measured(noise, setting.n_rounds, n_coordinates, random)
        reference = reference or formula
        print(
            f"{name:15s}  {multiplier:10.3f}  {cost:7.3f}  {formula:16.1f}  {found:10.1f}  {formula / reference:14.3f}",
            flush=True,
        )
        fits.append(abs(found / formula - 1) < 6 * (2 / n_coordinates) ** 0.5 and cost <= epsilon)
    return all(fits)


def _charges(make: Callable[[float], Noise], multiplier: float) -> tuple[Charge, ...]:
    return make(multiplier).charges()


if __name__ == "__main__":
    main()
