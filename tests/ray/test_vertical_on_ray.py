"""Vertical learning between actors: the bits of one process, who holds what, and what becomes of a lost party."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle

import fedray
from fedray.actors import vertical
from fedray.errors import ConfigError, DataError, ProtocolError, ResourcesError, RunError
from fedray.protection.wire import encode
from fedray.vertical import EpochRecord, MaxNorm, mlp_of, sgd
from fedray.vertical.feature_owner import FeatureOwner
from fedray.vertical.messages import Forward

cloudpickle.register_pickle_by_value(sys.modules[__name__])

N = 60
OWNERS = ("left", "right")


def left() -> dict[str, Any]:
    """Opened inside the owner; lacks the last people."""
    x = np.random.default_rng(5).normal(size=(N, 3)).astype(np.float32)
    return {"pid": [f"nobody-{number}" for number in range(N - 10)], "x": x[: N - 10]}


def right() -> dict[str, Any]:
    """Lacks the first people, and has the others in another order."""
    x = np.random.default_rng(3).normal(size=(N, 3)).astype(np.float32)
    return {"pid": [f"NOBODY-{number}" for number in range(N - 1, 9, -1)], "x": x[:9:-1]}


def labels() -> dict[str, Any]:
    is_wild = np.random.default_rng(5).normal(size=(N, 3)).sum(1) > 0
    return {
        "pid": [f"nobody-{number}" for number in range(N)],
        "word": np.array(["calm-word", "wild-word"])[is_wild.astype(int)],
    }


def top(width: int, n_outputs: int) -> Any:
    return mlp_of(n_outputs, (12,))((width,))


SOME = {name: {"cpus": 0.4} for name in (*OWNERS, "clinic")}
FEW = {name: SOME[name] for name in ("left", "clinic")}
"""So that more than one set of parties fits on the four processors of this module."""


def made(directory: Path, **options: Any) -> fedray.Vertical:
    settings = {"placement": SOME, "directory": directory, **options}
    return fedray.Vertical({"left": left, "right": right}, ("clinic", labels), "pid", **settings)


def started(directory: Path, **options: Any) -> fedray.Vertical:
    fed = made(directory, **options)
    fed.align(missing="allow")
    fed.models(dict.fromkeys(OWNERS, mlp_of(8, (8,))), top, "masked_sum")
    return fed


def trained(fed: fedray.Vertical, folder: Path) -> list[EpochRecord]:
    history = fed.fit(epochs=2, batch_size=16, optimizer=sgd(0.3, momentum=0.9))
    fed.save(folder)
    fed.write_predictions(folder / "predicted.csv")
    return history


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vertical")


@pytest.fixture(scope="module")
def shared(ray_dir: Path, folder: Path) -> Iterator[tuple[fedray.Vertical, list[EpochRecord]]]:
    """Parties as actors, after two epochs."""
    with started(folder / "on-ray") as fed:
        yield fed, trained(fed, folder / "ray-weights")


def _pid(party: Any) -> int:
    return os.getpid()


def test_actors_give_the_same_bits_as_one_process(
    shared: tuple[fedray.Vertical, list[EpochRecord]], folder: Path
) -> None:
    with started(folder / "here", in_process=True) as here:
        history = trained(here, folder / "here-weights")
        predicted = here.predict()
    fed, on_ray = shared
    assert [(one.loss, one.holdout, one.leaks, one.bytes_sent, one.bytes_received) for one in on_ray] == [
        (one.loss, one.holdout, one.leaks, one.bytes_sent, one.bytes_received) for one in history
    ]
    assert fed.predict().tobytes() == predicted.tobytes()
    for file in ("left.safetensors", "right.safetensors", "clinic.safetensors", "predicted.csv"):
        assert (folder / "ray-weights" / file).read_bytes() == (folder / "here-weights" / file).read_bytes()


def test_every_party_has_a_process_of_its_own(shared: tuple[fedray.Vertical, list[EpochRecord]]) -> None:
    session = shared[0]._session()
    pids = session.of_owners(dict.fromkeys(OWNERS, _pid))
    assert len({*pids.values(), session.of_holder(_pid), os.getpid()}) == 4


def test_an_owner_refuses_by_way_of_its_actor_too(shared: tuple[fedray.Vertical, list[EpochRecord]]) -> None:
    again = encode(Forward(1, "holdout", 0, 0, 16, b""))
    with pytest.raises(ProtocolError, match="at 'left': a request with number 1"):
        shared[0]._session().of_owners({"left": methodcaller("answer", again)})


def test_what_crosses_the_boundary_of_actors_holds_no_row_no_label_and_no_id(
    shared: tuple[fedray.Vertical, list[EpochRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owners' actors write down what they are asked and answer; the caller's own calls are read where they are made."""
    to_caller: list[bytes] = []
    answer = vertical._answer
    monkeypatch.setattr(vertical, "_answer", lambda *call: _kept(answer(*call), to_caller))
    with made(tmp_path / "run") as fed:
        fed._session().of_owners(dict.fromkeys(OWNERS, Spied(tmp_path)))
        fed.align(missing="allow")
        fed.models(dict.fromkeys(OWNERS, mlp_of(8, (8,))), top)
        fed.fit(epochs=2, batch_size=16, cut=MaxNorm())
        fed.predict()
    between = [file.read_bytes() for file in tmp_path.glob("said-*")]
    assert len(between) == 2 * (2 + 2 * (3 + 1 + 1) + 1)  # two of alignment, two epochs, a prediction
    assert len(to_caller) > 8
    rows = [row[start : start + 2].tobytes() for one in (left, right) for row in one()["x"] for start in range(2)]
    needles = [*rows, b"calm-word", b"wild-word", b"nobody", b"NOBODY"]
    whole = b"".join([*between, *to_caller])
    assert [one for one in needles if one in whole] == []
    tables = pickle.dumps([{key: np.asarray(one()[key]) for key in one()} for one in (left, right)])
    assert sum(one in tables for one in rows) == len(rows) > 100


