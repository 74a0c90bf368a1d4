"""Independent noise: a fresh draw each round, times the multiplier."""

from __future__ import annotations

import numpy as np
from dense_noise import stream

from fedray.privacy.events import Charge, Gaussian
from fedray.privacy.noise import Independent


def test_every_round_has_its_own_draw() -> None:
    draws = np.random.default_rng(0).standard_normal((6, 4))
    np.testing.assert_array_equal(stream(Independent(2.5, 6, 3), draws), 2.5 * draws)


def test_every_participation_is_charged() -> None:
    assert Independent(2.5, 6, 3).charges() == (Charge(Gaussian(2.5), 3),)
    assert Independent(2.5, 6, 3).separation == 1
