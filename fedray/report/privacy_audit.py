"""What a run's records show of the promises of its privacy, for each kind.

Epsilon is computed again from what the records say that owners were charged, and the rules that it rests on are
checked round by round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from fedray.privacy.accounting import spent
from fedray.privacy.tuning import decoded
from fedray.records import RunRecords
from fedray.report.claims import Claim, held
from fedray.report.kinds import (
    PROTECTED,
    evaluation_noise,
    has_secret_cohorts,
    is_correlated,
    kind_of,
    section_of,
    unit_of,
)
from fedray.report.numbers import epsilon
from fedray.report.variant import accountant_of, largest
from fedray.values import RoundRecord

_AGAINST = {
    "example": "everyone outside the owner, the server included",
    "owner": "whoever sees the models; not the server, which adds the noise and is trusted",
    "distributed": "the server with up to {corrupt:.0%} of a round's owners, and whoever sees the models",
    "local": "everyone outside the owner, the server included",
}
_CLOSE = 1 + 1e-9
"""Room for rounding where two figures should be the same."""


def privacy_claims(run: RunRecords) -> Iterator[Claim]:
    """All claims that a run's privacy makes."""
    kind = kind_of(run.experiment)
    if kind == "none":
        yield Claim("what sums and model reveal", "not bounded: no differential privacy", "note")
        return
    yield _bounded(run)
    corrupt = float(run.experiment["protection"].get("corrupt", 0.0))
    yield Claim("against whom that holds", _AGAINST[kind].format(corrupt=corrupt), "note")
    yield _secret_noise(run)
    yield from _within_plan(run)
    yield from _from_charges(run)
    yield _figures(run)
    if kind == "distributed":
        yield _enough_noise(run)
    if is_correlated(run.experiment):
        yield _apart(run)
    if has_secret_cohorts(run):
        yield Claim("nobody learns who took part", "these records name who did: do not publish them", "note")
    yield _exhausted(run)


def _bounded(run: RunRecords) -> Claim:
    found = largest(record.epsilon for record in run.rounds) or 0.0
    unit, by = PROTECTED[unit_of(run.experiment)], accountant_of([run])
    figure = f"epsilon {epsilon(found)} ({by})" if by else f"epsilon {epsilon(found)}"
    delta = float(section_of(run.experiment)["delta"])
    return Claim("what sums and model reveal", f"bounded by {figure} at delta {delta:g}, one {unit}", "note")


def _secret_noise(run: RunRecords) -> Claim:
    seed = section_of(run.experiment).get("unsafe_replay_seed")
    found = "from the operating system's keys" if seed is None else "from a seed: whoever knows it can remove the noise"
    return Claim("noise is secret", found, held(seed is None))


def _within_plan(run: RunRecords) -> Iterator[Claim]:
    planned = section_of(run.experiment).get("epsilon")
    found = largest(record.epsilon for record in run.rounds)
    if planned is not None and found is not None:
        yield Claim(
            f"no owner spent more than epsilon {planned:g}",
            f"{epsilon(found)} at most",
            held(found <= planned * _CLOSE),
        )


def _from_charges(run: RunRecords) -> Iterator[Claim]:
    """Epsilon again, from what is on record of charges."""
    delta = float(section_of(run.experiment)["delta"])
    lines = [line for record in run.rounds[-1:] for line in record.owners]
    charged = {line.charges: line.epsilon for line in lines if line.epsilon is not None}
    if not charged:
        return
    again = {text: decoded(text) for text in charged}
    if any(charges is None for charges in again.values()):
        yield Claim("epsilon follows from what was charged", "charges are not on record", "note")
        return
    figures = {text: spent(charges or (), delta).epsilon for text, charges in again.items()}
    holds = all(figures[text] <= (reported or 0.0) * _CLOSE for text, reported in charged.items())
    found = f"{epsilon(max(figures.values()))} when computed again"
    yield Claim("epsilon follows from what was charged", found, held(holds))


def _figures(run: RunRecords) -> Claim:
    """Whether figures of single owners left them without noise."""
    noise = evaluation_noise(run.experiment)
    n_released = sum(bool(line.metrics) for record in run.rounds for line in record.owners)
    if unit_of(run.experiment) == "owner":
        found = f"{n_released} figures of single owners; means over a cohort {'noised' if noise else 'not taken'}"
        return Claim("no figures of single owners were released", found, held(n_released == 0))
    if noise:
        return Claim("held-out figures are covered", f"noised with deviation {noise:g} on each sum", "note")
    return Claim("held-out figures are covered", "no: they were released without noise", "note")


def _enough_noise(run: RunRecords) -> Claim:
    """Every sum that was opened holds the noise of so many owners as epsilon was computed for."""
    needed = _fewest(run)
    opened = [record.n_updates for record in run.rounds if record.sum.outcome == "opened"]
    return Claim(
        f"every sum holds the noise of {needed} owners or more",
        f"of {min(opened)} at least" if opened else "no sum was opened",
        held(all(n >= needed for n in opened)),
    )


def _fewest(run: RunRecords) -> int:
    section: dict[str, Any] = run.experiment["protection"]
    n_owners = max((record.n_owners for record in run.rounds), default=0)
    asked = int(run.experiment["cohort"].get("size") or n_owners)
    return max(int(section["min_owners"]), asked - math.floor(float(section["dropouts"]) * asked))


def _apart(run: RunRecords) -> Claim:
    """Owners take part again after as many rounds as there are cohorts, and no sooner."""
    rounds_of: dict[str, list[int]] = {}
    for record in run.rounds:
        for name in _took_part(record):
            rounds_of.setdefault(name, []).append(record.round)
    n_owners = max((record.n_owners for record in run.rounds), default=0)
    needed = max(1, n_owners // int(run.experiment["cohort"]["size"]))
    closest = min((b - a for taken in rounds_of.values() for a, b in pairwise(taken)), default=None)
    return Claim(
        f"owners take part again after {needed} rounds or more",
        "none took part twice" if closest is None else f"after {closest} at least",
        held(closest is None or closest >= needed),
    )


def _took_part(record: RoundRecord) -> list[str]:
    return [line.name for line in record.owners if line.outcome in ("update", "partial", "unopened")]


def _exhausted(run: RunRecords) -> Claim:
    """An owner that said that its budget is spent gives nothing more."""
    spent_at: dict[str, int] = {}
    broken: set[str] = set()
    for record in run.rounds:
        broken |= {name for name in _took_part(record) if name in spent_at}
        for line in record.owners:
            if line.outcome == "exhausted":
                spent_at.setdefault(line.name, record.round)
    found = f"{len(spent_at)} ran out of budget; {len(broken)} of them gave updates after that"
    return Claim("owners stop when their budget is spent", found, held(not broken))
