"""Who is in a sum: signed entries, one of each owner, enough of them, all made on the same terms.

Owners that were given another model or plan may have nothing to say; a sum with theirs would be the others' alone
(Pasquini et al. 2022). So entries carry a digest of what the owner was given, and must agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedray.errors import ProtocolError
from fedray.protection.homomorphic.messages import Contribution, Place, is_from
from fedray.protection.identity import Trust


def require_for(place: Place, entry: Contribution, trust: Trust) -> None:
    """Accept one owner's entry, or refuse it.

    Raises:
        ProtocolError: for another sum, or not signed by the owner whose name it bears.
    """
    if (entry.run, entry.round, entry.key_id) != (place.run, place.round, place.key_id):
        raise ProtocolError(f"{entry.owner}'s contribution to another sum", f"round {place.round}'s", "suspect replay")
    if not is_from(entry, entry.owner, trust):
        raise ProtocolError(f"a contribution without the signature of {entry.owner}", "a signed one", "suspect forgery")


def require_all(place: Place, manifest: Sequence[Contribution], trust: Trust, fewest: int, most: int) -> None:
    """Accept a sum's manifest, or refuse it.

    Raises:
        ProtocolError: an entry is refused, too few or too many owners, or one that counts twice, be it under two names;
            or owners were given different things.
    """
    for entry in manifest:
        require_for(place, entry, trust)
    n = min(len({getattr(entry, own) for entry in manifest}) for own in ("owner", "identity", "channel"))
    if n < len(manifest) or not fewest <= n <= most:
        raise ProtocolError(
            f"a sum of {len(manifest)} contributions from {n} distinct owners",
            f"one contribution each from {fewest} to {most} owners",
            "ask more owners",
        )
    if len({entry.terms for entry in manifest}) > 1:
        raise ProtocolError("owners with different models or plans", "the same for all", "suspect the server")
