"""What every Protection must do. A test class derives from ``ProtectionContract`` and gives ``protection``, made for
vectors of ``N_VALUES``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from fedray.errors import UpdateRefused
from fedray.protocols import Protection
from fedray.values import Sealed, Total, Update

N_VALUES = 4
UPDATES: dict[str, Update] = {
    name: Update(np.array(delta, dtype=np.float32), weight, 3, True)
    for name, delta, weight in [
        ("a", [0.5, -0.25, 0.0, 1.0], 3),
        ("b", [1e-7, 900.0, -900.0, -1.0], 70_000),
        ("c", [-0.1, 0.3, 1 / 3, 2.0], 11),
    ]
}


def sealed(protection: Protection, owner: str, update: Update, round: int = 1) -> Sealed:
    return Sealed(owner, round, protection.sealer(owner).seal(update), 3, True, 0.1, None)


def total(protection: Protection, answers: Sequence[Sealed]) -> Total:
    combiner = protection.combiner()
    for answer in answers:
        combiner.add(answer)
    assert combiner.n_added == len(answers)
    return protection.opener().open(combiner.combined)


class ProtectionContract:
    @pytest.fixture
    def protection(self) -> Protection:
        raise NotImplementedError

    def test_the_opened_mean_is_the_weighted_mean(self, protection: Protection) -> None:
        opened = total(protection, [sealed(protection, name, update) for name, update in UPDATES.items()])
        weights = np.array([update.weight for update in UPDATES.values()], dtype=np.float64)
        deltas = np.array([update.delta for update in UPDATES.values()], dtype=np.float64)
        assert opened.weight == weights.sum()
        np.testing.assert_allclose(opened.mean, np.average(deltas, axis=0, weights=weights), rtol=0, atol=2**-28)

    def test_any_order_gives_the_same_bits(self, protection: Protection) -> None:
        answers = [sealed(protection, name, update) for name, update in UPDATES.items()]
        sums = {total(protection, order).weighted_sum.tobytes() for order in itertools.permutations(answers)}
        assert len(sums) == 1

    def test_every_round_starts_from_nothing(self, protection: Protection) -> None:
        first = total(protection, [sealed(protection, name, update) for name, update in UPDATES.items()])
        second = total(protection, [sealed(protection, name, update, 2) for name, update in UPDATES.items()])
        assert first.weighted_sum.tobytes() == second.weighted_sum.tobytes()
        assert protection.combiner().n_added == 0

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
    def test_what_is_not_finite_or_not_bounded_is_never_sealed(self, protection: Protection, value: float) -> None:
        delta = np.array([0.0, value, 0.0, 0.0], dtype=np.float32)
        with pytest.raises(UpdateRefused):
            protection.sealer("a").seal(Update(delta, 1, 1, True))

    def test_a_misshapen_payload_leaves_the_sum_as_it_was(self, protection: Protection) -> None:
        combiner = protection.combiner()
        good = sealed(protection, "a", UPDATES["a"])
        combiner.add(good)
        for payload in (good.payload[:-1], good.payload.astype(np.float64), np.zeros(0, np.int64)):
            with pytest.raises(UpdateRefused):
                combiner.add(Sealed("b", 1, payload, 1, True, 0.0, None))
        assert combiner.n_added == 1
        assert np.array_equal(combiner.combined, good.payload)

    def test_sealing_does_not_change_the_update(self, protection: Protection) -> None:
        before = UPDATES["b"].delta.copy()
        protection.sealer("b").seal(UPDATES["b"])
        assert np.array_equal(before, UPDATES["b"].delta)