def _kept(found: Any, to_caller: list[bytes]) -> Any:
    to_caller.append(pickle.dumps(found))
    return found


class Spied:
    """Has an owner write what it hears and says from now on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, owner: FeatureOwner) -> None:
        answer, folder = owner.answer, self._folder

        def written(message: bytes) -> bytes:
            said = answer(message)
            (folder / f"said-{time.monotonic_ns()}-{os.getpid()}").write_bytes(message + said)
            return said

        owner.answer = written  # type: ignore[method-assign]


@pytest.mark.parametrize("party", ["left", "clinic"])
def test_a_party_that_is_killed_ends_the_run_in_one_clear_error_within_seconds(
    ray_dir: Path, tmp_path: Path, party: str
) -> None:
    with started(tmp_path / "run") as fed:
        epochs = fed.epochs(epochs=100_000, batch_size=16)
        next(epochs)
        session = fed._session()
        pid = session.of_holder(_pid) if party == "clinic" else session.of_owners({party: _pid})[party]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RunError, match=f"'{party}' is gone") as caught:
            list(epochs)
        assert time.monotonic() - began < 30
        assert "start a new run" in str(caught.value)
        assert "Traceback" not in str(caught.value)
        actors = list(session._all)  # type: ignore[attr-defined]  # of OnRay
    assert all(_has_ended(actor) for actor in actors)


def _has_ended(actor: Any) -> bool:
    """Ray ends actors in its own time."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            ray.get(actor.do.remote(_pid), timeout=30)
        except ray.exceptions.RayActorError:
            return True
        time.sleep(0.1)
    return False


def test_an_unfit_table_and_a_fault_name_their_party_and_quote_no_row(ray_dir: Path, tmp_path: Path) -> None:
    faulty = fedray.Vertical({"left": _faulty}, ("clinic", labels), "pid", directory=tmp_path / "run", placement=FEW)
    with pytest.raises(RunError, match="at 'left': a failure: KeyError") as caught:
        faulty.align()
    assert "a private value" not in str(caught.value)
    unfit = fedray.Vertical({"left": left}, ("clinic", "nowhere.csv"), "pid", directory=tmp_path / "run", placement=FEW)
    with pytest.raises(DataError, match=r"'nowhere.csv' of 'clinic'"):
        unfit.align()
    assert not (tmp_path / "run").exists()


def _faulty() -> Any:
    raise KeyError("a private value")


def test_garbage_from_an_owners_actor_is_named(shared: tuple[fedray.Vertical, list[EpochRecord]]) -> None:
    """Comes last in the module: the shared parties cannot go on after it."""
    fed, _ = shared
    fed._session().of_owners({"right": _garbles})
    with pytest.raises(ProtocolError, match="from 'right'"):
        fed.fit(epochs=1)


def _garbles(owner: FeatureOwner) -> None:
    owner.answer = lambda message: b"garbage"  # type: ignore[method-assign]


def test_a_placement_that_nobody_has_is_refused_at_the_start(ray_dir: Path, tmp_path: Path) -> None:
    pinned = {"left": {"labels": {"fedray.owner": "nobody"}}}
    with pytest.raises(ResourcesError, match=r"party 'left'.*fedray\.owner=nobody"):
        started(tmp_path / "run", placement=pinned)
    with pytest.raises(ConfigError, match="GPUs"):
        started(tmp_path / "run", placement={"left": {"gpus": 1}})
    assert not (tmp_path / "run").exists()
