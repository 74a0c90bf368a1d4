"""The benchmark of private set intersection says whether it is exact, on few ids. Nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from toys import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("bench_psi", ROOT / "scripts" / "bench" / "psi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_its_sets_overlap_by_37_per_cent(bench: Any) -> None:
    mine, theirs = bench.sets(1000)
    assert len(mine) == len(theirs) == len(set(mine)) == len(set(theirs)) == 1000
    assert len(set(mine) & set(theirs)) == 370


def test_it_runs_and_finds_itself_exact(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "psi.json"
    monkeypatch.setattr(sys, "argv", ["psi.py", "--ids", "200", "--kinds", "rows", "count", "--out", str(out)])
    bench.main()
    costs = json.loads(out.read_text())["costs"]
    assert [(cost["kind"], cost["threads"], cost["is_exact"]) for cost in costs] == [
        (kind, threads, True) for kind in ("rows", "count") for threads in (1, 2)
    ]
    assert capsys.readouterr().out.count("| yes") == 4
