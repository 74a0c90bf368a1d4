"""A server's state goes through a file, and a run goes on from it as if it had never stopped."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from toys import MASKED, MODELS, federation, shard, torch_task

from fedray.build import open_federation
from fedray.config import Experiment
from fedray.errors import RecordsError
from fedray.federation import ServerState
from fedray.pools import InProcessCohort
from fedray.rounds import federate
from fedray.spending import Spending
from fedray.states import load_state, save_state
from fedray.strategies import FedAvg, FedProx
from fedray.values import Spent, Work, sha256

STATE = ServerState(
    round=3,
    vector=np.array([1.5, -2.0, np.float32(1e-30)], dtype=np.float32),
    strategy={"velocity": np.array([1 / 3, 0.0]), "strategy.odd": np.zeros(0)},
    mechanism={"clip": np.array([0.1]), "noise.ring": np.array([[1e-300, -2.0], [3.0, 4.0]]), "velocity": np.ones(1)},
    spending=Spending(
        spent={
            "a": Spent(1.25, "PLD", 1.5, 1e-5, '[{"count":3}]'),
            "ö/b": Spent(float("inf"), "RDP", float("inf"), 1e-6),
        },
        asked={"a": 3},
        lost=frozenset({"b", "ö/b"}),
        exhausted=frozenset({"c"}),
    ),
    barren=2,
    is_exhausted=True,
)


def _same(one: ServerState, other: ServerState) -> bool:
    return (
        (one.round, one.barren, one.is_exhausted) == (other.round, other.barren, other.is_exhausted)
        and one.spending == other.spending
        and _same_arrays({"vector": one.vector}, {"vector": other.vector})
        and _same_arrays(one.strategy, other.strategy)
        and _same_arrays(one.mechanism, other.mechanism)
    )


def _same_arrays(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return set(one) == set(other) and all(
        (array.tobytes(), array.dtype, array.shape) == (other[name].tobytes(), other[name].dtype, other[name].shape)
        for name, array in one.items()
    )


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", STATE)
    assert _same(load_state(tmp_path / "state.safetensors"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_what_the_charges_were_of_is_kept_beside_epsilon(tmp_path: Path) -> None:
    save_state(tmp_path / "s", STATE)
    found = load_state(tmp_path / "s").spending.spent
    assert {name: spent.charges for name, spent in found.items()} == {"a": '[{"count":3}]', "ö/b": ""}


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_past_noise_is_readable_by_its_user_alone(tmp_path: Path, umask: int) -> None:
    """Also where an older file is written over; whoever knew the noise could take it off the models."""
    path = tmp_path / "s"
    path.touch(0o644)
    before = os.umask(umask)
    try:
        save_state(path, STATE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_past_noise_is_at_no_time_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while it is written, nor where a writer that was killed has left a part."""
    modes: list[int] = []
    replace = os.replace

    def watched(path: Path, target: Path) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        replace(path, target)

    monkeypatch.setattr(os, "replace", watched)
    (tmp_path / "s.partial").touch(0o644)
    save_state(tmp_path / "s", STATE)
    assert modes == [0o600]


@settings(deadline=None, max_examples=25)
@given(
    vector=arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(width=32)),
    velocity=arrays.arrays(np.float64, st.integers(0, 9)),
    noise=arrays.arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(0, 4))),
    round=st.integers(0, 2**40),
    epsilon=st.floats(0, 1e9) | st.just(float("inf")),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_any_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    vector: Any,
    velocity: Any,
    noise: Any,
    round: int,
    epsilon: float,
    flags: tuple[bool, bool],
) -> None:
    path = tmp_path_factory.mktemp("state") / "s"
    named = frozenset({"x"})
    spending = Spending(
        {"x": Spent(epsilon, "PLD", epsilon, 1e-5)},
        {"x": 2},
        named if flags[0] else frozenset(),
        named if flags[1] else frozenset(),
    )
    state = ServerState(round, vector, {"velocity": velocity}, {"noise": noise}, spending, 0, flags[1])
    save_state(path, state)
    assert _same(load_state(path), state)


def test_a_state_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_state(path, STATE)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordsError, match="cannot be read"):
            load_state(path)


