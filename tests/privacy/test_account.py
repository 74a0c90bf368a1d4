"""The account is on disk before the noise is drawn, outlives its owner, and never says too little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray.errors import BudgetExhausted, DataError
from fedray.privacy.account import PrivacyAccount
from fedray.privacy.accounting import Release, spent

DELTA = 1e-5
RELEASE = Release(0.25, 1.0, 10)


def _account(path: Path, budget: float | None = None) -> PrivacyAccount:
    return PrivacyAccount(path, DELTA, budget)


def test_an_account_survives_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "account.jsonl"
    account = _account(path)
    assert account.spent.epsilon == 0.0
    for round in (1, 2, 3):
        account.charge(round, RELEASE)
    account.settle(3, 4)
    again = _account(path)
    assert again.releases == account.releases == (RELEASE, RELEASE, Release(0.25, 1.0, 4))
    assert again.spent == account.spent == spent([Release(0.25, 1.0, 24)], DELTA)
    again.charge(4, RELEASE)
    assert _account(path).spent == spent([Release(0.25, 1.0, 34)], DELTA)


def test_a_charge_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "account.jsonl"
    _account(path).charge(7, RELEASE)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"charge": 7, "q": 0.25, "z": 1.0, "n": 10}]


def test_settling_never_raises_a_charge(tmp_path: Path) -> None:
    account = _account(tmp_path / "a")
    account.charge(1, RELEASE)
    account.settle(1, 10)
    account.settle(1, 99)
    assert account.releases == (RELEASE,)
    account.settle(1, 0)
    assert account.spent.epsilon == 0.0
    assert _account(tmp_path / "a").spent.epsilon == 0.0


def test_what_would_overspend_is_refused_and_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    budget = spent([Release(0.25, 1.0, 25)], DELTA).epsilon
    account = _account(path, budget)
    account.charge(1, RELEASE)
    account.charge(2, RELEASE)
    before = path.read_bytes()
    with pytest.raises(BudgetExhausted, match="round 3"):
        account.charge(3, RELEASE)
    assert path.read_bytes() == before
    assert account.spent.epsilon <= budget
    account.charge(3, Release(0.25, 1.0, 5))
    with pytest.raises(BudgetExhausted):
        _account(path, budget).charge(4, Release(0.25, 1.0, 1))


def test_a_torn_last_line_loses_no_whole_line_and_the_file_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a"
    account = _account(path)
    account.charge(1, RELEASE)
    account.charge(2, RELEASE)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = _account(path)
        assert len(kept.releases) == (size >= first)
        kept.charge(3, Release(0.5, 2.0, 1))
        assert _account(path).releases == kept.releases


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"3",
        b"[]",
        b"null",
        b'"charge"',
        b"{}",
        b'{"charge": 1}',
        b'{"charge": 1, "q": "x", "z": 1, "n": 1}',
        b'{"settle": 1}',
        b'{"charge": 1, "q": 0.5, "z": 1, "n": -9}',
        b'{"charge": 1, "q": NaN, "z": 1, "n": 9}',
        b'{"charge": 1, "q": 0.5, "z": 0, "n": 9}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_corrupt_line_is_an_error_and_not_a_lower_figure(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a"
    _account(path).charge(1, RELEASE)
    for content in (line + b"\n" + path.read_bytes(), path.read_bytes() + line + b"\n" + path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="corrupt"):
            _account(path)
        assert path.read_bytes() == content
        path.write_bytes(b"")
        _account(path).charge(1, RELEASE)


def test_a_settlement_before_any_charge_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"settle": 1, "n": 0}\n')
    with pytest.raises(DataError, match="corrupt"):
        _account(tmp_path / "a")


@settings(deadline=None, max_examples=10)
@given(acts=st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.integers(1, 4), st.integers(0, 4)), max_size=3))
def test_charges_and_settlements_add_up(tmp_path_factory: pytest.TempPathFactory, acts: list) -> None:
    path = tmp_path_factory.mktemp("account") / "a"
    account, steps = _account(path), {1.0: 0, 2.0: 0}
    for round, (noise, planned, taken) in enumerate(acts):
        account.charge(round, Release(0.3, noise, planned))
        account.settle(round, taken)
        steps[noise] += min(planned, taken)
    expected = spent([Release(0.3, noise, n) for noise, n in steps.items()], DELTA)
    assert account.spent == expected == _account(path).spent
