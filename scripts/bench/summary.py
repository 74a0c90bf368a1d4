"""From every round's time to medians and ratios. Takes no measurement itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from contest import Measured, Turn

FEDRAY, BARE = "fedray", "bare"
"""What names of fedray's own loops and of floors without vectorisation begin with."""


def summarised(repeats: Sequence[Mapping[str, Measured]]) -> dict[str, Any]:
    """Figures of a case from measurements that were started anew.

    Steady rounds are those that fedray neither evaluates nor trains while it evaluates the one before.
    """
    found = {name: [repeat[name] for repeat in repeats] for name in repeats[0]}
    evaluated = _evaluated(found)
    evaluated |= {place + 1 for place in evaluated}
    loops = {name: _loop(measured, evaluated) for name, measured in found.items()}
    return {
        "loops": loops,
        "fedray": {
            name: _against(loops, name) | _spent(found[name], evaluated) for name in loops if name.startswith(FEDRAY)
        },
        "all": {name: [[turn.seconds for turn in one.turns] for one in measured] for name, measured in found.items()},
    }


def _evaluated(found: Mapping[str, Sequence[Measured]]) -> set[int]:
    """Places of the rounds in which fedray evaluated."""
    return {
        place for measured in found.values() for one in measured for place, turn in enumerate(one.turns) if turn.metrics
    }


def _turns(measured: Iterable[Measured], places: set[int], *, inside: bool) -> list[Turn]:
    """Turns whose place is among these, or is not."""
    return [turn for one in measured for place, turn in enumerate(one.turns) if (place in places) == inside]


def _loop(measured: Sequence[Measured], evaluated: set[int]) -> dict[str, Any]:
    steady = [turn.seconds for turn in _turns(measured, evaluated, inside=False)]
    judged = _turns(measured, evaluated, inside=True)
    n_evaluations = sum(bool(turn.metrics) for turn in judged)
    more = sum(turn.seconds for turn in judged) - len(judged) * median(steady)
    heaviest = max(measured, key=lambda one: one.weight.memory["PSS"])
    busy = [one.weight.utilisation for one in measured if one.weight.utilisation is not None]
    cards = [one.card_mib for one in measured if one.card_mib is not None]
    return {
        "rounds": len(steady),
        "seconds a round, median": median(steady),
        "least and most": [min(steady), max(steady)],
        "an evaluation adds, mean s": more / n_evaluations if n_evaluations else None,
        "first round, s": median(one.first.seconds for one in measured),
        "start-up, s": median(one.start_up_s for one in measured),
        "owners at once": sorted({turn.at_once for one in measured for turn in one.turns}),
        "largest PSS and RSS, MiB": heaviest.weight.memory,
        "PSS by process, MiB": heaviest.weight.processes,
        "card, MiB": max(cards, default=None),
        "card busy": median(busy) if busy else None,
        "model apart after the first round": max(one.apart for one in measured),
    }


def _against(loops: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, float]:
    """fedray's median over those of floors."""
    seconds = {floor: one["seconds a round, median"] for floor, one in loops.items()}
    return {
        f"over the best of {which}": seconds[name] / min(value for floor, value in seconds.items() if is_meant(floor))
        for which, is_meant in {
            "bare loops": lambda floor: floor.startswith(BARE),
            "all floors": lambda floor: not floor.startswith(FEDRAY),
        }.items()
    }


def _spent(measured: Sequence[Measured], evaluated: set[int]) -> dict[str, Any]:
    """What steady rounds were spent on, evaluation apart, and what the last evaluation found."""
    steady, judged = (_turns(measured, evaluated, inside=inside) for inside in (False, True))
    return {
        "phases, median s": _medians(turn.phases for turn in steady),
        "work of all processes, median s": _medians(turn.work for turn in steady),
        "work where evaluated, median s": _medians(turn.work for turn in judged if turn.metrics),
        "last metrics": next((dict(turn.metrics) for turn in reversed(judged) if turn.metrics), {}),
    }


def _medians(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found = list(found)
    names = dict.fromkeys(name for one in found for name in one)
    return {name: median(one.get(name, 0.0) for one in found) for name in names}


def table(name: str, case: Mapping[str, Any]) -> str:
    """A case's figures for the terminal."""
    lines = [f"\n{name}: {case['what']}", _ROW.format(*_HEADS)]
    for loop, figures in case["loops"].items():
        memory = figures["largest PSS and RSS, MiB"]
        lines.append(
            _ROW.format(
                loop,
                *map(_seconds, (figures["seconds a round, median"], *figures["least and most"])),
                *map(
                    _seconds, (figures["an evaluation adds, mean s"], figures["first round, s"], figures["start-up, s"])
                ),
                f"{memory['PSS']:.0f}",
                f"{memory['RSS']:.0f}",
                "/".join(map(str, figures["owners at once"])),
            )
        )
    for loop, figures in case["fedray"].items():
        ratios = ", ".join(f"{value:.2f} {which}" for which, value in figures.items() if which.startswith("over"))
        spent = ", ".join(f"{what} {value:.3f}" for what, value in figures["work of all processes, median s"].items())
        lines += [f"{loop}: {ratios}", f"  work a round, s: {spent}"]
    return "\n".join(lines)


_ROW = "{:28s}" + 6 * "{:>11s}" + 3 * "{:>9s}"
_HEADS = ("", "s a round", "least", "most", "evaluation", "first", "start-up", "PSS MiB", "RSS MiB", "at once")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
