"""Which rows are common, in which order, and who is told what of it; against sets and joins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vertical_toys import Talk, names, people, ready, table

from fedray.errors import ConfigError, DataError, ProtocolError
from fedray.protection.wire import encode
from fedray.vertical.aligning import common_rows
from fedray.vertical.messages import Intersect, Intersected, Rows
from fedray.vertical.plans import AlignPlan

KEY = bytes(32)


def owners_of(held: dict[str, set[int]]) -> dict[str, dict[str, object]]:
    """Owners with these people, whose only column is the person's number."""
    return {
        name: table(np.array(sorted(rows, reverse=True)), number=np.array(sorted(rows, reverse=True), dtype=np.float32))
        for name, rows in held.items()
    }


def aligned_numbers(talk: Talk, owner: str) -> list[int]:
    """The person's number in each common row, as the owner's own rows have it; -1 where it lacks the row."""
    rows = talk.owners[owner]._common.rows
    numbers = talk.owners[owner]._features[:, 0]
    return [int(numbers[row]) if row >= 0 else -1 for row in rows]


people_of = st.sets(st.integers(0, 30), min_size=1)


@settings(max_examples=30, deadline=None)
@given(bank=people_of, shop=people_of, labelled=people_of, is_allowed=st.booleans())
def test_common_rows_are_those_of_set_intersection_and_in_one_order_for_all(
    bank: set[int], shop: set[int], labelled: set[int], is_allowed: bool
) -> None:
    labelled = labelled | {31, 32}
    labels = table(np.array(sorted(labelled)), label=np.array(sorted(labelled)) % 2)
    talk = Talk(owners_of({"bank": bank | {31, 32}, "shop": shop | {31, 32}}), labels)
    bank, shop = bank | {31, 32}, shop | {31, 32}
    found = talk.aligned(AlignPlan("allow" if is_allowed else "drop", 0.0))
    expected = labelled & ((bank | shop) if is_allowed else (bank & shop))
    in_order = [int(talk.holder._table.ids[row].rpartition(" ")[2]) for row in talk.holder._rows]
    assert sorted(in_order) == sorted(expected)
    assert found.n_train == len(expected)
    assert found.n_shared == {"bank": len(labelled & bank), "shop": len(labelled & shop)}
    for name, held in (("bank", bank), ("shop", shop)):
        assert aligned_numbers(talk, name) == [one if one in held else -1 for one in in_order]


def test_an_owner_is_told_its_own_rows_and_for_others_random_bytes() -> None:
    """Pointers to rows that it lacks differ from run to run, and match nothing."""
    told = []
    for _ in range(2):
        talk = Talk(owners_of({"bank": {1, 2, 3}, "shop": {3, 4, 5}}), table(np.arange(6), label=np.arange(6) % 2))
        talk.aligned(AlignPlan("allow", 0.0))
        told.append({name: message.pointers for name, message in talk.heard(Rows)})
        assert sorted(aligned_numbers(talk, "bank")) == [-1, -1, 1, 2, 3]
    first, second = ({one["bank"][start : start + 16] for start in range(0, 80, 16)} for one in told)
    assert not first & second


def test_the_order_follows_from_seed_and_all_ids_and_from_no_label() -> None:
    """One person more, whom no owner has, gives another order: an owner could not sort by a hash that it can compute.

    Other labels do not: under label privacy they must move nothing that an owner sees.
    """
    owners = owners_of({"bank": set(range(40)), "shop": set(range(20))})
    orders = []
    for seed, n, shift in ((0, 40, 0), (0, 40, 1), (1, 40, 0), (0, 41, 0)):
        talk = Talk(owners, table(np.arange(n), label=(np.arange(n) + shift) % 2), seed=seed)
        talk.aligned(AlignPlan("allow", 0.0))
        orders.append(tuple(aligned_numbers(talk, "bank")))
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3


