"""The page on data says what works: its examples run as they stand, in at most five lines each."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from fedray.config import Experiment
from fedray.data import catalogue, open_shard, owner_names

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The files that the page speaks of, in the working folder."""
    frame = pd.DataFrame({"age": np.arange(60.0), "dose": np.ones(60), "site": ["n", "s"] * 30})
    frame["ill"] = np.arange(60) // 2 % 2
    (tmp_path / "hospitals").mkdir()
    for name in ("north", "south"):
        frame.drop(columns="site").to_parquet(tmp_path / "hospitals" / f"{name}.parquet", index=False)
    frame.to_csv(tmp_path / "all.csv", index=False)
    monkeypatch.chdir(tmp_path)
    fake = SimpleNamespace(load_dataset=lambda *_, **__: SimpleNamespace(to_pandas=lambda: frame))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return frame


@pytest.mark.parametrize("number", range(5))
def test_examples_on_the_page_open_every_owners_shard(number: int, files: pd.DataFrame) -> None:
    code = _blocks("python")[number]
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    dataset = [(np.zeros((1, 3, 4), dtype=np.float32), row % 10) for row in range(400)]
    names = {"frame": files, "dataset": dataset}
    exec(code, names)
    data = names["experiment"].data  # type: ignore[attr-defined]
    assert len(owner_names(data)) >= 2
    assert all(len(open_shard(data, owner).train) for owner in owner_names(data))


def test_the_page_has_no_other_examples_and_its_yaml_is_valid() -> None:
    assert len(_blocks("python")) == 5
    found = [owner_names(Experiment.model_validate(yaml.safe_load(block)).data) for block in _blocks("yaml")]
    assert [(names[0], names[-1], len(names)) for names in found] == [
        ("north", "south", 2),
        ("owner-00000", "owner-99999", 100_000),
    ]


def test_the_page_names_every_data_set() -> None:
    text = PAGE.read_text()
    assert all(f"`{info.name}`" in text or f'"{info.name}"' in text for info in catalogue())
