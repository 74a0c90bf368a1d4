"""Any threshold of shares gives the secret; one less gives nothing at all."""

from __future__ import annotations

import itertools
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import prod

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.protection.masked import shamir
from fedray.protection.masked.shamir import PRIME, SHARE_BYTES, combine, split

SECRETS = st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32]))


def test_the_field_is_the_smallest_that_holds_every_secret() -> None:
    assert sympy.isprime(PRIME)
    assert sympy.nextprime(2**256) == PRIME
    assert PRIME.bit_length() <= 8 * SHARE_BYTES


@pytest.mark.parametrize(("threshold", "n"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (4, 6), (5, 5), (4, 7)])
def test_any_threshold_of_shares_gives_the_secret(threshold: int, n: int) -> None:
    for secret in (os.urandom(32), bytes(32), b"\xff" * 32):
        shares = dict(enumerate(split(secret, threshold, n), start=1))
        assert all(len(share) == SHARE_BYTES for share in shares.values())
        for chosen in itertools.combinations(shares, threshold):
            assert combine({point: shares[point] for point in chosen}) == secret


@settings(deadline=None, max_examples=60)
@given(secret=SECRETS, n=st.integers(1, 40), data=st.data())
def test_any_random_threshold_of_shares_gives_the_secret(secret: bytes, n: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, n))
    shares = dict(enumerate(split(secret, threshold, n), start=1))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert combine({point: shares[point] for point in chosen}) == secret


@settings(deadline=None, max_examples=60)
@given(secret=SECRETS, n=st.integers(2, 20), data=st.data())
def test_a_second_derivation_by_lagrange_over_the_rationals(secret: bytes, n: int, data: st.DataObject) -> None:
    """Weights as fractions, brought into the field at the end only; shares as values of a polynomial written out."""
    threshold = data.draw(st.integers(1, n))
    shares = dict(enumerate(split(secret, threshold, n), start=1))
    chosen = sorted(data.draw(st.permutations(sorted(shares)))[:threshold])
    total = 0
    for point in chosen:
        weight = prod((Fraction(other, other - point) for other in chosen if other != point), start=Fraction(1))
        value = int.from_bytes(shares[point], "big")
        total += value * weight.numerator * sympy.mod_inverse(weight.denominator, PRIME)
    assert (total % PRIME).to_bytes(32, "big") == secret == combine({point: shares[point] for point in chosen})


def test_shares_are_the_values_of_a_random_polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every coefficient but the secret is drawn below the prime, once, from the operating system's generator."""
    drawn: list[int] = []
    randbelow = secrets.randbelow

    def spied(bound: int) -> int:
        assert bound == PRIME
        drawn.append(randbelow(bound))
        return drawn[-1]

    monkeypatch.setattr(secrets, "randbelow", spied)
    secret = os.urandom(32)
    shares = split(secret, 4, 6)
    assert len(drawn) == len(set(drawn)) == 3
    x = sympy.Symbol("x")
    polynomial = sympy.Poly([*reversed(drawn), int.from_bytes(secret, "big")], x)
    for point, share in enumerate(shares, start=1):
        assert int.from_bytes(share, "big") == polynomial.eval(point) % PRIME


def test_two_splits_of_one_secret_have_no_share_in_common() -> None:
    secret = os.urandom(32)
    assert not set(split(secret, 3, 5)) & set(split(secret, 3, 5))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The field of eleven elements, in which everything can be enumerated."""
    monkeypatch.setattr(shamir, "PRIME", 11)
    shamir._weights_at_zero.cache_clear()
    yield 11
    shamir._weights_at_zero.cache_clear()


@pytest.mark.parametrize(("threshold", "n"), [(2, 3), (3, 4), (3, 3)])
def test_one_share_less_than_the_threshold_tells_nothing(
    threshold: int, n: int, tiny: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all random choices, what fewer holders see is spread alike, and evenly, for each and every secret."""
    views: dict[int, Counter[tuple[tuple[int, ...], tuple[bytes, ...]]]] = {}
    few = [chosen for size in range(1, threshold) for chosen in itertools.combinations(range(n), size)]
    for secret in range(tiny):
        views[secret] = Counter()
        for coefficients in itertools.product(range(tiny), repeat=threshold - 1):
            draws = iter(coefficients)
            monkeypatch.setattr(secrets, "randbelow", lambda bound, draws=draws: next(draws))
            shares = split(bytes([secret]), threshold, n)
            views[secret].update((chosen, tuple(shares[at] for at in chosen)) for chosen in few)
    first = views[0]
    assert all(view == first for view in views.values())
    for chosen in few:
        counts = [count for (holders, _), count in first.items() if holders == chosen]
        assert counts == [tiny ** (threshold - 1 - len(chosen))] * tiny ** len(chosen)


@pytest.mark.parametrize("threshold", [2, 3])
def test_for_every_secret_there_is_a_polynomial_through_fewer_shares(
    threshold: int, tiny: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = dict(enumerate(split(bytes([7]), threshold, 4), start=1))
    known = {point: shares[point] for point in range(1, threshold)}
    possible = {combine({**known, 4: value.to_bytes(SHARE_BYTES, "big")}) for value in range(tiny)}
    assert possible == {bytes(31) + bytes([secret]) for secret in range(tiny)}


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 12), data=st.data())
def test_a_wrong_share_does_not_give_the_secret(n: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, n))
    secret = os.urandom(32)
    shares = dict(enumerate(split(secret, threshold, n), start=1))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    wrong = (int.from_bytes(shares[chosen[0]], "big") + data.draw(st.integers(1, PRIME - 1))) % PRIME
    given_shares = {point: shares[point] for point in chosen} | {chosen[0]: wrong.to_bytes(SHARE_BYTES, "big")}
    assert combine(given_shares) != secret
    fewer = dict(list(given_shares.items())[1:])
    assert combine(fewer) != secret or threshold == 1


def test_a_share_at_another_holders_place_does_not_give_the_secret() -> None:
    secret = os.urandom(32)
    shares = split(secret, 3, 5)
    assert combine({1: shares[1], 2: shares[0], 3: shares[2]}) != secret
    assert combine({1: shares[0], 2: shares[1], 4: shares[2]}) != secret


@pytest.mark.parametrize("value", [2**256, PRIME - 1, 2**264 - 1])
def test_what_is_no_secret_is_none_or_another(value: int) -> None:
    found = combine({1: value.to_bytes(SHARE_BYTES, "big")})
    assert found is None or len(found) == 32


def test_weights_of_many_holders_are_those_of_lagrange() -> None:
    points = tuple(range(1, 302, 2))
    weights = shamir._weights_at_zero(points)
    for at in (0, 1, 75, 150):
        point = points[at]
        weight = prod((Fraction(other, other - point) for other in points if other != point), start=Fraction(1))
        assert (weights[at] * weight.denominator - weight.numerator) % PRIME == 0
