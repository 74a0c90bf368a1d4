"""Three parties as Ray actors: the same results, and what happens when one dies, stops or sends garbage."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import ray
import torch
from ray import cloudpickle

from fedray.actors.parties import HeldParties, Parties
from fedray.errors import ConfigError, ProtocolError, ResourcesError, RunError
from fedray.mpc.conducting import opened
from fedray.mpc.engine import Ref
from fedray.mpc.keys import Reader
from fedray.mpc.local import LocalParties

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("ray_dir")
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SECONDS = 20.0
"""By when a computation must have ended after a fault; it takes about two."""


def quickly(what: Callable[[], object], message: str) -> None:
    began = time.monotonic()
    with pytest.raises((RunError, ProtocolError), match=message):
        what()
    assert time.monotonic() - began < SECONDS


def test_actors_compute_what_threads_compute_at_the_same_cost() -> None:
    costs = []
    for kind in (Parties, LocalParties):
        with kind() as parties:
            x = parties.share(X)
            y = parties.run("sigmoid", parties.run("matmul", x, parties.share(X.T)))
            assert torch.allclose(parties.reveal(y), (X @ X.T).sigmoid(), atol=1e-4)
            costs.append({cost.operator: (cost.calls, cost.bytes_sent, cost.rounds) for cost in parties.costs()})
    assert costs[0] == costs[1]


def test_parties_that_were_ended_say_so() -> None:
    with Parties() as parties:
        x = parties.share(X)
    for asked in (lambda: parties.reveal(x), lambda: parties.run("negate", x), lambda: parties.share(X)):
        with pytest.raises(RunError, match="parties that were ended"):
            asked()
    parties.close()


@ray.remote
class DataOwner:
    """Shares what it has and reads what comes of it, in a process of its own."""

    def __init__(self) -> None:
        self._reader = Reader()

    def public(self) -> bytes:
        return self._reader.public

    def share(self, parties: HeldParties, readers: list[bytes]) -> Ref:
        return parties.share(X, readers)

    def read(self, sealed: bytes) -> torch.Tensor:
        return opened(sealed, self._reader)

    def remember(self, parties: HeldParties) -> bytes:
        self._parties = parties
        return parties.reader.public

    def compute(self, parties: HeldParties, ref: Ref) -> None:
        parties.run("negate", ref)


def test_another_process_shares_and_reads_and_the_caller_sees_neither() -> None:
    owner = DataOwner.remote()
    reader = ray.get(owner.public.remote())
    with Parties() as parties:
        theirs = ray.get(owner.share.remote(parties, [reader]))
        ours = parties.share(2 * X, [reader, parties.reader.public])
        product = parties.run("multiply", theirs, ours)
        found = ray.get(owner.read.remote(parties.sealed(product, reader)))
        assert torch.allclose(found, 2 * X * X, atol=1e-5)
        for ref in (theirs, product):
            with pytest.raises(ProtocolError, match="may not learn"):
                parties.reveal(ref)
        with pytest.raises(RunError, match="did not start the parties"):
            ray.get(owner.compute.remote(parties, theirs))
        assert pickle.loads(cloudpickle.dumps(parties)) is parties
        assert ray.get(owner.remember.remote(parties)) == ray.get(owner.remember.remote(parties))
    ray.kill(owner)


@pytest.mark.parametrize("party", [0, 1, 2])
def test_a_party_that_is_killed_ends_the_computation_with_its_name(party: int) -> None:
    with Parties() as parties:
        x = parties.share(X)
        pid = ray.get(parties._actors[party].__ray_call__.remote(lambda actor: os.getpid()))
        parties.reveal(parties.run("multiply", x, x))
        os.kill(pid, signal.SIGKILL)
        quickly(lambda: parties.reveal(parties.run("sigmoid", x)), "part(y|ies).* (is gone|stopped)")


def test_the_others_say_who_is_gone_while_they_wait_for_it() -> None:
    with Parties() as parties:
        x = parties.share(X)
        ray.get(parties._actors[1].__ray_call__.remote(lambda actor: None))
        ray.kill(parties._actors[1])
        parties.run("sigmoid", x)
        answer = ray.get(parties._actors[0].ask.remote("sealed", x.number, parties.reader.public), timeout=SECONDS)
        assert isinstance(answer, RunError)
        assert "party 1 is gone" in str(answer)


def test_a_party_joins_once_and_tells_nothing_but_what_parties_are_asked() -> None:
    """A second time it would say other things under the same keys and numbers. Its shares are no answer."""
    with Parties() as parties:
        x = parties.share(X)
        with pytest.raises(ProtocolError, match="join again"):
            ray.get(parties._actors[0].join.remote(parties._actors))
        for question, *args in (("_found", x.number), ("_key",), ("__reduce__",), ("stopped",)):
            answer = ray.get(parties._actors[0].ask.remote(question, *args))
            assert isinstance(answer, ProtocolError)
            assert "asked for" in str(answer)
        assert torch.allclose(parties.reveal(x), X, atol=1e-6)


def test_garbage_from_a_party_ends_the_computation_with_its_name() -> None:
    with Parties() as parties:
        x = parties.share(X)
        ray.get(parties._actors[1].deliver.remote(0, b"garbage"))
        quickly(
            lambda: parties.reveal(parties.run("multiply", x, x)), "from party 0: something that does not open|gone"
        )


def test_a_party_whose_program_stops_ends_the_others() -> None:
    """It lost what the others still hold."""
    with Parties() as parties:
        x = parties.share(X)
        ray.get(parties._actors[2].ask.remote("forget", [x.number]))
        quickly(lambda: parties.reveal(parties.run("sigmoid", x)), "party 2 is gone: it stopped|does not hold")


def object_store() -> bytes:
    """All of Ray's object store on this node. Its file is in no folder, but the process that made it has it open."""
    (name,) = {line.split()[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/plasma" in line}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor).startswith(name):
                return descriptor.read_bytes()
    raise AssertionError(f"nobody has {name} open")


def test_no_process_but_a_party_sees_a_share() -> None:
    """What travels through Ray is sealed: neither the number nor either half of a share is in its object store."""
    marker = ray.put(torch.full((40_000,), 8765.4321, dtype=torch.float64).numpy())
    with Parties() as parties:
        x = torch.full((40_000,), 1234.5678, dtype=torch.float64)
        ref = parties.share(x)
        parties.reveal(parties.run("multiply", ref, ref))
        halves = [
            ray.get(actor.__ray_call__.remote(lambda actor, n=ref.number: actor._worker._held[n].share.own[:4].numpy()))
            for actor in parties._actors
        ]
        stored = object_store()
        assert torch.tensor([8765.4321], dtype=torch.float64).numpy().tobytes() in stored, marker
        assert len(stored) > 10_000_000
        for secret in (*halves, x[:4].numpy()):
            assert secret.tobytes() not in stored


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": 40}, ConfigError, "fractional bits"),
        ({"places": [{}, {}]}, ConfigError, "one for each of three"),
        ({"places": [{"labels": {"no.such": "node"}}] * 3}, ResourcesError, "did not start"),
    ],
)
def test_parties_that_cannot_be_are_refused(
    options: dict[str, object], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedray.actors.parties.START_S", 2.0)
    with pytest.raises(error, match=message):
        Parties(**options)  # type: ignore[arg-type]