@pytest.mark.parametrize("facts", [None, "{}", "[]", "nonsense", '{"round": 1, "barren": 0, "spent": {"a": {"x": 1}}}'])
def test_a_file_of_other_arrays_is_an_error(tmp_path: Path, facts: str | None) -> None:
    metadata = None if facts is None else {"fedray": facts}
    safetensors.numpy.save_file({"vector": np.zeros(2, np.float32)}, tmp_path / "s", metadata)
    with pytest.raises(RecordsError):
        load_state(tmp_path / "s")


def test_a_missing_state_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RecordsError):
            load_state(path)


@pytest.mark.parametrize(
    "strategy",
    [FedAvg(Work(2, "epochs"), server_lr=0.7, server_momentum=0.9), FedProx(Work(2, "epochs"), mu=0.5)],
    ids=["momentum", "fedprox"],
)
@pytest.mark.parametrize("model", ["mlp", "batchnorm"])
def test_a_run_goes_on_from_any_round_to_the_same_bits(strategy: Any, model: str, tmp_path: Path) -> None:
    shards = {name: shard(n, 3, MODELS[model][1], seed=n) for name, n in (("a", 9), ("b", 6), ("c", 12))}
    _require_same_bits_from_any_round(partial(_parts, model, shards, strategy, size=2), tmp_path)


def test_a_masked_run_goes_on_from_any_round_to_the_same_bits(tmp_path: Path) -> None:
    """Each part is a run of its own to its owners: keys and round numbers begin anew, and the model does not."""
    shards = {name: shard(5 + n, 3, seed=n) for n, name in enumerate("abcdef")}
    strategy = FedProx(Work(2, "epochs"), mu=0.5)
    opened = iter(range(100))

    def parts() -> Any:
        folder = tmp_path / f"owners-{next(opened)}"
        return _parts("mlp", shards, strategy, size=5, section=MASKED, folder=folder)

    _require_same_bits_from_any_round(parts, tmp_path)
    plain = list(federate(_parts("mlp", shards, strategy, size=5)))
    assert [r.parameters_sha256 for _, r in plain] == [r.parameters_sha256 for _, r in federate(parts())]


def _parts(model: str, shards: Any, strategy: Any, *, size: int, **protection: Any) -> Any:
    return federation(
        lambda: torch_task(model),
        shards,
        strategy,
        rounds=4,
        cohort={"name": "fixed", "size": size},
        train={"epochs": 2},
        stragglers={"fraction": 0.3},
        **protection,
    )


def _require_same_bits_from_any_round(parts: Any, folder: Path) -> None:
    whole = list(federate(parts()))
    assert all(record.sum.outcome == "opened" for _, record in whole)
    for state, record in whole[:-1]:
        save_state(folder / "s", state)
        rest = list(federate(parts(), load_state(folder / "s")))
        assert [r.round for _, r in rest] == list(range(record.round + 1, 5))
        assert [r.parameters_sha256 for _, r in rest] == [r.parameters_sha256 for _, r in whole[record.round :]]
        assert _same(rest[-1][0], whole[-1][0])


def test_a_private_run_goes_on_with_what_its_owners_have_spent(tmp_path: Path) -> None:
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits", "owners": 3, "split": "iid"},
            "model": "logistic",
            "train": {"batch_size": 200},
            "rounds": 3,
            "privacy": {"name": "example", "noise_multiplier": 2.0, "unsafe_replay_seed": 1},
        }
    )
    whole = list(federate(open_federation(experiment, InProcessCohort, tmp_path / "whole")))
    first = federate(open_federation(experiment, InProcessCohort, tmp_path / "parts"))
    state, _ = next(first)
    save_state(tmp_path / "s", state)
    rest = list(federate(open_federation(experiment, InProcessCohort, tmp_path / "parts"), load_state(tmp_path / "s")))
    assert sha256(rest[-1][0].vector) == sha256(whole[-1][0].vector)
    assert [r.epsilon for _, r in rest] == [r.epsilon for _, r in whole[1:]]
    assert {r.sum.protection for _, r in (*whole, *rest)} == {"masked"}
    assert {r.n_updates for _, r in (*whole, *rest)} == {3}
