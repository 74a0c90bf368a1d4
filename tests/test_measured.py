"""What was measured once is the same choice ever after: for the same model, training and machine, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedray.config import Experiment
from fedray.measured import remembered
from fedray.values import Choice

CPU = torch.device("cpu")
RAW: dict[str, Any] = {"data": {"name": "images", "owners": 50}, "model": "logistic", "simulation": "pooled"}


class Scale:
    """Measures something else every time."""

    def __init__(self) -> None:
        self.n_measured = 0

    def __call__(self) -> Choice:
        self.n_measured += 1
        return Choice(4 * self.n_measured, f"measurement {self.n_measured}: zwei für eins")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDRAY_CACHE", str(tmp_path))
    return tmp_path / "at_once"


def choice(scale: Scale, changes: Mapping[str, Any] = {}) -> Choice:
    return remembered(Experiment.model_validate({**RAW, **changes}), CPU, scale)


def test_a_choice_is_measured_once_and_the_same_ever_after(cache: Path) -> None:
    scale = Scale()
    first = choice(scale)
    assert first == Choice(4, "measurement 1: zwei für eins")
    assert [choice(scale), choice(Scale())] == [first, first]
    assert scale.n_measured == 1
    assert len(list(cache.iterdir())) == 1, "one whole file, and nothing beside it"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 9},
        {"name": "another"},
        {"rounds": 3},
        {"evaluation": {"every": 2}},
        {"simulation": {"name": "pooled", "pools": 3}},
        {"protection": "plain"},
    ],
    ids=str,
)
def test_what_does_not_act_on_training_is_the_same_choice(changes: dict[str, Any], cache: Path) -> None:
    scale = Scale()
    assert choice(scale) == choice(scale, changes)
    assert scale.n_measured == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "mlp", "hidden": [8]}},
        {"model": {"name": "mlp", "hidden": [9]}},
        {"train": {"batch_size": 7}},
        {"train": {"epochs": 2}},
        {"train": {"optimizer": {"name": "adam"}}},
        {"strategy": {"name": "fedprox", "mu": 0.1}},
        {"data": {"name": "images", "owners": 50, "rows": 70}},
        {"privacy": {"name": "example", "noise_multiplier": 1.0}},
        {"deadline_s": 3.0},
    ],
    ids=str,
)
def test_what_acts_on_training_is_measured_by_itself(changes: dict[str, Any], cache: Path) -> None:
    scale = Scale()
    first, other = choice(scale), choice(scale, changes)
    assert (first.at_once, other.at_once) == (4, 8)
    assert [choice(scale), choice(scale, changes)] == [first, other]
    assert scale.n_measured == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b'{"at_once": "four", "line": ""}', b'{"at_once": 4}'], ids=repr
)
def test_a_file_that_cannot_be_read_is_measured_again_and_mended(content: bytes, cache: Path) -> None:
    scale = Scale()
    choice(scale)
    (path,) = cache.iterdir()
    path.write_bytes(content)
    assert choice(scale).at_once == 8
    assert choice(scale).at_once == 8
    assert scale.n_measured == 2


def test_what_could_not_be_measured_is_not_remembered(cache: Path) -> None:
    def broken() -> Choice:
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        remembered(Experiment.model_validate(RAW), CPU, broken)
    assert choice(Scale()).at_once == 4


def test_another_version_of_torch_is_measured_by_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale()
    choice(scale)
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert choice(scale).at_once == 8
