"""Whoever drops out and whenever: a masked sum is opened with the bits of the plain one, or nothing is revealed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from masked_toys import (
    STAGES,
    Fork,
    Toy,
    quick_signatures,
    require_abandoned,
    require_nothing_learned,
    require_same,
    sealed,
)

from fedray.errors import RoundAbandoned
from fedray.protection.fixed_point import PIECE
from fedray.protection.masked.graph import Graph, Rules
from fedray.protection.masked.messages import AliveSigned
from fedray.protection.masked.server import MaskedCombiner

SUBSETS = [frozenset(chosen) for size in range(6) for chosen in itertools.combinations(range(5), size)]


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with quick_signatures():
        yield


@pytest.mark.parametrize("stage", STAGES)
def test_every_set_of_survivors_of_five(stage: str, tmp_path: Path) -> None:
    for case, kept in enumerate(SUBSETS):
        toy = Toy(tmp_path / str(case), weight_bound=100)
        toy.gone = {name: stage for at, name in enumerate(toy.names) if at not in kept}
        if len(kept) >= 3:
            alive = toy.require_exact()
            late = stage in ("signed", "revealed")
            assert alive == (toy.names if late else [name for name in toy.names if name not in toy.gone])
        else:
            require_abandoned(toy, toy.uploaded())
            assert stage == "revealed" or not toy.revealed()
        toy.gone, toy.said = {}, []
        assert toy.require_exact(2) == toy.names


def test_every_mixture_of_stages_at_which_five_may_drop_out(tmp_path: Path) -> None:
    """All 7**5 of them, but for those that leave too few before any update is sent."""
    for case, early in enumerate(itertools.product(("keys", "shares", "receipts", ""), repeat=5)):
        toy = Toy(tmp_path / str(case))
        toy.gone = {name: stage for name, stage in zip(toy.names, early, strict=True) if stage}
        if len(toy.gone) > 2:
            continue
        threshold = (5 - early.count("keys")) // 2 + 1
        fork = Fork(toy)
        owners = list(fork.combiner.owners)
        assert owners == [name for name in toy.names if name not in toy.gone]
        expected = {}
        for late in itertools.product(("updates", "signed", "revealed", ""), repeat=len(owners)):
            gone = {name: stage for name, stage in zip(owners, late, strict=True) if stage}
            uploads = tuple(name for name in owners if gone.get(name) != "updates")
            combiner, n_left = fork.played(uploads, gone), len(owners) - len(gone)
            try:
                total = combiner.open()
            except RoundAbandoned:
                assert n_left < max(threshold, 3)
                assert late.count("revealed") + n_left >= threshold or not toy.revealed()
                require_nothing_learned(toy, threshold)
                continue
            assert n_left >= threshold
            assert len(uploads) >= 3
            if uploads not in expected:
                expected[uploads] = toy.plain(uploads)
            require_same(total, expected[uploads])


def test_a_thousand_random_sets_of_twenty(tmp_path: Path) -> None:
    draws = np.random.default_rng(20)
    n_opened = n_abandoned = 0
    for case in range(10):
        toy = Toy(tmp_path / str(case), n=20, n_values=2)
        early = draws.choice(toy.names, size=case // 2, replace=False)
        toy.gone = {str(name): str(draws.choice(["keys", "shares", "receipts"])) for name in early}
        n_keys = sum(stage != "keys" for stage in toy.gone.values()) + 20 - len(early)
        fork = Fork(toy)
        owners = list(fork.combiner.owners)
        assert owners == [name for name in toy.names if name not in toy.gone]
        threshold = n_keys // 2 + 1
        for _ in range(100):
            survivors = {
                str(name) for name in draws.permutation(owners)[: draws.integers(threshold - 1, len(owners) + 1)]
            }
            gone = {
                name: str(draws.choice(["updates", "signed", "revealed"])) for name in owners if name not in survivors
            }
            uploads = [str(name) for name in draws.permutation(owners) if gone.get(str(name)) != "updates"]
            combiner = fork.played(uploads, gone)
            if len(survivors) >= threshold:
                require_same(combiner.open(), toy.plain(uploads))
                n_opened += 1
            else:
                with pytest.raises(RoundAbandoned):
                    combiner.open()
                require_nothing_learned(toy, threshold)
                n_abandoned += 1
    assert n_opened + n_abandoned == 1000
    assert min(n_opened, n_abandoned) > 50


def _can_open(graph: Graph, owners: list[str], revealing: set[str]) -> bool:
    return all(graph.is_enough(revealing, name) for name in owners)


@pytest.mark.parametrize(
    ("rules", "degree", "threshold"), [(Rules(), 54, 28), (Rules(corrupt=0.05, dropouts=0.05), 28, 15)]
)
def test_random_sets_of_sixty_on_the_regular_graph(rules: Rules, degree: int, threshold: int, tmp_path: Path) -> None:
    draws = np.random.default_rng(degree)
    toy = Toy(tmp_path, n=60, rules=rules, n_values=2)
    fork = Fork(toy)
    graph = fork.combiner._graph
    assert (graph.degree, graph.threshold) == (degree, threshold)
    outcomes = []
    for n_gone in (0, 3, 6, 12, 12, 24, 24, 28, 30, 36, 45):
        gone = {str(name): str(draws.choice(["updates", "revealed"])) for name in draws.permutation(toy.names)[:n_gone]}
        uploads = [name for name in toy.names if gone.get(name) != "updates"]
        combiner = fork.played(uploads, gone)
        if _can_open(graph, toy.names, set(toy.names) - set(gone)):
            require_same(combiner.open(), toy.plain(uploads))
            outcomes.append(True)
        else:
            require_abandoned_somewhere(combiner)
            outcomes.append(False)
    assert all(outcomes[:3])
    assert not outcomes[-1]


def require_abandoned_somewhere(combiner: MaskedCombiner) -> None:
    with pytest.raises(RoundAbandoned):
        combiner.open()
    assert combiner.record().outcome == "abandoned"


def test_dropouts_before_keys_and_shares_on_the_regular_graph(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=60, rules=Rules(corrupt=0.05, dropouts=0.05))
    toy.gone = {"o03": "keys", "o17": "shares", "o18": "receipts", "o40": "updates", "o59": "revealed"}
    assert toy.require_exact() == [name for name in toy.names if name not in ("o03", "o17", "o18", "o40")]


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_a_server_that_may_lie_needs_more_than_two_thirds(n: int, tmp_path: Path) -> None:
    threshold = 2 * n // 3 + 1
    toy = Toy(tmp_path, n=n, rules=Rules(server="may_lie"), enrolled=True)
    toy.gone = dict.fromkeys(toy.names[: n - threshold], "updates")
    assert len(toy.require_exact()) == threshold
    toy.gone = dict.fromkeys(toy.names[: n - threshold + 1], "updates")
    toy.said = []
    combiner = toy.uploaded(2)
    require_abandoned(toy, combiner)
    assert not toy.revealed()
    assert not list(toy.answers(AliveSigned))
    assert "too few holders left" in combiner.record().reason or threshold - 1 < 3


@pytest.mark.parametrize("min_owners", [3, 4, 5])
@pytest.mark.parametrize("stage", ["keys", "shares", "receipts", "updates"])
def test_no_sum_of_fewer_than_min_owners(min_owners: int, stage: str, tmp_path: Path) -> None:
    toy = Toy(tmp_path, rules=Rules(min_owners=min_owners))
    toy.gone = dict.fromkeys(toy.names[min_owners:], stage)
    assert len(toy.require_exact()) == min_owners
    toy.gone, toy.said = dict.fromkeys(toy.names[min_owners - 1 :], stage), []
    combiner = toy.uploaded(2)
    require_abandoned(toy, combiner)
    assert not toy.revealed()
    assert f"{min_owners - 1} owners" in combiner.record().reason or min_owners == 3


def test_an_abandoned_round_takes_no_updates(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.gone = dict.fromkeys(toy.names[2:], "shares")
    combiner = toy.prepared()
    assert list(combiner.owners) == []
    assert set(combiner.lost) == set(toy.names[2:])
    require_abandoned(toy, combiner)


@pytest.mark.parametrize("n_values", [1, PIECE - 5, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7])
@pytest.mark.parametrize("precision", [2.0**-10, 2.0**-17])
def test_vectors_of_any_length_in_both_rings(n_values: int, precision: float, tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=4, n_values=n_values, precision=precision)
    assert toy.fixed_point.ring is (np.uint16 if precision > 2.0**-16 else np.uint32)
    toy.gone = {"o01": "updates"}
    assert toy.require_exact() == ["o00", "o02", "o03"]


def test_rounds_prepared_ahead_do_not_disturb_each_other(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    current = toy.uploaded(1)
    following = toy.prepared(2)
    require_same(current.open(), toy.plain(toy.names, 1))
    assert following.owners == toy.names
    toy.gone = {"o04": "keys"}
    other_cohort = toy.prepared(2)
    for name in other_cohort.owners:
        other_cohort.add(sealed(name, 2, toy.seal(other_cohort, name, 2)))
    require_same(other_cohort.open(), toy.plain(toy.names[:4], 2))


def test_an_upload_is_no_larger_than_float32_and_the_protocol_is_small(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=10, n_values=100_000, clip=8.0, precision=1e-5)
    combiner = toy.prepared()
    payloads = {name: toy.seal(combiner, name) for name in toy.names}
    assert all(payload.nbytes <= 1.01 * toy.updates["o00"].delta.nbytes for payload in payloads.values())
    combiner = toy.uploaded(2)
    combiner.open()
    record = combiner.record()
    assert record.neighbours == 9
    assert record.bytes_up / 10 / record.neighbours <= 200


def test_the_protocol_is_small_with_many_owners(tmp_path: Path) -> None:
    toy = Toy(tmp_path, n=60)
    combiner = toy.uploaded()
    combiner.open()
    record = combiner.record()
    assert record.neighbours == 54
    assert record.bytes_up / 60 / 54 <= 200
