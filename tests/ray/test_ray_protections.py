"""Every protection on Ray: the bits of plain sums, in single runs, under differential privacy and in a comparison; the
key holder's actor lost and back; and no secret in the server's process."""

from __future__ import annotations

import gc
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

import fedray
from fedray.actors.key_holder import RayKeyHolder
from fedray.actors.session import RayServer
from fedray.config import Experiment, replaced
from fedray.config.cluster import Place
from fedray.errors import ProtocolError, ResourcesError
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic.key_holder import KeyHolderRole
from fedray.protection.homomorphic.messages import Context, ContextAsked
from fedray.protection.homomorphic.parameters import choose
from fedray.protection.identity import Identity, Trust
from fedray.protection.wire import decode, encode
from fedray.tune import compare

cloudpickle.register_pickle_by_value(sys.modules[__name__])

BASE = Experiment.model_validate(
    {"name": "protected", "rounds": 2, "data": {"name": "digits", "owners": 3}, "model": "logistic"}
)
PRIVATE = {"name": "example", "noise_multiplier": 1.0, "unsafe_replay_seed": 7}
FIXED_POINT = FixedPoint(10, 3, 8.0, 1e-5)


def models(experiment: Experiment, folder: Path, **where: Any) -> list[str]:
    return [record.parameters_sha256 for record in fedray.run(experiment, folder, **where)]


@pytest.mark.parametrize("protection", ["bfv", "ckks"])
def test_a_protected_run_on_ray_gives_the_bits_of_a_plain_one_in_process(
    protection: str, tmp_path: Path, ray_dir: Path
) -> None:
    expected = models(replaced(BASE, {"protection": "plain"}), tmp_path / "plain", in_process=True)
    assert models(replaced(BASE, {"protection": protection}), tmp_path / protection) == expected


@pytest.mark.parametrize("protection", ["masked", "bfv"])
def test_so_it_does_under_differential_privacy(protection: str, tmp_path: Path, ray_dir: Path) -> None:
    private = replaced(BASE, {"privacy": PRIVATE})
    expected = models(replaced(private, {"protection": "plain"}), tmp_path / "plain", in_process=True)
    records = list(fedray.run(replaced(private, {"protection": protection}), tmp_path / protection))
    assert [record.parameters_sha256 for record in records] == expected
    assert records[-1].epsilon is not None


def test_protections_can_be_compared(tmp_path: Path, ray_dir: Path) -> None:
    result = compare(BASE, {"protection": ["plain", "masked", "bfv"]}, tmp_path / "out")
    assert result.n_failed == 0
    assert {run.rounds[0].sum.protection for run in result.runs} == {"plain", "masked", "bfv"}
    assert len({run.rounds[-1].parameters_sha256 for run in result.runs}) == 1


@pytest.mark.parametrize("protection", ["masked", "bfv"])
def test_the_servers_process_holds_no_secret(protection: str, tmp_path: Path, ray_dir: Path) -> None:
    server = RayServer(replaced(BASE, {"protection": protection}), tmp_path / "owners")
    try:
        after = server.advance()
        assert after is not None
        assert after[1].sum.outcome == "opened"
        held = ray.get(server._server.__ray_call__.remote(_kinds_held))
    finally:
        server.close()
    assert "ServerActor" in held
    assert not held & {
        "Identity",
        "SecretKey",
        "KeyHolderRole",
        "KeyRing",
        "MaskedSealer",
        "HomomorphicSealer",
        "Shard",
    }


def _kinds_held(actor: object) -> set[str]:
    """Names of the types of all objects alive in the actor's process."""
    return {type(one).__name__ for one in gc.get_objects()}


def make_key_holder(folder: Path) -> KeyHolderRole:
    identity = Identity.kept(folder / "identity.pem")
    return KeyHolderRole(identity, Trust({}), choose("bfv", FIXED_POINT), FIXED_POINT, 3, 100)


def test_a_key_holder_that_is_lost_comes_back_as_itself_with_a_new_key(tmp_path: Path, ray_dir: Path) -> None:
    holder = RayKeyHolder(partial(make_key_holder, tmp_path), Place(), 60)
    asked = encode(ContextAsked(bytes(16), 1))
    before = decode(holder.answer(asked), Context)
    with pytest.raises(ProtocolError, match="no protocol message"):
        holder.answer(b"nonsense")
    identity = holder.identity
    ray.kill(holder._actor, no_restart=False)
    _wait_for_another_key(holder, before)
    assert holder.identity == identity
    ray.kill(holder._actor)
    with pytest.raises(ProtocolError, match="no answer of the key holder"):
        holder.answer(asked)


def _wait_for_another_key(holder: RayKeyHolder, before: Context) -> None:
    """Killing takes a moment, and so does coming back."""
    for _ in range(100):
        with suppress(ProtocolError):
            after = decode(holder.answer(encode(ContextAsked(bytes(16), 1))), Context)
            if after.key_id != before.key_id:
                return
        time.sleep(0.2)
    raise AssertionError("the key holder did not come back with a new key")


def test_a_key_holder_that_fits_on_no_node_is_refused(tmp_path: Path, ray_dir: Path) -> None:
    place = Place(resources={"nowhere": 1.0})
    with pytest.raises(ResourcesError, match="key holder did not start"):
        RayKeyHolder(partial(make_key_holder, tmp_path), place, 2)
