"""Each approximation within the error that its table states, against torch in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from three_parties import Party, Trio

from fedray.mpc import approximations
from fedray.mpc.ring import LARGEST_PRECISION, decoded, encoded, limit
from fedray.mpc.shares import Share, split

UNIT = 2.0**-20


def computed(
    operator: Callable[[Party, Share], Share], x: torch.Tensor, precision: int = 20
) -> tuple[torch.Tensor, torch.Tensor]:
    """A function of numbers as fixed point holds them, and those numbers."""
    words = encoded(x, precision)
    return decoded(Trio(precision).words(operator, split(words, precision)), precision), decoded(words, precision)


def powers(least: int, largest: int) -> torch.Tensor:
    """Numbers over many magnitudes, and powers of two with their neighbours."""
    exponents = torch.linspace(least, largest - 1e-3, 1500, dtype=torch.float64)
    corners = torch.tensor([2.0**power for power in range(least, largest)], dtype=torch.float64)
    return torch.cat([2.0**exponents, corners, corners + UNIT, corners[1:] - UNIT])


def test_exp_is_close_and_stays_where_it_would_leave_the_range() -> None:
    found, x = computed(approximations.exp, torch.linspace(-14, 13, 2000))
    assert bool(((found - x.exp()).abs() <= 3e-4 * x.exp() + 4e-6).all())
    found, _ = computed(approximations.exp, torch.tensor([-3000.0, -15, 14, 4000]))
    assert found[:2].abs().max() < 4e-6
    assert torch.allclose(found[2:], torch.full((2,), 13.0, dtype=torch.float64).exp(), rtol=3e-4)


def test_the_reciprocal_of_either_sign_is_close() -> None:
    magnitudes = powers(-8, 12)
    for sign in (1, -1):
        found, x = computed(approximations.reciprocal, sign * magnitudes)
        assert bool(((found - 1 / x).abs() <= 1e-5 / x.abs() + 4e-6).all())


def test_the_logarithm_is_close() -> None:
    found, x = computed(approximations.log, powers(-8, 12))
    assert (found - x.log()).abs().max() < 1e-4


def test_the_inverse_square_root_is_close() -> None:
    found, x = computed(approximations.inverse_square_root, powers(-8, 12))
    assert ((found - x.rsqrt()) / x.rsqrt()).abs().max() < 1e-4


def test_the_sigmoid_is_close_and_never_far_outside_zero_and_one() -> None:
    found, x = computed(approximations.sigmoid, torch.linspace(-40, 40, 2001))
    assert (found - x.sigmoid()).abs().max() < 1e-4


@pytest.mark.parametrize("coefficients", [[1.0, 2.0], [0.5, -1.0, 0.25, 0.125]])
def test_a_polynomial_is_horners(coefficients: list[float]) -> None:
    found, x = computed(lambda party, s: approximations.polynomial(party, s, coefficients), torch.linspace(-2, 2, 50))
    plain = sum(coefficient * x**order for order, coefficient in enumerate(coefficients))
    assert (found - plain).abs().max() < 1e-5


def test_numbers_are_clamped_at_both_ends() -> None:
    found, x = computed(lambda party, s: approximations.clamped(party, s, -1.5, 2.0), torch.linspace(-4, 4, 33))
    assert torch.equal(found, x.clamp(-1.5, 2.0))


@pytest.mark.parametrize("precision", range(21, LARGEST_PRECISION + 1))
def test_with_more_fractional_bits_ranges_shrink_and_errors_do_not_grow(precision: int) -> None:
    """e**13 has no room above 21 bits: without a lower end it would come out as something else."""
    top = {21: 13, 22: 12, 23: 11, 24: 9, 25: 8, 26: 6}[precision]
    largest = limit(precision) * 0.99
    found, x = computed(approximations.exp, torch.linspace(-20, min(40, largest), 500), precision)
    expected = x.clamp(max=top).exp()
    assert bool(((found - expected).abs() <= 3e-4 * expected + 4e-6).all())
    magnitudes = powers(-8, min(12, 62 - 2 * precision))
    found, x = computed(approximations.reciprocal, -magnitudes, precision)
    assert bool(((found - 1 / x).abs() <= 1e-5 / x.abs() + 4e-6).all())
    found, x = computed(approximations.log, magnitudes, precision)
    assert (found - x.log()).abs().max() < 1e-4
    found, x = computed(approximations.inverse_square_root, magnitudes, precision)
    assert ((found - x.rsqrt()) / x.rsqrt()).abs().max() < 1e-4


@pytest.mark.parametrize("precision", [6, 8, 11])
def test_with_few_fractional_bits_errors_are_those_of_the_last_place(precision: int) -> None:
    """Up to 2**bits: the reciprocal of a larger number has no words, and dividing by it would leave nothing."""
    unit = 2.0**-precision
    x = 2.0 ** torch.linspace(-2, precision - 0.01, 500, dtype=torch.float64)
    found, x = computed(approximations.log, x, precision)
    assert (found - x.log()).abs().max() < 60 * unit
    found, x = computed(approximations.reciprocal, x, precision)
    assert bool(((found - 1 / x).abs() <= 40 * unit * (1 + 1 / x)).all())
