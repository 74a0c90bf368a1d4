"""Parameters: SEAL's own primes, 128 bits of security, and noise that is what the formula says."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tenseal
import tenseal.sealapi
from homomorphic_parties import SCHEMES

from fedray.errors import ConfigError
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic import primes
from fedray.protection.homomorphic.cipher import PublicKey, SecretKey
from fedray.protection.homomorphic.parameters import (
    DATA_BITS,
    SPECIAL_BITS,
    BfvParameters,
    CkksParameters,
    Parameters,
    Scheme,
    choose,
)
from fedray.protection.homomorphic.words import Words, add

both = pytest.mark.parametrize("scheme", SCHEMES)
CLIP, PRECISION = 8.0, 1e-5


def fixed_point(n_owners: int, clip: float = CLIP, precision: float = PRECISION) -> FixedPoint:
    return FixedPoint(1000, n_owners, clip, precision)


def test_checking_a_config_does_without_tenseal() -> None:
    code = "import sys, fedray.protection.homomorphic.parameters; assert 'tenseal' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("data_bits", DATA_BITS)
def test_primes_are_those_that_seal_takes(data_bits: int) -> None:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[data_bits, SPECIAL_BITS])
    chain = context.seal_context().data.key_context_data().parms().coeff_modulus()
    assert [prime.value() for prime in chain] == [primes.largest(bits, 8192) for bits in (data_bits, SPECIAL_BITS)]


def test_primality_is_exact() -> None:
    sieve = [n for n in range(2000) if n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))]
    assert [n for n in range(2000) if primes.is_prime(n)] == sieve
    assert not primes.is_prime(3215031751)  # a strong pseudoprime to 2, 3, 5 and 7
    assert not primes.is_prime(3825123056546413051)  # to all primes up to 31
    assert primes.is_prime(2**61 - 1)


@both
@pytest.mark.parametrize("n_owners", [3, 5, 6, 10, 100, 140, 150, 1000])
def test_what_is_chosen_is_secure_and_holds_every_sum(scheme: Scheme, n_owners: int) -> None:
    parameters = choose(scheme, fixed_point(n_owners))
    assert parameters.security_bits >= 192
    assert parameters.margin(fixed_point(n_owners)) >= 1
    if isinstance(parameters, BfvParameters):
        assert parameters.plain_modulus > 2 * fixed_point(n_owners).sum_bound
        assert parameters.plain_modulus % 8192 == 1
    narrower = [bits for bits in DATA_BITS if bits < parameters.coefficient_bits[0]]
    for bits in narrower:
        shorter = replace(parameters, coefficient_bits=(bits, SPECIAL_BITS))
        if isinstance(shorter, CkksParameters):
            shorter = replace(shorter, scale=parameters.encoding / 2 ** (parameters.coefficient_bits[0] - bits))
        assert shorter.margin(fixed_point(n_owners)) < 1


def test_the_table_of_the_docs() -> None:
    """Data prime's bits for the default clip and precision, by cohort size."""
    table = {n: [choose(scheme, fixed_point(n)).coefficient_bits[0] for scheme in SCHEMES] for n in (3, 5, 10, 100)}
    assert table == {3: [32, 40], 5: [40, 40], 10: [40, 48], 100: [40, 48]}


def test_the_plain_modulus_is_none_of_the_chain() -> None:
    """SEAL refuses one that shares a factor with the chain."""
    special = primes.largest(SPECIAL_BITS, 8192)
    point = FixedPoint(10, 3, clip=1.0, precision=1.0)
    n = (special - 2) // 2 // point.value_bound
    point = replace(point, n_owners=n)
    assert 2 * point.sum_bound < special < 2 * point.sum_bound + 8192
    chosen = choose("bfv", point)
    assert isinstance(chosen, BfvParameters)
    assert chosen.plain_modulus > special
    PublicKey(chosen, SecretKey(chosen).public)


def test_a_chain_that_is_too_long_is_refused() -> None:
    assert BfvParameters(4096, (54, 55), 40961).security_bits == 128
    with pytest.raises(ConfigError, match="128 bits of security"):
        BfvParameters(4096, (55, 55), 40961)
    with pytest.raises(ConfigError):
        CkksParameters(2048, (40, 18), 1.0)


def test_a_sum_that_no_chain_holds_is_refused_with_what_to_change() -> None:
    with pytest.raises(ConfigError, match="precision"):
        choose("ckks", FixedPoint(10, 9999, clip=1.6, precision=2.0**-17))


@pytest.fixture(scope="module", params=SCHEMES)
def thousand(request: pytest.FixtureRequest) -> tuple[Parameters, SecretKey, dict[int, tuple[Words, np.ndarray]]]:
    """Ciphertexts of integers at their bound, summed over 1, 10, 100 and 1000 of them."""
    point = fixed_point(1000)
    parameters = choose(request.param, point)
    secret = SecretKey(parameters)
    public = PublicKey(parameters, secret.public)
    draw = np.random.default_rng(0)
    total = np.zeros(2 * parameters.poly_degree, dtype=np.uint64)
    plain, sums = np.zeros(parameters.n_slots, dtype=np.int64), {}
    for n in range(1, 1001):
        integers = draw.choice([-point.value_bound, point.value_bound], parameters.n_slots)
        add(total, public.seal(public.zero(), integers), parameters.modulus)
        plain += integers
        if n in (1, 10, 100, 1000):
            sums[n] = total.copy(), plain.copy()
    return parameters, secret, sums


def test_sums_of_up_to_a_thousand_are_exact(thousand: tuple[Parameters, SecretKey, dict]) -> None:  # type: ignore[type-arg]
    _, secret, sums = thousand
    for total, plain in sums.values():
        assert np.array_equal(secret.open(total), plain)


def test_noise_is_what_the_formula_says(thousand: tuple[Parameters, SecretKey, dict]) -> None:  # type: ignore[type-arg]
    """CKKS: measured in slots. BFV: SEAL's noise budget, which is log2 of q/2t over the largest of 4096 noises."""
    parameters, secret, sums = thousand
    vectors, stream = secret._vectors, secret._stream
    for n, (total, plain) in sums.items():
        deviation = parameters.noise_deviation(n)
        vector = vectors._make(vectors._context, stream.serialised(total))
        if isinstance(parameters, CkksParameters):
            errors = (np.array(vector.decrypt()) - plain) * parameters.scale
            assert errors.std() == pytest.approx(deviation * math.sqrt(2048), rel=0.15)
            assert np.abs(errors).max() < 32 * errors.std()
        else:
            assert isinstance(parameters, BfvParameters)
            largest = deviation * math.sqrt(2 * math.log(4096))
            budget = math.log2(parameters.modulus / (2 * parameters.plain_modulus) / largest)
            measured = vectors._context.decryptor().invariant_noise_budget(vector.ciphertext()[0])
            assert budget - 1.6 < measured < budget + 0.6, "it is rounded down, and the largest of 4096 varies"


@both
def test_parameters_without_the_margin_do_lose_sums(scheme: Scheme) -> None:
    """The formula is not idle: what it refuses by a factor of forty goes wrong."""
    point = fixed_point(1000)
    chosen = choose(scheme, point)
    short = replace(chosen, coefficient_bits=(32, SPECIAL_BITS))
    if isinstance(short, CkksParameters):
        short = replace(short, scale=0.98 * short.modulus / 2 / point.sum_bound)
    assert short.margin(point) < 1 / 40
    secret = SecretKey(short)
    public = PublicKey(short, secret.public)
    integers = np.arange(short.n_slots)
    assert not np.array_equal(secret.open(public.seal(public.zero(), integers)), integers)
