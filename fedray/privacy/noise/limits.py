"""What every noise refuses: settings that contradict each other, and rounds beyond the last."""

from __future__ import annotations

import math

from fedray.errors import ConfigError, RunError
from fedray.protocols import State


def most_participations(n_rounds: int, separation: int) -> int:
    """How often an owner fits into ``n_rounds`` with its rounds at least ``separation`` apart."""
    return -(-n_rounds // separation)


def check_noise_multiplier(noise_multiplier: float) -> None:
    """
    Raises:
        ConfigError: it is no deviation of noise.
    """
    if not 0 < noise_multiplier < math.inf:
        raise ConfigError(f"noise multiplier {noise_multiplier}", "a positive number", "calibrate it to the budget")


def check_participations(max_participations: int, most: int) -> None:
    """
    Raises:
        ConfigError: an owner takes part never, or more often than its separation allows.
    """
    if not 1 <= max_participations <= most:
        raise ConfigError(
            f"{max_participations} participations of one owner",
            f"1 to {most}, which is what fits into the rounds",
            "bound participations, or let owners take part again sooner",
        )


def check_within(name: str, value: int, n_rounds: int) -> None:
    """
    Raises:
        ConfigError: ``value`` is no number of rounds within the run.
    """
    if not 1 <= value <= n_rounds:
        raise ConfigError(f"{name} {value}", f"1 to {n_rounds}, the rounds of the run", f"lower {name}, or add rounds")


def rounds_before(state: State, n_rounds: int) -> int:
    """Rounds that have had their noise.

    Raises:
        RunError: these are all.
    """
    passed = int(state["round"][0])
    if passed >= n_rounds:
        raise RunError(
            f"round {passed + 1} asks for noise",
            f"at most {n_rounds} rounds, as planned",
            "plan the run for more rounds",
        )
    return passed
