"""The study of encrypted digits: as accurate as in the clear, and what it prints is what it found. Nothing is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import study

ENCRYPTED: Any = study("encrypted_inference")


def test_a_cnn_on_encrypted_digits_is_as_accurate_as_in_the_clear() -> None:
    torch.manual_seed(0)
    images, held_out, labels, held_out_labels = ENCRYPTED.digits()
    assert len(images) == 1347
    assert len(held_out) == len(held_out_labels) == 450
    module = ENCRYPTED.cnn()
    ENCRYPTED.train(module, images, labels, 15)
    found = ENCRYPTED.measured("cnn", module, held_out, held_out_labels)
    assert found.accuracy > 0.93
    assert abs(found.encrypted_accuracy - found.accuracy) < 0.01
    assert found.largest_error < 0.05
    assert found.images == 450


def test_the_study_runs_and_writes_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["study", "--models", "logistic", "--epochs", "3", "--out", str(out)])
    ENCRYPTED.main()
    (found,) = json.loads(out.read_text())["models"]
    assert f"{found['encrypted_accuracy']:.2%}" in capsys.readouterr().out
    assert found["depth"] == 1


def test_the_cnn_one_by_one_is_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights so small that the coarse parameters of TenSEAL's tutorial are enough."""
    torch.manual_seed(0)
    module = ENCRYPTED.cnn()
    assert ENCRYPTED.one_by_one(module, torch.rand(8, 8)).largest_error < 0.01
