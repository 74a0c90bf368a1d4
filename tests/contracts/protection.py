"""What every Protection must do. A test class derives from ``ProtectionContract`` and gives the fixture ``opens``.

``opens`` makes both halves for vectors of a fixed point; a protection whose sums are exact derives from
``ExactContract``. All that passes between the halves goes through ``Harness``, which also lets owners fall silent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import pytest
from toys import assignment, plan

from fedray.errors import ProtocolError, RoundAbandoned, UpdateRefused
from fedray.protection.fixed_point import PIECE, WEIGHT_BOUND, FixedPoint
from fedray.protection.plain import PlainProtection, PlainSealer
from fedray.protection.subtotals import RingAdder
from fedray.protocols import Combiner, Protection, Sealer
from fedray.values import Absent, Sealed, Subtotal, Total, Update

OWNERS = ("zürich", "a", "leuven ", "b/../c", "m")
"""Names that need care, in no order."""
SEED = 11
TERMS = sha256(b"one model, one plan").digest()


@dataclass
class Harness:
    """Both halves of one protection in this process.

    Attributes:
        sealers: owner's name to its half; each in the ring of ``SEED``.
        protection: the server's half.
        tolerance: units of the step by which one update in a sum may differ from what it was.
        silent: owners that answer nothing.
        asked: owners that were asked something.
        bytes_up: bytes of answers.
        bytes_down: bytes of messages.
    """

    sealers: Mapping[str, Sealer]
    protection: Protection
    tolerance: float
    silent: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    bytes_up: int = 0
    bytes_down: int = 0

    def combiner(self, round: int = 1, owners: Sequence[str] = OWNERS) -> Combiner:
        return self.protection.combiner(round, owners, lambda messages: self._ask(round, messages))

    def _ask(self, round: int, messages: Mapping[str, bytes]) -> dict[str, bytes | Absent]:
        return {name: self._answer(name, round, message) for name, message in messages.items()}

    def _answer(self, name: str, round: int, message: bytes) -> bytes | Absent:
        self.asked.add(name)
        self.bytes_down += len(message)
        if name in self.silent:
            return Absent(name, round, "absent", "its actor died")
        try:
            answer = self.sealers[name].answer(message)
        except ProtocolError as error:
            return Absent(name, round, "refused", error.found)
        self.bytes_up += len(answer)
        return answer

    def sealed(
        self, combiner: Combiner, owner: str, update: Update, round: int = 1, weight_bound: int = 2**17
    ) -> Sealed:
        asked = replace(
            assignment(plan(round=round), owner, weight_bound=weight_bound), briefing=combiner.briefing(owner)
        )
        payload, proof = self.sealers[owner].seal(update, asked, TERMS)
        return Sealed(owner, round, update.n_steps, True, 0.1, None, TERMS, proof, payload=payload)

    def total(self, updates: Mapping[str, Update], round: int = 1, weight_bound: int = 2**17) -> Total:
        """The opened sum of one whole round."""
        combiner = self.combiner(round)
        for owner, update in updates.items():
            combiner.add(self.sealed(combiner, owner, update, round, weight_bound))
        return combiner.open()


Opens = Callable[[FixedPoint, int], Harness]
"""Makes a harness of ``OWNERS`` for a fixed point and a bound on weights."""

WIDE = FixedPoint(PIECE + 7, len(OWNERS), clip=8.0, precision=1e-5)
"""More than one piece, in the wider ring."""
NARROW = FixedPoint(9, len(OWNERS), clip=1.0, precision=2.0**-11)
"""In the narrower ring."""
WEIGHTS = (3, 70_000, 11, 2**17, 1)


def updates(fixed_point: FixedPoint = WIDE, seed: int = 0, weights: Sequence[int] = WEIGHTS) -> dict[str, Update]:
    """An update an owner: values of all sizes up to the clip, the clip itself, and values below a step."""
    draw = np.random.default_rng(seed)
    made = {}
    for owner, weight in zip(OWNERS, weights, strict=True):
        sizes = fixed_point.clip * 10.0 ** -draw.uniform(0, 7, fixed_point.n_values)
        delta = (sizes * draw.choice([-1, 1], fixed_point.n_values)).astype(np.float32)
        delta[:4] = fixed_point.clip, -fixed_point.clip, 0.0, -0.0
        made[owner] = Update(delta, weight, 3, True)
    return made


def slack(fixed_point: FixedPoint, tolerance: float, n: int, weight: int, weight_bound: int = 2**17) -> float:
    """How far a mean of ``n`` updates may be from the exact one."""
    return n * tolerance * fixed_point.step * weight_bound / weight


def exact_mean(added: Mapping[str, Update]) -> np.ndarray:
    weights = [update.weight for update in added.values()]
    return np.average([update.delta.astype(np.float64) for update in added.values()], axis=0, weights=weights)


def require_mean(harness: Harness, total: Total, added: Mapping[str, Update], fixed_point: FixedPoint = WIDE) -> None:
    """The total is that of these updates, and its weight exactly theirs."""
    weight = sum(update.weight for update in added.values())
    assert total.weight == weight
    atol = slack(fixed_point, harness.tolerance, len(added), weight)
    np.testing.assert_allclose(total.mean, exact_mean(added), rtol=0, atol=atol)


DIVISIONS = ((0, 0, 0, 0, 0), (0, 1, 2, 3, 4), (1, 0, 1, 0, 1), (2, 2, 1, 0, 0))
"""Which pool each owner is in; pools send their subtotals in order."""


def divided(sealed: Sequence[Sealed], division: Sequence[int]) -> list[list[Sealed]]:
    pools: dict[int, list[Sealed]] = {}
    for one, place in zip(sealed, division, strict=True):
        pools.setdefault(place, []).append(one)
    return [pools[place] for place in sorted(pools)]


def subtotal(sealed: Sequence[Sealed]) -> Subtotal:
    """What a pool makes of these in the ring of ``NARROW``; a sum of bytes where they are in no ring."""
    adder = RingAdder(NARROW, readable=False)
    try:
        for one in sealed:
            adder.add(one)
    except UpdateRefused:
        shortest = min(len(one.payload) for one in sealed)
        payload = np.sum([one.payload[:shortest] for one in sealed], axis=0, dtype=sealed[0].payload.dtype)
        return Subtotal(payload, tuple(one.cover for one in sealed))
    found = adder.take()
    assert found is not None
    return found


def is_taken(combiner: Combiner, subtotal: Subtotal) -> bool:
    try:
        combiner.add_subtotal(subtotal)
    except UpdateRefused:
        return False
    return True


class ProtectionContract:
    @pytest.fixture
    def opens(self) -> Opens:
        raise NotImplementedError

    @pytest.fixture
    def harness(self, opens: Opens) -> Harness:
        return opens(WIDE, 2**17)

    @pytest.mark.parametrize("fixed_point", [WIDE, NARROW], ids=["wide", "narrow"])
    def test_the_opened_mean_is_the_weighted_mean(self, opens: Opens, fixed_point: FixedPoint) -> None:
        harness, given = opens(fixed_point, 2**17), updates(fixed_point)
        require_mean(harness, harness.total(given), given, fixed_point)

    @pytest.mark.parametrize(
        "weights", [(1, 1, 1, 1, 1), (2**17,) * 5, (2**17 - 1, 2**16 + 1, 12_345, 2, 99_999)], ids=["1", "bound", "odd"]
    )
    def test_weights_are_exact(self, harness: Harness, weights: tuple[int, ...]) -> None:
        assert harness.total(updates(weights=weights)).weight == sum(weights)

    def test_any_order_gives_the_same_bits(self, opens: Opens) -> None:
        orders = list(itertools.permutations(OWNERS))[::9]
        given, found = updates(NARROW), set()
        for order in orders:
            total = opens(NARROW, 2**17).total({name: given[name] for name in order})
            found.add((total.weighted_sum.tobytes(), total.weight))
        assert len(orders) > 10
        assert len(found) == 1

    def test_every_round_starts_from_nothing(self, harness: Harness) -> None:
        for round in (1, 2, 5):
            given = updates(seed=round)
            assert harness.combiner(round).n_added == 0
            require_mean(harness, harness.total(given, round), given)

    def test_a_round_may_be_prepared_while_another_goes_on(self, harness: Harness) -> None:
        """Also half-way through its updates, and while it is being opened."""
        first, second = updates(seed=1), updates(seed=2)
        one = harness.combiner(1)
        for name in OWNERS[:3]:
            one.add(harness.sealed(one, name, first[name], 1))
        other = harness.combiner(2)
        for name in OWNERS[3:]:
            one.add(harness.sealed(one, name, first[name], 1))
        require_mean(harness, one.open(), first)
        for name in OWNERS:
            other.add(harness.sealed(other, name, second[name], 2))
        require_mean(harness, other.open(), second)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -8.0000010])
    def test_what_is_not_finite_or_not_bounded_is_never_sealed(self, harness: Harness, value: float) -> None:
        """The owner says so, and the round goes on without it."""
        given, bad, combiner = updates(), OWNERS[2], harness.combiner()
        delta = given[bad].delta.copy()
        delta[-1] = value
        with pytest.raises(UpdateRefused):
            harness.sealed(combiner, bad, replace(given.pop(bad), delta=delta))
        for owner, update in given.items():
            combiner.add(harness.sealed(combiner, owner, update))
        require_mean(harness, combiner.open(), given)

    @pytest.mark.parametrize(
        "change", [{"weight": 0}, {"weight": -1}, {"weight": 2**17 + 1}, {"delta": np.zeros(3, "f4")}]
    )
    def test_what_does_not_fit_is_never_sealed(self, harness: Harness, change: dict[str, object]) -> None:
        combiner = harness.combiner()
        with pytest.raises(UpdateRefused):
            harness.sealed(combiner, "a", replace(updates()["a"], **change))

    def test_a_misshapen_payload_leaves_the_sum_as_it_was(self, opens: Opens) -> None:
        clean, harness = (opens(WIDE, 2**17) for _ in "ab")
        given, combiner = updates(), harness.combiner()
        bad, *good = OWNERS
        expected = clean.total({name: given[name] for name in good})
        sealed = harness.sealed(combiner, bad, given[bad])
        for position, name in enumerate(good):
            combiner.add(harness.sealed(combiner, name, given[name]))
            if position == 1:
                for payload in misshapen(sealed.payload):
                    with pytest.raises(UpdateRefused):
                        combiner.add(replace(sealed, payload=payload))
                    assert combiner.n_added == 2
        total = combiner.open()
        require_mean(harness, total, {name: given[name] for name in good})
        assert total.weight == expected.weight
        atol = 2 * slack(WIDE, harness.tolerance, 4, expected.weight)
        np.testing.assert_allclose(total.mean, expected.mean, rtol=0, atol=atol)

    @pytest.mark.parametrize("division", DIVISIONS, ids=[" ".join(map(str, one)) for one in DIVISIONS])
    def test_subtotals_of_any_division_give_the_bits_of_single_updates_or_are_refused(
        self, opens: Opens, division: tuple[int, ...]
    ) -> None:
        """Added where owners share a process; refused, they leave the sum as it was for those who send their own."""
        harness, given = opens(NARROW, 2**17), updates(NARROW)
        combiner = harness.combiner()
        sealed = [harness.sealed(combiner, owner, given[owner]) for owner in OWNERS]
        for group in divided(sealed, division):
            before = combiner.n_added
            if is_taken(combiner, subtotal(group)):
                assert combiner.n_added == before + len(group)
            else:
                assert combiner.n_added == before
                for one in group:
                    combiner.add(one)
        total, expected = combiner.open(), opens(NARROW, 2**17).total(given)
        assert total.weighted_sum.tobytes() == expected.weighted_sum.tobytes()
        assert total.weight == expected.weight

    def test_a_protection_takes_all_subtotals_that_its_own_adder_makes_or_none(self, opens: Opens) -> None:
        harness, given = opens(NARROW, 2**17), updates(NARROW)
        taken = set()
        for round, group in enumerate((OWNERS[:1], OWNERS[1:3], OWNERS), start=1):
            combiner = harness.combiner(round)
            sealed = [harness.sealed(combiner, owner, given[owner], round) for owner in group]
            taken.add(is_taken(combiner, subtotal(sealed)))
        assert len(taken) == 1

    def test_a_subtotal_with_an_owner_that_may_not_add_leaves_the_sum_as_it_was(self, opens: Opens) -> None:
        """One that is in it already, one that was not asked, or one twice."""
        harness, given = opens(NARROW, 2**17), updates(NARROW)
        combiner = harness.combiner()
        first, *others = [harness.sealed(combiner, owner, given[owner]) for owner in OWNERS]
        combiner.add(first)
        for bad in (first, replace(others[2], owner="stranger"), others[0]):
            assert not is_taken(combiner, subtotal([*others[:2], bad]))
            assert combiner.n_added == 1
        for one in others:
            combiner.add(one)
        require_mean(harness, combiner.open(), given, NARROW)

    def test_a_misshapen_subtotal_leaves_the_sum_as_it_was(self, opens: Opens) -> None:
        harness, given = opens(NARROW, 2**17), updates(NARROW)
        combiner = harness.combiner()
        sealed = [harness.sealed(combiner, owner, given[owner]) for owner in OWNERS]
        whole = subtotal(sealed[:3])
        for payload in misshapen(whole.payload):
            assert not is_taken(combiner, replace(whole, payload=payload))
            assert combiner.n_added == 0
        for one in sealed:
            combiner.add(one)
        require_mean(harness, combiner.open(), given, NARROW)

    def test_sealing_does_not_change_the_update(self, harness: Harness) -> None:
        update, combiner = updates()["b/../c"], harness.combiner()
        before = update.delta.copy()
        harness.sealed(combiner, "b/../c", update)
        assert before.tobytes() == update.delta.tobytes()

    def test_a_second_update_of_an_owner_is_refused(self, harness: Harness) -> None:
        given, combiner = updates(), harness.combiner()
        answers = [harness.sealed(combiner, owner, update) for owner, update in given.items()]
        for answer in answers:
            combiner.add(answer)
            with pytest.raises(UpdateRefused):
                combiner.add(answer)
        assert combiner.n_added == len(OWNERS)
        require_mean(harness, combiner.open(), given)

    def test_an_update_of_a_stranger_is_refused(self, harness: Harness) -> None:
        """Whoever was not asked for, though the payload be a true one."""
        given, combiner = updates(), harness.combiner(owners=OWNERS[:4])
        answers = [harness.sealed(combiner, owner, given[owner]) for owner in OWNERS[:4]]
        for answer in answers[:3]:
            combiner.add(answer)
        for name in ("stranger", OWNERS[4]):
            with pytest.raises(UpdateRefused):
                combiner.add(replace(answers[3], owner=name))
        assert combiner.n_added == 3
        require_mean(harness, combiner.open(), {name: given[name] for name in OWNERS[:3]})

    def test_owners_are_sorted_and_nobody_is_lost_where_all_answer(self, harness: Harness) -> None:
        combiner = harness.combiner()
        assert list(combiner.owners) == sorted(OWNERS)
        assert dict(combiner.lost) == {}

    @pytest.mark.parametrize("owner", OWNERS)
    def test_an_owner_that_does_not_answer_is_lost_and_the_rest_is_summed(self, harness: Harness, owner: str) -> None:
        """Where the protection asks owners anything before they train."""
        harness.silent = {owner}
        given, combiner = updates(), harness.combiner()
        is_asked = owner in harness.asked
        assert set(combiner.lost) == ({owner} if is_asked else set())
        assert all(combiner.lost.values())
        assert list(combiner.owners) == sorted(set(OWNERS) - set(combiner.lost))
        del given[owner]
        for name, update in given.items():
            combiner.add(harness.sealed(combiner, name, update))
        require_mean(harness, combiner.open(), given)

    @pytest.mark.parametrize("owner", OWNERS)
    def test_an_owner_that_is_gone_before_its_update_came_is_left_out(self, harness: Harness, owner: str) -> None:
        given, combiner = updates(), harness.combiner()
        harness.silent = {owner}
        del given[owner]
        for name, update in given.items():
            combiner.add(harness.sealed(combiner, name, update))
        require_mean(harness, combiner.open(), given)
        assert combiner.n_added == len(OWNERS) - 1

    @pytest.mark.parametrize("owner", OWNERS)
    def test_an_owner_that_is_gone_after_its_update_came_is_in_the_sum(self, harness: Harness, owner: str) -> None:
        given, combiner = updates(), harness.combiner()
        for name, update in given.items():
            combiner.add(harness.sealed(combiner, name, update))
        harness.silent = {owner}
        require_mean(harness, combiner.open(), given)

    def test_an_owner_that_was_gone_for_a_round_is_back_in_the_next(self, harness: Harness) -> None:
        harness.silent = {"a"}
        first = harness.combiner(1)
        for name in first.owners:
            if name != "a":
                first.add(harness.sealed(first, name, updates()[name]))
        first.open()
        harness.silent = set()
        given = updates(seed=2)
        require_mean(harness, harness.total(given, 2), given)

    def test_too_few_updates_are_never_opened(self, harness: Harness) -> None:
        given, combiner = updates(), harness.combiner()
        fewest = combiner.record().min_owners
        assert fewest >= 1
        for name in OWNERS[: fewest - 1]:
            combiner.add(harness.sealed(combiner, name, given[name]))
        with pytest.raises(RoundAbandoned):
            combiner.open()
        assert combiner.record().outcome != "opened"

    def test_a_sum_that_no_owners_can_have_made_is_abandoned_and_recorded_so(self, opens: Opens) -> None:
        """Weights beyond what a cohort can weigh; each alone passes for one."""
        harness = opens(NARROW, WEIGHT_BOUND)
        combiner = harness.combiner()
        for name, update in updates(NARROW, weights=[WEIGHT_BOUND // 2] * 5).items():
            combiner.add(harness.sealed(combiner, name, update, weight_bound=WEIGHT_BOUND))
        with pytest.raises(RoundAbandoned, match="weight"):
            combiner.open()
        record = combiner.record()
        assert record.outcome == "abandoned"
        assert "weight" in record.reason

    def test_the_record_counts_what_happened(self, harness: Harness) -> None:
        combiner = harness.combiner()
        assert combiner.record().outcome == "empty"
        for position, (name, update) in enumerate(updates().items(), start=1):
            combiner.add(harness.sealed(combiner, name, update))
            assert combiner.n_added == position
        combiner.open()
        record = combiner.record()
        assert (record.outcome, record.reason) == ("opened", "")
        assert record.stages["asked"] == record.stages["updates"] == len(OWNERS)
        assert (record.bytes_up, record.bytes_down) == (harness.bytes_up, harness.bytes_down)
        assert 0 <= record.threshold <= len(OWNERS)

    def test_a_sealer_refuses_what_is_no_message(self, harness: Harness) -> None:
        for message in (b"", b"nonsense" * 9, b"fedray\x01", b"fedray\x01\xff", b"fedray\x63\x90"):
            with pytest.raises(ProtocolError):
                harness.sealers["a"].answer(message)
        given = updates()
        require_mean(harness, harness.total(given), given)


class ExactContract(ProtectionContract):
    """Of protections that sum the integers themselves."""

    @pytest.mark.parametrize("fixed_point", [WIDE, NARROW], ids=["wide", "narrow"])
    def test_the_sum_has_the_bits_of_the_plain_one(self, opens: Opens, fixed_point: FixedPoint) -> None:
        harness, plain = opens(fixed_point, 2**17), plain_harness(fixed_point, 2**17)
        assert harness.tolerance == plain.tolerance
        for round in (1, 2, 3):
            found, expected = (one.total(updates(fixed_point, round), round) for one in (harness, plain))
            assert found.weighted_sum.tobytes() == expected.weighted_sum.tobytes()
            assert found.weight == expected.weight

    def test_without_a_lost_owner_the_sum_has_the_bits_of_the_others_plain_one(self, opens: Opens) -> None:
        harness, plain, given = opens(WIDE, 2**17), plain_harness(WIDE, 2**17), updates()
        lost = given.pop("leuven ") and "leuven "
        combiner = harness.combiner()
        harness.silent = {lost}
        for name, update in given.items():
            combiner.add(harness.sealed(combiner, name, update))
        assert combiner.open().weighted_sum.tobytes() == plain.total(given).weighted_sum.tobytes()


def plain_harness(fixed_point: FixedPoint, weight_bound: int) -> Harness:
    """The protection that hides nothing."""
    sealers = {name: PlainSealer(fixed_point, SEED) for name in OWNERS}
    return Harness(sealers, PlainProtection(fixed_point, weight_bound), tolerance=1.0)


def misshapen(payload: np.ndarray) -> list[object]:
    """What is no payload of this sum."""
    return [
        payload[:-1],
        np.concatenate([payload, payload]),
        payload[None],
        payload[:0],
        payload.astype(np.float64),
        payload.astype(np.int64),
        payload.tolist(),
        None,
    ]
