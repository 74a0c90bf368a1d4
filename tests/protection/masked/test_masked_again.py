"""A server that was lost in the middle of a round does it again: it gets the same sum, and never another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from masked_toys import (
    MAY_LIE,
    OTHER_RUN,
    RUN,
    STAGES,
    VECTOR,
    LyingServer,
    Toy,
    plan,
    refused,
    require_abandoned,
    require_same,
)

from fedray.errors import RoundAbandoned
from fedray.protection.masked.graph import Graph, Rules
from fedray.protection.masked.messages import Invite
from fedray.values import Update

A, B, C, D, E = ALL = [f"o0{number}" for number in range(5)]
THIRD_RUN = bytes(range(32, 48))
OTHER_LIST = "for other owners than before the server was lost"


@pytest.fixture(params=[Rules(), MAY_LIE], ids=["honest", "may_lie"])
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Toy:
    return Toy(tmp_path, rules=request.param, enrolled=True)


def lost(toy: Toy, stage: str, names: Sequence[str] = ALL) -> LyingServer:
    """A server that is lost before this stage is over."""
    server = LyingServer(toy).at(stage)
    for name in names:
        match stage:
            case "updates":
                server.seal(name)
            case "signed":
                server.sign(name)
            case "revealed":
                server.reveal(name)
    return server


# The same sum


@pytest.mark.parametrize("restarted", [[], [A], ALL], ids=["none", "one", "all"])
@pytest.mark.parametrize("n_done", [0, 2, 5])
@pytest.mark.parametrize("stage", STAGES)
def test_wherever_the_server_was_lost_the_same_owners_give_the_same_bits(
    stage: str, n_done: int, restarted: list[str], toy: Toy
) -> None:
    lost(toy, stage, ALL[:n_done])
    toy.restart(OTHER_RUN, restarted)
    assert toy.require_exact() == ALL


def test_a_round_that_was_opened_gives_the_same_bits_again_and_again(toy: Toy) -> None:
    first, _ = toy.opened()
    for number in range(10):
        toy.restart(bytes([number] * 16))
        again, alive = toy.opened()
        require_same(again, first)
        assert alive == ALL


def test_rounds_are_done_again_from_an_earlier_one_on(toy: Toy) -> None:
    before = [toy.opened(number)[0] for number in (1, 2, 3)]
    toy.restart()
    for number, total in enumerate(before, start=1):
        require_same(toy.opened(number)[0], total)
    assert toy.require_exact(4) == ALL


def test_who_was_not_in_the_first_sum_and_stays_away_changes_nothing(toy: Toy) -> None:
    toy.gone = {E: "updates"}
    first, alive = toy.opened()
    toy.restart()
    again, _ = toy.opened()
    require_same(again, first)
    assert alive == [A, B, C, D]


# Another sum


@pytest.mark.parametrize("stage", ["keys", "shares", "receipts", "updates"])
@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_list_with_one_owner_less_is_not_opened(stage: str, is_restarted: bool, toy: Toy) -> None:
    toy.require_exact()
    toy.restart(OTHER_RUN, ALL if is_restarted else [])
    toy.gone, toy.said = {E: stage}, []
    require_abandoned(toy, toy.uploaded())
    assert not toy.revealed()


def test_a_list_with_one_owner_more_is_not_opened(toy: Toy) -> None:
    toy.gone = {E: "updates"}
    assert toy.require_exact() == [A, B, C, D]
    toy.restart()
    toy.gone, toy.said = {}, []
    require_abandoned(toy, toy.uploaded())
    assert not toy.revealed()


def test_each_owner_of_the_first_sum_refuses_another_list_and_signs_the_same(toy: Toy) -> None:
    toy.require_exact()
    toy.restart()
    server = LyingServer(toy, run=OTHER_RUN).at("signed")
    for name in ALL:
        for other in combinations(ALL, 4):
            if name in other:
                with refused(OTHER_LIST):
                    server.sign(name, other)
    server.sign_all()
    assert all(set(server.reveal(name).of_self_masks) == set(ALL) for name in ALL)


@pytest.mark.parametrize("stage", ["keys", "shares", "receipts", "updates"])
def test_a_sum_that_was_never_opened_may_be_opened_for_other_owners(stage: str, toy: Toy) -> None:
    lost(toy, stage)
    toy.restart()
    toy.gone = {E: "updates"}
    assert toy.require_exact() == [A, B, C, D]


@pytest.mark.parametrize("n_signed", range(6))
def test_two_lists_of_a_round_are_never_both_signed_by_enough(n_signed: int, toy: Toy) -> None:
    """However many had signed when the server was lost: if they were enough, the rest are too few, and vice versa."""
    server = lost(toy, "signed", ALL[:n_signed])
    toy.restart()
    toy.gone, toy.said = {E: "updates"}, []
    combiner = toy.uploaded()
    if 4 - n_signed >= server.graph.threshold:
        require_same(combiner.open(), toy.plain([A, B, C, D]))
        assert n_signed < server.graph.threshold
    else:
        require_abandoned(toy, combiner)
        assert not toy.revealed()


def test_an_abandoned_round_is_no_loss_for_the_next(toy: Toy) -> None:
    toy.require_exact()
    toy.restart()
    toy.gone = {E: "updates"}
    with pytest.raises(RoundAbandoned):
        toy.opened()
    assert toy.require_exact(2) == [A, B, C, D]


# Another update of the same owner


def test_a_round_is_not_sealed_again_on_other_terms(toy: Toy) -> None:
    toy.require_exact()
    toy.restart()
    server = LyingServer(toy, run=OTHER_RUN).at("updates")
    for asked in ({"vector": VECTOR + 1}, {"weight_bound": 2}, {"plan": replace(plan(1), proximal_mu=1.0)}):
        with refused("another model or plan"):
            server.seal(A, **asked)
    assert len(server.seal(A)) == toy.fixed_point.length


@pytest.mark.parametrize("stage", ["updates", "revealed"])
def test_an_update_that_was_cut_at_another_step_is_not_sealed_again(stage: str, toy: Toy) -> None:
    """Two sums over the same owners, of which one trained less the second time, differ by what it left out."""
    lost(toy, stage)
    toy.restart()
    server = LyingServer(toy, run=OTHER_RUN).at("updates")
    for n_steps in (0, 2):
        with refused(f"{n_steps} steps of training"):
            server.seal(A, update=replace(toy.updates[A], n_steps=n_steps, is_complete=False))
    assert len(server.seal(A)) == toy.fixed_point.length


def test_an_update_with_fresh_noise_is_sealed_again(toy: Toy) -> None:
    """It is charged again; the two sums differ by the noise of all owners."""
    toy.require_exact()
    toy.restart()
    draws = np.random.default_rng(1)
    toy.updates = {
        name: Update((one.delta * draws.uniform(0.5, 1, len(one.delta))).astype(np.float32), one.weight, 1, True)
        for name, one in toy.updates.items()
    }
    assert toy.require_exact() == ALL


# Two servers, and two processes of every owner, at once


def test_the_old_server_gets_nothing_signed_once_owners_have_sealed_for_the_new_one(toy: Toy) -> None:
    old = LyingServer(toy).at("signed")
    before = dict(toy.sealers)
    toy.restart()
    new = LyingServer(toy, run=OTHER_RUN).at("signed")
    after, toy.sealers = toy.sealers, before
    for names in (ALL, [A, B, C, D]):
        with refused("not sealed for this server last"):
            old.sign(A, names)
    toy.sealers = after
    new.sign_all()
    assert all(new.reveal(name).of_self_masks for name in ALL)


def test_what_the_old_server_had_signed_is_all_that_the_new_one_gets(toy: Toy) -> None:
    """Shares that the old server still has revealed open the same sum."""
    old = LyingServer(toy).at("revealed")
    before = dict(toy.sealers)
    toy.restart()
    new = LyingServer(toy, run=OTHER_RUN).at("signed")
    with refused(OTHER_LIST):
        new.sign(A, [A, B, C, D])
    new.sign_all()
    after, toy.sealers = toy.sealers, before
    assert set(old.reveal(A).of_self_masks) == set(ALL)
    toy.sealers = after
    assert set(new.reveal(A).of_self_masks) == set(ALL)


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_server_that_calls_itself_by_an_older_name_gets_no_round_again(is_restarted: bool, toy: Toy) -> None:
    """Else signatures on lists of its first time would count in its second."""
    LyingServer(toy).at("signed")
    toy.restart(OTHER_RUN, ALL if is_restarted else [])
    LyingServer(toy, run=OTHER_RUN).at("signed")
    for run in (RUN, OTHER_RUN):
        with refused("round 1 again"):
            LyingServer(toy, run=run).ask(A, Invite(run, 1))


def test_what_was_kept_for_another_server_is_forgotten(toy: Toy) -> None:
    LyingServer(toy, 5).at("updates")
    LyingServer(toy, 4).at("keys")
    toy.restart(OTHER_RUN, [])
    LyingServer(toy, 3, run=OTHER_RUN).invite()
    assert [list(sealer._rounds) for sealer in toy.sealers.values()] == [[3]] * 5


# On the sparse graph, which is another one for each server


@pytest.fixture
def sparse(tmp_path: Path) -> Toy:
    toy = Toy(tmp_path, n=60, rules=Rules(corrupt=0.05, dropouts=0.05))
    first, second = (toy.rules.graph(run, 1, toy.names) for run in (RUN, OTHER_RUN))
    assert first.degree < 59
    assert first.neighbours(A) != second.neighbours(A)
    return toy


def test_on_another_graph_the_same_owners_give_the_same_bits(sparse: Toy) -> None:
    first, _ = sparse.opened()
    sparse.restart()
    again, alive = sparse.opened()
    require_same(again, first)
    assert alive == sparse.names


@pytest.mark.parametrize("n_signed", [30, 45, 60])
def test_on_another_graph_two_lists_are_not_both_opened(n_signed: int, sparse: Toy) -> None:
    lost(sparse, "signed", sparse.names[:n_signed])
    sparse.restart()
    sparse.gone, sparse.said = {sparse.names[-1]: "updates"}, []
    require_abandoned(sparse, sparse.uploaded())
    assert not sparse.revealed()


@pytest.mark.parametrize(("n", "degree", "threshold"), [(9, 2, 2), (10, 4, 3), (11, 4, 4), (12, 6, 4), (7, 6, 4)])
def test_whichever_the_graph_a_sum_takes_more_than_half_of_its_owners(n: int, degree: int, threshold: int) -> None:
    """Found by trying all sets: none of n t / (k + 1) owners or fewer holds enough shares of everyone's secrets."""
    graph = Graph([f"o{number:02}" for number in range(n)], degree, threshold)
    holders = [set(graph.holders(name)) for name in graph.names]
    enough = [
        size
        for size in range(n + 1)
        if any(
            all(len(one & set(chosen)) >= threshold for one in holders) for chosen in combinations(graph.names, size)
        )
    ]
    assert enough[0] >= n * threshold / (degree + 1) > n / 2