def test_a_share_is_held_out_or_the_rows_that_the_label_holder_names() -> None:
    owners = owners_of({"bank": set(range(50))})
    talk = Talk(owners, table(np.arange(50), label=np.arange(50) % 2))
    found = talk.aligned(AlignPlan(holdout=0.3))
    assert (found.n_train, found.n_holdout) == (35, 15)
    is_test = np.arange(50) % 5 == 0
    talk = Talk(owners, table(np.arange(50), label=np.arange(50) % 2, test=is_test), target="label")
    found = talk.aligned(AlignPlan(holdout="test"))
    assert (found.n_train, found.n_holdout) == (40, 10)
    assert {one % 5 for one in aligned_numbers(talk, "bank")[40:]} == {0}
    assert talk.holder._batches.batch("holdout", 0, 0, 99).tolist() == list(range(40, 50))


def test_cardinality_alone_is_told_once_and_shows_no_row() -> None:
    tables, labels = people(40, lacking=15)
    talk = Talk(tables, labels)
    talk.holder.meet()
    assert talk.holder.count() == {"bank": 25, "shop": 25}
    assert not talk.heard(Rows)
    with pytest.raises(ProtocolError, match="second intersection"):
        talk.holder.count()
    talk.holder.align(AlignPlan())
    with pytest.raises(ProtocolError, match="second intersection"):
        talk.holder.align(AlignPlan())


def test_an_owner_takes_one_order_of_whole_pointers_only() -> None:
    talk = ready()
    (_, rows), *_ = talk.heard(Rows)
    for wrong in (rows, Rows(bytes(17), 1), Rows(bytes(32), 5)):
        with pytest.raises(ProtocolError):
            talk.owners["bank"].answer(encode(wrong))


def test_a_request_is_read_by_whom_it_was_made_for_only() -> None:
    """Keys are each pair's own: what one owner was asked matches nobody at another."""
    talk = Talk(*people(30))
    talk.holder.meet()
    ask = talk.holder._line._ask

    def crossed(messages: dict[str, bytes]) -> dict[str, bytes]:
        return ask({"bank": messages["shop"], "shop": messages["bank"]})

    talk.holder._line._ask = crossed  # type: ignore[assignment]
    assert talk.holder.count() == {"bank": 0, "shop": 0}


@pytest.mark.parametrize(
    ("held", "found"),
    [({"bank": {7}, "shop": {0, 1, 2}}, "'bank' shares"), ({"bank": {0}, "shop": {1}}, "none of them to train on")],
)
def test_too_few_common_rows_are_one_clear_error(held: dict[str, set[int]], found: str) -> None:
    talk = Talk(owners_of(held), table(np.arange(4), label=np.arange(4) % 2))
    with pytest.raises(DataError, match=found):
        talk.aligned()


@pytest.mark.parametrize("plan", [{"missing": "ignore"}, {"holdout": 1.0}, {"holdout": -0.1}])
def test_a_plan_out_of_range_is_refused(plan: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AlignPlan(**plan)  # type: ignore[arg-type]


def test_rows_are_divided_as_written_down_here() -> None:
    """By hand: rows 0 to 5, of which the bank shares 0 to 4 and the shop 2 to 5."""
    shared = {"bank": np.arange(5), "shop": np.arange(2, 6)}
    both = common_rows(shared, names(6), "drop", 0.0, KEY)
    assert sorted(both.rows.tolist()) == [2, 3, 4]
    some = common_rows(shared, names(6), "allow", np.array([True, False] * 3), KEY)
    assert sorted(some.rows[: some.n_train].tolist()) == [1, 3, 5]
    assert sorted(some.rows[some.n_train :].tolist()) == [0, 2, 4]


def test_intersections_leave_the_label_holder_with_no_message_of_plain_ids() -> None:
    talk = ready(n=30)
    spoken = b"".join(message + answer for _, message, answer in talk.said).lower()
    assert talk.heard(Intersect)
    assert talk.heard(Intersected)
    assert b"person" not in spoken
    assert torch.is_tensor(talk.owners["bank"]._features)
