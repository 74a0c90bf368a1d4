"""What a run's records show of the promises of its protection, beside those of its privacy.

An audit reads what the server wrote. It finds a protection that was weaker than was asked for, not a server that
forges its records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from fedray.records import RunRecords
from fedray.report.claims import Claim, held
from fedray.report.privacy_audit import privacy_claims
from fedray.values import RoundRecord

SECURITY_BITS = 128
_TAKING_PART = ("update", "partial")

_WHO_READS = {
    "plain": "the server, every update of every owner",
    "masked": "nobody alone; the server with a threshold of an owner's neighbours",
    "ckks": "nobody alone; the server with the key holder, every update",
    "bfv": "nobody alone; the server with the key holder, every update",
}
_WHO_HOLDS = {
    "plain": "nobody: there is none",
    "masked": "every owner its own, new in every round",
    "ckks": "the key holder alone",
    "bfv": "the key holder alone",
}


def audit(run: RunRecords) -> list[Claim]:
    """All claims that protection and privacy of a run make, in the order of the threat model."""
    section = run.experiment["protection"]
    opened = [record for record in run.rounds if record.sum.outcome == "opened"]
    found = [
        Claim("who can read a single update", _WHO_READS[section["name"]], held(section["name"] != "plain")),
        Claim("who holds secret keys", _WHO_HOLDS[section["name"]], "note"),
    ]
    if section["name"] != "plain":
        found += list(_protected(section, run.rounds, opened))
    return [*found, _differences(opened), *privacy_claims(run)]


def _protected(
    section: dict[str, Any], rounds: Sequence[RoundRecord], opened: Sequence[RoundRecord]
) -> Iterator[Claim]:
    yield _protection(section, rounds)
    yield _identities(section, rounds)
    yield _entropy(rounds)
    if section["name"] == "masked":
        yield _threshold(section, opened)
    else:
        yield _keys(section, opened)
    yield _smallest(section, opened)
    yield _abandoned(rounds)
    yield _survived(opened)


def _protection(section: dict[str, Any], rounds: Sequence[RoundRecord]) -> Claim:
    names = sorted({record.sum.protection for record in rounds})
    return Claim(
        "every round was protected as asked",
        f"{', '.join(names) or 'no round'} in {len(rounds)} rounds; asked for {section['name']}",
        held(set(names) <= {section["name"]}),
    )


def _identities(section: dict[str, Any], rounds: Sequence[RoundRecord]) -> Claim:
    enrolled = bool(section["identities"]) and all(record.sum.identities == "enrolled" for record in rounds)
    if enrolled:
        return Claim("owners' keys are theirs", f"{len(section['identities'])} enrolled identities", "holds")
    return Claim(
        "owners' keys are theirs",
        "trusted at first use: a server that lied could have passed off owners of its own; see fedray enrol",
        "note",
    )


def _entropy(rounds: Sequence[RoundRecord]) -> Claim:
    bits = min((record.sum.key_bits for record in rounds), default=SECURITY_BITS)
    return Claim("secrets are of full entropy", f"{bits} bits or more in every round", held(bits >= SECURITY_BITS))


def _threshold(section: dict[str, Any], opened: Sequence[RoundRecord]) -> Claim:
    share = 2 / 3 if section["server"] == "may_lie" else 1 / 2
    sums = [record.sum for record in opened]
    weakest = min(sums, key=lambda one: one.threshold / (one.neighbours + 1), default=None)
    if weakest is None:
        return Claim("threshold", "no sum was opened", "note")
    holders = weakest.neighbours + 1
    return Claim(
        f"shares open with more than {'two thirds' if section['server'] == 'may_lie' else 'half'} of their holders",
        f"{weakest.threshold} of {holders} at least",
        held(all(one.threshold > share * (one.neighbours + 1) for one in sums)),
    )


def _keys(section: dict[str, Any], opened: Sequence[RoundRecord]) -> Claim:
    rounds_of: dict[str, int] = {}
    for record in opened:
        rounds_of[record.sum.key_id] = rounds_of.get(record.sum.key_id, 0) + 1
    longest = max(rounds_of.values(), default=0)
    return Claim(
        f"a key opens at most {section['key_rounds']} sums",
        f"{len(rounds_of)} keys; {longest} sums under one",
        held(longest <= section["key_rounds"]),
    )


def _smallest(section: dict[str, Any], opened: Sequence[RoundRecord]) -> Claim:
    asked = section["min_owners"]
    smallest = min((record.n_updates for record in opened), default=None)
    return Claim(
        f"no sum of fewer than {asked} updates was opened",
        "no sum was opened" if smallest is None else f"the smallest was of {smallest}",
        held(smallest is None or smallest >= asked),
    )


def _abandoned(rounds: Sequence[RoundRecord]) -> Claim:
    abandoned = [record for record in rounds if record.sum.outcome == "abandoned"]
    reasons = sorted({record.sum.reason for record in abandoned})
    return Claim(
        "rounds that were abandoned gave no sum",
        f"{len(abandoned)} of {len(rounds)} abandoned" + (f": {'; '.join(reasons[:2])}" if reasons else ""),
        held(all(record.n_updates == 0 for record in abandoned)),
    )


def _survived(opened: Sequence[RoundRecord]) -> Claim:
    """Owners lost between two stages of rounds whose sum was opened all the same."""
    lost: dict[str, int] = {}
    for record in opened:
        for (_, before), (stage, after) in pairwise(record.sum.stages.items()):
            lost[stage] = lost.get(stage, 0) + before - after
    found = [f"{count} before {stage}" for stage, count in lost.items() if count]
    return Claim("dropouts survived", ", ".join(found) or "no owner dropped out of a sum that was opened", "note")


def _differences(opened: Sequence[RoundRecord]) -> Claim:
    cohorts = [frozenset(owner.name for owner in record.owners if owner.outcome in _TAKING_PART) for record in opened]
    close = sum(len(before ^ after) == 1 for before, after in pairwise(cohorts))
    return Claim(
        "differences of sums",
        f"{close} times two sums in a row differed by one owner; only differential privacy bounds what that tells",
        "note",
    )
