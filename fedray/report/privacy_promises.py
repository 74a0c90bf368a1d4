"""What each kind of privacy promises, about whom, against whom, and what it leaves out; in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from fedray.report import numbers
from fedray.report.kinds import KINDS, evaluation_noise, is_correlated, section_of
from fedray.report.variant import Variant
from fedray.report.wording import listed, prose

_EXAMPLE = prose("""
    Example-level differential privacy. Whoever sees the updates or the model, the server included, learns
    little about whether any one training row of any one owner was used: one row more or less changes the
    probability of anything they could see by at most a factor of e to the power of epsilon, but for a
    probability of at most delta. {here} Each owner spends for its own rows; the figure is that of the
    owner who spent most. It bounds what is learned about one row, not about a person with many rows or
    about an owner as a whole.
""")
_OWNER = prose("""
    Owner-level differential privacy with a trusted server. Whoever sees the models learns little about any one owner:
    its whole part in the run, replaced by nothing, changes the probability of anything they could see by at most a
    factor of e to the power of epsilon, but for a probability of at most delta. {here} Owners clip their updates, and
    the server adds the noise to their sum: the bound does not hold against the server, nor against whoever reads what
    it keeps while a run goes on.
""")
_DISTRIBUTED = prose("""
    Owner-level differential privacy without trust in the server. Every owner adds its share of integer noise before
    its update is masked. Whoever sees the sums or the models, the server included, learns little about any one owner:
    its whole part in the run, replaced by nothing, changes the probability of anything they could see by at most a
    factor of e to the power of epsilon, but for a probability of at most delta. {here} Only the noise of honest owners
    that are left counts: a sum is opened if at most {dropouts:.0%} of a round's owners dropped out, and up to
    {corrupt:.0%} of them may join with the server and tell it their noise. It rests on the masks: whoever removes those
    sees updates with too little noise.
""")
_LOCAL = prose("""
    Owner-level differential privacy that trusts nobody. Every owner's own noise is enough for its own update, whatever
    becomes of sums and masks. Whoever sees it, the server included, learns little about that owner: its whole part in
    the run, replaced by nothing, changes the probability of anything they could see by at most a factor of e to the
    power of epsilon, but for a probability of at most delta. {here}
""")
_PROMISES = {"example": _EXAMPLE, "owner": _OWNER, "distributed": _DISTRIBUTED, "local": _LOCAL}

_SECRET = prose("""
    Epsilon counts on it that nobody learns who took part in which round: the server draws cohorts from a secret. The
    records name them, and the counts and bytes on this page tell how large they were. Neither records nor page may be
    published. Owners are not listed by what they took part in.
""")
_CORRELATED = prose("""
    Noise is correlated over rounds, and the run is accounted for as a whole: that holds as long as an owner does not
    take part more often, or sooner again, than was planned, which each owner sees to itself. The server's state holds
    past noise, and is as secret as the updates.
""")
_ACCOUNTANTS = prose("""
    Epsilon is an upper bound, computed by Google's dp-accounting from privacy loss distributions (PLD) and by Rényi DP
    (RDP); the smaller figure counts, and here that is {accountants}.
""")
_LEFT_OUT = prose("""
    Held-out metrics, the owners' numbers of rows and their training times are released without noise;
    epsilon does not cover them. Nor does it cover settings that were chosen by looking at the data.
""")
_NOISED_ROWS = prose("""
    Held-out metrics are noised by each owner and charged: epsilon covers them, held-out rows included. The owners'
    numbers of rows and their training times are released without noise. Nor does epsilon cover settings that were
    chosen by looking at the data.
""")
_NOISED_OWNERS = prose("""
    Metrics are noised and covered: they ride in the sum beside the updates. So they are of the model that the round
    began with, over its cohort's owners, every owner counting alike. Which owners there are, how long they trained and
    whether they answered is not covered, nor are settings that were chosen by looking at the data.
""")
_CENTRAL_ONLY = prose("""
    No figures of owners' rows are released: metrics are of the server's own test set, which nothing here protects.
    Which owners there are, how long they trained and whether they answered is not covered, nor are settings that were
    chosen by looking at the data.
""")
_GAUSSIAN = prose("""
    Noise is drawn as floating-point numbers from a Philox generator, keyed with 128 bits of the operating system's.
    Attacks on the gaps between floating-point numbers, or on that generator, are not covered by epsilon.
""")
_INTEGERS = prose("""
    Owners' noise is made of whole numbers, so that there are no gaps between floating-point numbers to attack. They are
    drawn from a stream of AES with the operating system's keys, by tables of 128 bits; how far that is from the exact
    law is counted in delta. The time of a draw is not covered.
""")


def privacy_promises(private: Sequence[Variant]) -> list[tuple[str, str]]:
    """(heading, text) on each kind of privacy among the variants, of which all have some."""
    found: list[tuple[str, str]] = []
    kinds = [kind for kind in KINDS if any(variant.kind == kind for variant in private)]
    for kind in kinds:
        name = f"Privacy “{kind}”" if len(kinds) > 1 else "Privacy"
        members = [variant for variant in private if variant.kind == kind]
        unit = "row" if kind == "example" else "owner"
        found.append((f"{name}: what the result tells about one {unit}", _promise(kind, members)))
        found += _conditions(members)
        found.append((f"What {'that bound' if len(kinds) == 1 else f'“{kind}”'} leaves out", _left_out(kind, members)))
    return found


def _promise(kind: str, members: Sequence[Variant]) -> str:
    protections = [variant.experiment["protection"] for variant in members]
    facts = {
        "here": _here(members),
        "dropouts": max(float(one.get("dropouts", 0.0)) for one in protections),
        "corrupt": min(float(one.get("corrupt", 0.0)) for one in protections),
    }
    return f"{_PROMISES[kind].format(**facts)} {_accountants(members)}".strip()


def _here(members: Sequence[Variant]) -> str:
    epsilons = sorted(variant.epsilon for variant in members if variant.epsilon is not None)
    deltas = sorted({float(section_of(variant.experiment).get("delta", 0.0)) for variant in members})
    if not epsilons:
        return "No epsilon is on record here yet."
    spread = _range([numbers.epsilon(epsilon) for epsilon in epsilons])
    return f"Here epsilon is {spread} at delta {_range([f'{delta:g}' for delta in deltas])}."


def _accountants(members: Sequence[Variant]) -> str:
    named = sorted({variant.accountant for variant in members if variant.accountant is not None})
    return _ACCOUNTANTS.format(accountants=listed(named)) if named else ""


def _conditions(members: Sequence[Variant]) -> list[tuple[str, str]]:
    found = [
        (any(variant.has_secret_cohorts for variant in members), "Who took part is a secret", _SECRET),
        (any(is_correlated(variant.experiment) for variant in members), "Noise that hangs together", _CORRELATED),
    ]
    return [(heading, text) for applies, heading, text in found if applies]


def _left_out(kind: str, members: Sequence[Variant]) -> str:
    noised = [evaluation_noise(variant.experiment) is not None for variant in members]
    if kind == "example":
        return _NOISED_ROWS if all(noised) else _LEFT_OUT
    return _CENTRAL_ONLY if not any(noised) else _NOISED_OWNERS


def noise_itself(private: Sequence[Variant]) -> str:
    """How noise is drawn, and what that leaves open."""
    by_owners = {variant.kind in ("distributed", "local") for variant in private}
    return " ".join(text for kind, text in ((False, _GAUSSIAN), (True, _INTEGERS)) if kind in by_owners)


def _range(texts: Sequence[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} to {texts[-1]}"
